"""Writes a model's programs as Core ML packages: ML programs of fixed lengths (buckets), their weights in a scheme of `quantize.coreml_schemes`."""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.bundle import manifest
from pipeline.export.channels_first import channels_first
from pipeline.export.structure import Structure, Weight, save
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.schemes import SCHEMES, WORD_TABLE_MATRIX, coreml_counterpart, coreml_weights
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly
from pipeline.tasks import get_task
from quantize.coreml_schemes import compress
from quantize.int8_inputs import reciprocals, set_rounding, with_int8_inputs

FOLDER = "coreml"
POSITIONS = "embeddings.position.weight"  # of `embed`

# Identifiers in a package's Manifest.json are made from the items' paths in this name space.
NAMESPACE = uuid.UUID("6f1d0b0e-4a53-5d0c-9c4e-7b7a1f3f2c11")


@dataclass(frozen=True)
class Source:
    """A program to convert: a module, and its inputs and outputs in order; `inputs` and `outputs` have "length" for the tokens.

    `schemes` names the weights that have another scheme than the program's precision, names in `pipeline.schemes`.
    """

    name: str
    module: nn.Module
    inputs: tuple[manifest.TensorSpec, ...]
    outputs: tuple[manifest.TensorSpec, ...]
    schemes: Mapping[str, str] = field(default_factory=dict)

    def example(self, length: int) -> tuple[Tensor, ...]:
        """Inputs of that length, all zero."""
        return tuple(
            torch.zeros(of_length(each, length).shape, dtype=getattr(torch, each.dtype)) for each in self.inputs
        )

    def weights(self, length: int) -> dict[str, Tensor]:
        """Parameters and buffers by name, of the positions as many as a program of that length has."""
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {
            name: tensor.detach()[:length] if name == POSITIONS else tensor.detach() for name, tensor in named.items()
        }

    def at(self, length: int) -> nn.Module:
        """A copy of the module with those weights."""
        module = copy.deepcopy(self.module)
        if self.name == "embed":
            module.embeddings.position.weight = nn.Parameter(self.weights(length)[POSITIONS].clone())
        return module

    def is_built_like(self, other: Source) -> bool:
        """Whether the two differ in their weights alone; both are of one model."""
        shapes = [{name: tensor.shape for name, tensor in each.weights(1).items()} for each in (self, other)]
        return (str(self.module), self.inputs, self.outputs, shapes[0]) == (
            str(other.module),
            other.inputs,
            other.outputs,
            shapes[1],
        )

    def program(self, file: str, method: str, length: int, precision: str) -> manifest.Program:
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


def of_length(tensor: manifest.TensorSpec, length: int) -> manifest.TensorSpec:
    """The tensor with a number in place of "length"."""
    return tensor.model_copy(update={"shape": [length if size == "length" else size for size in tensor.shape]})


def sources(
    model: ExitModel,
    layout: str = "standard",
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[Source]:
    """The programs of a model: `embed`, then the segments.

    A segment's first output, the next one's `hidden`, is called `hidden_out`: Core ML refuses one name for an input and an output.

    Args:
        layout: "standard", or "ane" for `channels_first`. Their programs differ in the shapes of hidden states and attention bias.
        matrix_schemes: the scheme of each matrix, as `quantize.mixed` has them, for the precision "mixed".
        input_gains: see `quantize.int8_inputs`, for a precision with int8 inputs.
    """
    programs, size = Programs.of(model), model.config.hidden_size
    if input_gains:
        programs = with_int8_inputs(programs, input_gains)
    hidden, bias = (1, "length", size), (1, 1, "length")
    if layout == "ane":
        programs, hidden, bias = channels_first(programs), (1, size, 1, "length"), (1, "length", 1, 1)

    def tensor(name: str, *shape: int | str, dtype: str = "float32") -> manifest.TensorSpec:
        return manifest.TensorSpec(name=name, dtype=dtype, shape=list(shape))

    inputs = [tensor("hidden", *hidden), tensor("attention_bias", *bias)]
    outputs = [tensor("hidden_out", *hidden)]
    task = get_task(model.task)
    if task.uses_answer_mask:
        inputs.append(tensor("answer_bias", 1, "length"))
    outputs += [tensor(name, *shape) for name, shape in task.output_shapes(model.labels).items()]
    if task.measures_uncertainty:
        outputs.append(tensor("uncertainty", 1))
    embed = Source(
        "embed", programs.embed, (tensor("input_ids", 1, "length", dtype="int32"),), (tensor("hidden", *hidden),)
    )
    segments = [
        Source(f"segment_{index}", segment, tuple(inputs), tuple(outputs))
        for index, segment in enumerate(programs.segments)
    ]
    every, first_layer = [embed, *segments], 0
    if not matrix_schemes:
        return every
    found, mixed = set(), []
    for index, source in enumerate(every):
        matrices = {name: matrix_of(name, index - 1, first_layer) for name in source.weights(1)}
        matrices = {name: matrix for name, matrix in matrices.items() if matrix in matrix_schemes}
        mixed.append(
            replace(
                source,
                schemes={name: coreml_counterpart(matrix_schemes[matrix]) for name, matrix in matrices.items()},
            )
        )
        found |= set(matrices.values())
        first_layer += len(source.module.layers) if index else 0
    if lacking := set(matrix_schemes) - found:  # it would be float16, and no one would know
        raise ValueError(f"no program has {', '.join(sorted(lacking))}")
    return mixed


def matrix_of(weight: str, segment: int, first_layer: int) -> str | None:
    """The name in `quantize.schemes.named_linears`, or that of the word table, of the matrix that a program's weight is or is a part of; None of
    other weights.

    Args:
        weight: its name in the program's module, in either layout.
        segment: the program's, -1 for `embed`.
        first_layer: how many layers are in the segments before.
    """
    if not weight.endswith(".weight"):
        return None
    kind, *path = weight.removesuffix(".weight").split(".")
    if segment < 0:
        return WORD_TABLE_MATRIX if path == ["word"] else None
    if kind == "layers":
        at, part = path
        return f"layers.{first_layer + int(at)}.{'qkv' if part in ('query', 'key', 'value') else part}"
    return (
        f"exits.{segment}.{'.'.join(each for each in path if each != 'head')}"  # `TokensFirst` has the head within it
    )


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


def export_coreml(
    model: ExitModel,
    folder: Path,
    recipe: Recipe,
    on_step: OnStep | None = None,
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[manifest.Program]:
    """Writes `folder/coreml`, one package per program, and describes the programs for the manifest.

    With iOS 18 a package holds a function per bucket (`length_32`, ...) and the weights once; before, Core ML knew one function per
    package, so that every bucket is a package of its own (`segment_0_32.mlpackage`, function `main`). There is an entry per program and
    bucket in the result either way. The same model gives the same bytes.

    Args:
        folder: the bundle's folder; what is in its `coreml` is replaced once all packages are written.
        on_step: told of every conversion.
        matrix_schemes, input_gains: as of `sources`; what the recipe's precision does not ask for is passed over.

    Raises:
        UserError: when no bucket is left at or below `export.max_length`, or what the precision asks for is missing.
    """
    options, on_step = recipe.export, on_step or silent
    chosen = asked_for(options.coreml_precision, matrix_schemes, input_gains)
    lengths = bucket_lengths(recipe, model.config.max_positions)
    partial = folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    programs, every = [], sources(model, options.coreml_layout, **chosen)
    steps, done, like = len(every) * len(lengths), 0, None
    for source in every:
        if like is None or not source.is_built_like(like):
            like, structures = source, {}
        weights = StoredWeights(source, options.coreml_precision)
        for length in lengths:
            if length not in structures:
                structures[length] = structure_of(source, length, options.coreml_target, options.coreml_precision)
            # At once, since random weights are of a structure's own, while these are shared.
            structures[length].fill(weights.at(length))
            done += 1
            on_step("Core ML", done, steps)
        programs += write(source, structures, partial, options.coreml_precision)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    os.replace(partial, folder / FOLDER)
    return programs


def asked_for(
    precision: str, matrix_schemes: Mapping[str, str] | None, input_gains: Mapping[str, Tensor] | None
) -> dict[str, Mapping]:
    """Of the two, those that programs of a precision are made with, as arguments of `sources`. UserError where there are none."""
    by_matrix, int8_inputs = SCHEMES[precision].by_matrix, coreml_weights(precision).int8_inputs
    if not (by_matrix or int8_inputs):
        return {}
    if by_matrix and not matrix_schemes:
        raise UserError(
            "is mixed, and no scheme was chosen for any matrix; set quantize.scheme to mixed",
            field="export.coreml_precision",
        )
    if int8_inputs and not input_gains:
        raise UserError(
            f"{precision} needs texts to find the activations' ranges on; give some", field="export.coreml_calibration"
        )
    return {"matrix_schemes": matrix_schemes} if by_matrix else {"input_gains": input_gains}


class StoredWeights:
    """A program's weights as a scheme stores them, each compressed once."""

    def __init__(self, source: Source, precision: str):
        self.source, self.precision = source, precision
        self.stored: dict[tuple, Weight] = {}

    def at(self, length: int) -> dict[str, Weight]:
        """Those of the program of that length, by name."""
        return {name: self._compressed(name, weight) for name, weight in self.source.weights(length).items()}

    def _compressed(self, name: str, weight: Tensor) -> Weight:
        key = (name, tuple(weight.shape))
        if key not in self.stored:
            self.stored[key] = compress(weight, self.source.schemes.get(name, self.precision))
        return self.stored[key]


def structure_of(source: Source, length: int, target: str, precision: str) -> Structure:
    """The program of that length, as yet with weights that mean nothing."""
    module = set_rounding(source.at(length), "none")
    half = coreml_weights(precision).float_bytes == 2
    return Structure(module, source.example(length), source.outputs, target, half=half, rounded=reciprocals(module))


def write(source: Source, structures: dict[int, Structure], folder: Path, precision: str) -> list[manifest.Program]:
    """Writes the program's lengths, as functions of one package where the target allows it, and describes them."""
    lengths, one = list(structures), next(iter(structures.values())).target == "iOS18"
    packages = {
        length: folder / (f"{source.name}.mlpackage" if one else f"{source.name}_{length}.mlpackage")
        for length in lengths
    }
    methods = {length: f"length_{length}" if one else "main" for length in lengths}
    for package in dict.fromkeys(packages.values()):
        save({methods[length]: structures[length] for length in lengths if packages[length] == package}, package)
        settle(package)
    return [source.program(f"{FOLDER}/{packages[each].name}", methods[each], each, precision) for each in lengths]


def convert(source: Source, length: int, target: str, precision: str, package: Path) -> None:
    """Writes one program at one length as a package with the function `main`.

    Args:
        target: the oldest system that must run it, a name in `coremltools.target` ("iOS18").
        precision: a name in `pipeline.schemes`; "fp32", for tests, computes in float32. Inputs and outputs
            are float32 or int32 in all.
    """
    structure = structure_of(source, length, target, precision)
    structure.fill(StoredWeights(source, precision).at(length))
    save({"main": structure}, package)
    settle(package)


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
