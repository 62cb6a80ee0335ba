"""Writes a model's programs as Core ML packages of fixed lengths (buckets).

The weights are stored in a scheme of `pipeline.schemes`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.bundle import manifest
from pipeline.export.packages import write_package
from pipeline.export.program_modules import (
    ProgramModule,
    StoredWeights,
    bucket_lengths,
    program_modules,
    scheme_arguments,
)
from pipeline.export.structure import Structure
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.schemes import coreml_weights
from pipeline.support.progress import OnStep, silent
from quantize.int8_inputs import reciprocals, set_rounding

FOLDER = "coreml"


def export_coreml(
    model: ExitModel,
    folder: Path,
    recipe: Recipe,
    on_step: OnStep | None = None,
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[manifest.Program]:
    """Writes `folder/coreml`, and returns the manifest's entry of every program and bucket.

    With iOS 18 a program is one package with a function for each bucket (`length_32`, ...) and the weights once. Older
    systems know only one function per package, so every bucket is a package (`segment_0_32.mlpackage`, function
    `main`). The same model gives the same bytes.

    Args:
        folder: the bundle's folder. Its `coreml` is replaced once all packages are written.
        on_step: called after every conversion.
        matrix_schemes, input_gains: see `program_modules`; ignored if the recipe's precision does not need them.

    Raises:
        UserError: if no bucket is at most `export.max_length`, or what the precision needs is missing.
    """
    options, on_step = recipe.export, on_step or silent
    arguments = scheme_arguments(options.coreml_precision, matrix_schemes, input_gains)
    lengths = bucket_lengths(recipe, model.config.max_positions)
    partial = folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir(parents=True)
    entries: list[manifest.Program] = []
    programs = program_modules(model, options.coreml_layout, **arguments)
    done = 0
    converted: ProgramModule | None = None  # whose structures these are
    structures: dict[int, Structure] = {}
    for program in programs:
        if converted is None or not program.has_structure_of(converted):
            converted, structures = program, {}
        weights = StoredWeights(program, options.coreml_precision)
        for length in lengths:
            if length not in structures:
                structures[length] = convert_structure(program, length, options.coreml_target, options.coreml_precision)
            # At once, because a structure's random weights take memory of their own, while these are shared.
            structures[length].fill(weights.for_length(length))
            done += 1
            on_step("Core ML", done, len(programs) * len(lengths))
        entries += write_program(program, structures, partial, options.coreml_precision)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    os.replace(partial, folder / FOLDER)
    return entries


def convert_structure(program: ProgramModule, length: int, target: str, precision: str) -> Structure:
    """Converts a program at one length, with random weights as yet.

    Args:
        target: the oldest system that must run it, a name in `coremltools.target` ("iOS18").
        precision: a name in `pipeline.schemes`; "fp32", for tests, computes in float32.
    """
    module = set_rounding(program.module_for(length), "none")
    inputs, half = program.example_inputs(length), coreml_weights(precision).float_bytes == 2
    return Structure(module, inputs, program.outputs, target, half, rounded=reciprocals(module))


def write_program(
    program: ProgramModule, structures: Mapping[int, Structure], folder: Path, precision: str
) -> list[manifest.Program]:
    """Writes a program's lengths, as functions of one package if the target allows it, and describes them."""
    entries = []
    groups: dict[Path, dict[str, Structure]] = {}
    for length, structure in structures.items():
        shared = structure.target == "iOS18"
        package = folder / (f"{program.name}.mlpackage" if shared else f"{program.name}_{length}.mlpackage")
        method = f"length_{length}" if shared else "main"
        groups.setdefault(package, {})[method] = structure
        entries.append(program.describe("coreml", f"{FOLDER}/{package.name}", method, length, precision))
    for package, functions in groups.items():
        write_package(functions, package)
    return entries
