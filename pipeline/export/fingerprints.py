"""Fingerprints of the programs that Core ML computes: a few numbers that reveal a single altered weight.

A fingerprint is made of a program's outputs for inputs that anyone can generate again. The reference is the PyTorch
model in float32, with its weights compressed and decompressed as the package stores them. So a package and its
fingerprint come from the same model in two ways, which agree up to the order of float32 sums.

Where activations are rounded to int8 the agreement is worse, because the order of sums decides to which step some of
them are rounded. Such programs have a second fingerprint that is as exact: with int8's range, but without rounding to
its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bundle.conformance import ProgramVector
from pipeline.bundle.manifest import Program
from pipeline.data.inputs import MASKED
from pipeline.export.program_modules import (
    ProgramModule,
    StoredWeights,
    fixed_shape,
    program_modules,
    scheme_arguments,
)
from pipeline.export.vectors import all_rounded
from pipeline.model.exit_model import ExitModel
from pipeline.names import APPLE_BACKENDS
from quantize.coreml_schemes import decompressed
from quantize.int8_inputs import reciprocals, set_rounding

PROJECTIONS = 8


def fingerprint(values: np.ndarray) -> list[float]:
    """Returns random projections of an array: its numbers summed with random signs, over the root of their count.

    A sign is the product of a row's and a column's, so that a whole vocabulary's rows need little memory. On average,
    the fingerprint's ratio of noise to signal is that of the array (Johnson and Lindenstrauss 1984). A single number
    that changes moves every projection equally.

    Args:
        values: any shape; the columns are the last dimension.

    Returns:
        `PROJECTIONS` numbers, or the values themselves if they are not more.
    """
    if values.size <= PROJECTIONS:
        return [float(value) for value in values.ravel()]
    table = values.reshape(-1, values.shape[-1]).astype(np.float64)
    random = np.random.RandomState(0)  # its streams never change, unlike those of numpy's newer generators
    rows = random.randint(0, 2, (PROJECTIONS, table.shape[0])) * 2.0 - 1.0
    columns = random.randint(0, 2, (PROJECTIONS, table.shape[1])) * 2.0 - 1.0
    return [float(value) for value in ((rows @ table) * columns).sum(axis=1) / np.sqrt(values.size)]


def only_length(program: Program) -> int:
    """Returns the length of a program with fixed shapes."""
    if program.lengths is None or len(program.lengths) != 1:
        raise ValueError(f"{program.name} has the lengths {program.lengths}, not one")
    return program.lengths[0]


def fingerprint_inputs(program: Program, vocab_size: int) -> list[dict[str, np.ndarray]]:
    """Returns the inputs of a fixed-length program's runs, whose outputs are joined to one array.

    `embed` runs until every row of the vocabulary was looked up. A segment runs once, with normally distributed hidden
    states. The last half of the tokens is masked, and the first half of the others is no answer.
    """
    length, random = only_length(program), np.random.RandomState(0)
    if program.inputs[0].name == "input_ids":
        ids = np.arange(-(-vocab_size // length) * length) % vocab_size
        return [{"input_ids": row[None]} for row in ids.reshape(-1, length).astype(np.int32)]
    positions, real = np.arange(length), max(length // 2, 1)
    values = {
        "hidden": random.standard_normal(fixed_shape(program.inputs[0], length)),
        "attention_bias": np.where(positions < real, 0.0, MASKED),
        "answer_bias": np.where((positions >= real // 2) & (positions < real), 0.0, MASKED),
    }
    return [{tensor.name: values[tensor.name].reshape(tensor.shape).astype(np.float32) for tensor in program.inputs}]


@torch.no_grad()
def make_fingerprints(
    model: ExitModel,
    programs: Sequence[Program],
    layout: str = "standard",
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[ProgramVector]:
    """Returns the fingerprints of those programs that Core ML computes, in their order.

    `layout`, `matrix_schemes` and `input_gains` are as in `pipeline.export.coreml.export_coreml`.
    """
    modules_by_precision: dict[str, dict[str, ProgramModule]] = {}
    vectors: list[ProgramVector] = []
    compressed: CompressedModule | None = None
    for program in programs:
        if program.backend not in APPLE_BACKENDS:
            continue
        if program.precision not in modules_by_precision:
            arguments = scheme_arguments(program.precision, matrix_schemes, input_gains)
            modules = program_modules(model, layout, **arguments)
            modules_by_precision[program.precision] = {module.name: module for module in modules}
        program_module = modules_by_precision[program.precision][program.name]
        if compressed is None or compressed.program_module is not program_module:
            compressed = CompressedModule(program_module, program.precision)
        inputs, module = (
            fingerprint_inputs(program, model.config.vocab_size),
            compressed.for_length(only_length(program)),
        )
        rounded_outputs = None
        if reciprocals(module):
            rounded_outputs = fingerprint_outputs(program_module, set_rounding(module, "int8"), inputs)
        vectors.append(
            ProgramVector(
                program=program.name,
                backend=program.backend,
                length=only_length(program),
                outputs=fingerprint_outputs(program_module, set_rounding(module, "range"), inputs),
                rounded_outputs=rounded_outputs,
            )
        )
    return vectors


def fingerprint_outputs(
    program_module: ProgramModule, module: nn.Module, inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[float]]:
    """Runs a module on all inputs, and returns the fingerprint of each output by name."""
    runs = []
    for run_inputs in inputs:
        outputs = module(*(torch.from_numpy(run_inputs[tensor.name]) for tensor in program_module.inputs))
        runs.append((outputs,) if isinstance(outputs, Tensor) else outputs)
    arrays = [np.concatenate([output.numpy() for output in outputs]) for outputs in zip(*runs)]
    return {
        tensor.name: all_rounded(fingerprint(array))
        for tensor, array in zip(program_module.outputs, arrays, strict=True)
    }


class CompressedModule:
    """A program's module with its weights as the packages of a precision store them."""

    def __init__(self, program_module: ProgramModule, precision: str):
        self.program_module = program_module
        self.weights = StoredWeights(program_module, precision)
        self.module: nn.Module | None = None
        self.length = 0

    def for_length(self, length: int) -> nn.Module:
        """Returns the module of a length, which replaces the one before. A segment has one module for all lengths."""
        if self.module is None or (self.program_module.name == "embed" and self.length != length):
            module = self.program_module.module_for(length)
            named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, weight in self.weights.for_length(length).items():
                named[name].copy_(torch.from_numpy(decompressed(weight)).view_as(named[name]))
            self.module, self.length = module, length
        return self.module
