"""Writes a model's programs as Core ML packages: ML programs of fixed lengths (buckets), float16 or with int8 weights."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.export.channels_first import channels_first
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.progress import OnStep, silent
from pipeline.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.recipe import Recipe

FOLDER = "coreml"

# "fp32" is for tests: it shows what is the conversion's and what is float16's.
Precision = Literal["fp32", "fp16", "int8"]

# Identifiers in a package's Manifest.json are made from the items' paths in this name space.
NAMESPACE = uuid.UUID("6f1d0b0e-4a53-5d0c-9c4e-7b7a1f3f2c11")


@dataclass(frozen=True)
class Source:
    """A program to convert: a module, and its inputs and outputs in order; `inputs` and `outputs` have "length" for the tokens."""

    name: str
    module: nn.Module
    inputs: tuple[manifest.Tensor, ...]
    outputs: tuple[manifest.Tensor, ...]

    def example(self, length: int) -> tuple[Tensor, ...]:
        """Inputs of that length, all zero."""
        return tuple(torch.zeros(of_length(each, length).shape, dtype=getattr(torch, each.dtype)) for each in self.inputs)

    def program(self, file: str, method: str, length: int, precision: Precision) -> manifest.Program:
        """The manifest's entry for this program at one length."""
        return manifest.Program(
            name=self.name,
            backend="coreml",
            file=file,
            method=method,
            precision=precision,
            inputs=[of_length(each, length) for each in self.inputs],
            outputs=[of_length(each, length) for each in self.outputs],
            lengths=[length],
        )


def of_length(tensor: manifest.Tensor, length: int) -> manifest.Tensor:
    """The tensor with a number in place of "length"."""
    return tensor.model_copy(update={"shape": [length if size == "length" else size for size in tensor.shape]})


def sources(model: ExitModel, layout: str = "standard") -> list[Source]:
    """The programs of a model: `embed`, then the segments.

    A segment's first output, the next one's `hidden`, is called `hidden_out`: Core ML refuses one name for an input and an output.

    Args:
        layout: "standard", or "ane" for `channels_first`. Their programs differ in the shapes of hidden states and attention bias.
    """
    programs, size = Programs.of(model), model.config.hidden_size
    hidden, bias = (1, "length", size), (1, 1, "length")
    if layout == "ane":
        programs, hidden, bias = channels_first(programs), (1, size, 1, "length"), (1, "length", 1, 1)

    def tensor(name: str, *shape: int | str, dtype: str = "float32") -> manifest.Tensor:
        return manifest.Tensor(name=name, dtype=dtype, shape=list(shape))

    inputs = [tensor("hidden", *hidden), tensor("attention_bias", *bias)]
    outputs = [tensor("hidden_out", *hidden)]
    if model.task == "qa":
        inputs.append(tensor("answer_bias", 1, "length"))
        outputs += [tensor("start_logits", 1, "length"), tensor("end_logits", 1, "length")]
    else:
        outputs.append(tensor("logits", 1, model.labels))
    if model.task != "regression":
        outputs.append(tensor("uncertainty", 1))
    embed = Source("embed", programs.embed, (tensor("input_ids", 1, "length", dtype="int32"),), (tensor("hidden", *hidden),))
    segments = [
        Source(f"segment_{index}", segment, tuple(inputs), tuple(outputs)) for index, segment in enumerate(programs.segments)
    ]
    return [embed, *segments]


def bucket_lengths(recipe: Recipe, positions: int) -> list[int]:
    """The recipe's buckets that the programs may have, ascending. UserError when there is none."""
    options = recipe.export
    longest = min(options.max_length, positions)
    lengths = sorted({length for length in options.coreml_buckets if 2 <= length <= longest})
    if not lengths:
        asked = "coreml" if options.coreml else "executorch_coreml"
        raise UserError(
            f"no bucket of {options.coreml_buckets} is from 2 to export.max_length, {options.max_length}; add one, or set export.{asked}=false",
            field="export.coreml_buckets",
        )
    return lengths


def export_coreml(model: ExitModel, folder: Path, recipe: Recipe, on_step: OnStep | None = None) -> list[manifest.Program]:
    """Writes `folder/coreml`, one package per program, and describes the programs for the manifest.

    With iOS 18 a package holds a function per bucket (`length_32`, ...) and the weights once; before, Core ML knew one function per
    package, so that every bucket is a package of its own (`segment_0_32.mlpackage`, function `main`). There is an entry per program and
    bucket in the result either way. The same model gives the same bytes.

    Args:
        folder: the bundle's folder; what is in its `coreml` is replaced once all packages are written.
        on_step: told of every conversion.

    Raises:
        UserError: when no bucket is left at or below `export.max_length`.
    """
    options, on_step = recipe.export, on_step or silent
    lengths = bucket_lengths(recipe, model.config.max_positions)
    partial = folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    programs, converted, every = [], 0, sources(model, options.coreml_layout)
    for source in every:
        packages = {}
        for length in lengths:
            packages[length] = partial / f"{source.name}_{length}.mlpackage"
            convert(source, length, options.coreml_target, options.coreml_precision, packages[length])
            converted += 1
            on_step("Core ML", converted, len(every) * len(lengths))
        methods = dict.fromkeys(lengths, "main")
        if options.coreml_target == "iOS18":
            methods = {length: f"length_{length}" for length in lengths}
            packages = dict.fromkeys(lengths, merge(packages, methods, partial / f"{source.name}.mlpackage"))
        for length in lengths:
            file = f"{FOLDER}/{packages[length].name}"
            programs.append(source.program(file, methods[length], length, options.coreml_precision))
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    os.replace(partial, folder / FOLDER)
    return programs


def convert(source: Source, length: int, target: str, precision: Precision, package: Path) -> None:
    """Writes one program at one length as a package with the function `main`.

    Args:
        target: the oldest system that must run it, a name in `coremltools.target` ("iOS18").
        precision: "fp16" computes in float16; "int8" too, with the weights int8, symmetric, a scale per output channel (a row of the
            embedding table); "fp32" computes in float32. Inputs and outputs are float32 or int32 in all.
    """
    ct = import_quietly("coremltools")
    with quiet_stderr(), quiet_logging():
        exported = torch.export.export(source.module.eval(), source.example(length)).run_decompositions({})
        model = ct.convert(
            exported,
            outputs=[ct.TensorType(name=output.name, dtype=np.dtype(output.dtype).type) for output in source.outputs],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target[target],
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            compute_units=ct.ComputeUnit.ALL,
            skip_model_load=True,
        )
        if precision == "int8":
            # Biases and layer norms are below the smallest size that is compressed, 2048 numbers; so is a last layer of two rows.
            scheme = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
            config = ct.optimize.coreml.OptimizationConfig(global_config=scheme)
            model = ct.optimize.coreml.linear_quantize_weights(model, config)
        model.save(str(package))
    settle(package)


def merge(packages: dict[int, Path], methods: dict[int, str], merged: Path) -> Path:
    """Makes one package of several, a function each, equal weights stored once; removes the single ones. Needs iOS 18."""
    ct = import_quietly("coremltools")
    functions = ct.utils.MultiFunctionDescriptor()
    for length, package in packages.items():
        functions.add_function(str(package), src_function_name="main", target_function_name=methods[length])
    functions.default_function_name = methods[min(methods)]
    with quiet_stderr(), quiet_logging():
        ct.utils.save_multifunction(functions, str(merged))
    for package in packages.values():
        shutil.rmtree(package)
    settle(merged)
    return merged


def settle(package: Path) -> None:
    """Takes out of a package what differs from run to run: the date, random identifiers, the order of maps, debugging files."""
    ct = import_quietly("coremltools")
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)

    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    for item in (package, *package.rglob("*")):  # coremltools writes for its owner alone
        item.chmod(0o755 if item.is_dir() else 0o644)

    path = package / "Manifest.json"
    listing = json.loads(path.read_bytes())
    names = {old: str(uuid.uuid5(NAMESPACE, item["path"])) for old, item in listing["itemInfoEntries"].items()}
    items = {names[old]: item for old, item in listing["itemInfoEntries"].items()}
    listing["itemInfoEntries"] = dict(sorted(items.items()))
    listing["rootModelIdentifier"] = names[listing["rootModelIdentifier"]]
    path.write_text(json.dumps(listing, indent=4) + "\n", encoding="utf-8")
