"""The PyTorch modules of a model's programs, as they are converted to Core ML."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from pipeline.bundle import manifest
from pipeline.export.channels_first import channels_first
from pipeline.export.structure import Weight
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.names import Backend
from pipeline.recipe import Recipe
from pipeline.schemes import SCHEMES, WORD_TABLE_MATRIX, coreml_counterpart, coreml_weights
from pipeline.support.errors import UserError
from pipeline.tasks import get_task
from quantize.coreml_schemes import compress
from quantize.int8_inputs import with_int8_inputs

POSITIONS = "embeddings.position.weight"  # in `embed`


@dataclass(frozen=True)
class ProgramModule:
    """One program: its module, and its inputs and outputs in order.

    Attributes:
        inputs, outputs: the number of tokens is "length" in their shapes.
        schemes: by weight, those that differ from the program's precision; names in `pipeline.schemes`.
    """

    name: str
    module: nn.Module
    inputs: tuple[manifest.TensorSpec, ...]
    outputs: tuple[manifest.TensorSpec, ...]
    schemes: Mapping[str, str] = field(default_factory=dict)

    def example_inputs(self, length: int) -> tuple[Tensor, ...]:
        """Returns inputs of a length, all zero."""
        return tuple(
            torch.zeros(fixed_shape(tensor, length), dtype=getattr(torch, tensor.dtype)) for tensor in self.inputs
        )

    def weights(self, length: int) -> dict[str, Tensor]:
        """Returns parameters and buffers by name. A program has only as many positions as its length."""
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {
            name: tensor.detach()[:length] if name == POSITIONS else tensor.detach() for name, tensor in named.items()
        }

    def module_for(self, length: int) -> nn.Module:
        """Returns a copy of the module with the weights of a length."""
        module = copy.deepcopy(self.module)
        if self.name == "embed":
            positions = module.get_submodule("embeddings.position")
            positions.weight = nn.Parameter(self.weights(length)[POSITIONS].clone())
        return module

    def has_structure_of(self, other: ProgramModule) -> bool:
        """Returns whether two programs of one model differ only in the values of their weights."""
        shapes, other_shapes = (
            {name: tensor.shape for name, tensor in program.weights(1).items()} for program in (self, other)
        )
        structure = (str(self.module), self.inputs, self.outputs, shapes)
        return structure == (str(other.module), other.inputs, other.outputs, other_shapes)

    def describe(self, backend: Backend, file: str, method: str, length: int, precision: str) -> manifest.Program:
        """Returns the manifest's entry for this program at one length."""
        return manifest.Program(
            name=self.name,
            backend=backend,
            file=file,
            method=method,
            precision=precision,
            inputs=[with_length(tensor, length) for tensor in self.inputs],
            outputs=[with_length(tensor, length) for tensor in self.outputs],
            lengths=[length],
        )


def fixed_shape(tensor: manifest.TensorSpec, length: int) -> list[int]:
    """Returns a tensor's shape with a number in place of "length"."""
    return [length if size == "length" else size for size in tensor.shape]


def with_length(tensor: manifest.TensorSpec, length: int) -> manifest.TensorSpec:
    """Returns the tensor with that shape."""
    return tensor.model_copy(update={"shape": fixed_shape(tensor, length)})


def program_modules(
    model: ExitModel,
    layout: str = "standard",
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[ProgramModule]:
    """Returns the programs of a model: `embed`, then the segments.

    A segment's first output, the next one's `hidden`, is called `hidden_out`, because Core ML does not allow one name
    for an input and an output.

    Args:
        layout: "standard", or "ane" for `channels_first`, which changes the shapes of hidden states and attention bias.
        matrix_schemes: for the precision "mixed", the scheme of each matrix as `quantize.mixed` chose it.
        input_gains: for a precision with int8 inputs, see `quantize.int8_inputs`.
    """
    programs, width = Programs.of(model), model.config.hidden_size
    if input_gains:
        programs = with_int8_inputs(programs, input_gains)
    hidden: tuple[int | str, ...] = (1, "length", width)
    bias: tuple[int | str, ...] = (1, 1, "length")
    if layout == "ane":
        programs, hidden, bias = channels_first(programs), (1, width, 1, "length"), (1, "length", 1, 1)

    inputs = [float_tensor("hidden", *hidden), float_tensor("attention_bias", *bias)]
    outputs = [float_tensor("hidden_out", *hidden)]
    task = get_task(model.task)
    if task.uses_answer_mask:
        inputs.append(float_tensor("answer_bias", 1, "length"))
    outputs += [float_tensor(name, *shape) for name, shape in task.output_shapes(model.labels).items()]
    if task.measures_uncertainty:
        outputs.append(float_tensor("uncertainty", 1))
    ids = manifest.TensorSpec(name="input_ids", dtype="int32", shape=[1, "length"])
    embed = ProgramModule("embed", programs.embed, (ids,), (float_tensor("hidden", *hidden),))
    segments = [
        ProgramModule(f"segment_{index}", segment, tuple(inputs), tuple(outputs))
        for index, segment in enumerate(programs.segments)
    ]
    return with_matrix_schemes([embed, *segments], matrix_schemes) if matrix_schemes else [embed, *segments]


def float_tensor(name: str, *shape: int | str) -> manifest.TensorSpec:
    return manifest.TensorSpec.model_validate({"name": name, "dtype": "float32", "shape": list(shape)})


def with_matrix_schemes(programs: list[ProgramModule], matrix_schemes: Mapping[str, str]) -> list[ProgramModule]:
    """Returns the programs with the scheme of each matrix.

    Raises:
        ValueError: no program has one of the matrices. It would become float16, and no one would notice.
    """
    found: set[str] = set()
    mixed, first_layer = [], 0
    for index, program in enumerate(programs):
        schemes = {}
        for weight in program.weights(1):
            matrix = matrix_of(weight, index - 1, first_layer)
            if matrix is not None and matrix in matrix_schemes:
                schemes[weight] = coreml_counterpart(matrix_schemes[matrix])
                found.add(matrix)
        mixed.append(replace(program, schemes=schemes))
        if program.name != "embed":
            first_layer += len(list(program.module.get_submodule("layers").children()))
    if missing := set(matrix_schemes) - found:
        raise ValueError(f"no program has {', '.join(sorted(missing))}")
    return mixed


def matrix_of(weight: str, segment: int, first_layer: int) -> str | None:
    """Returns the matrix that a program's weight is, or is a part of.

    Args:
        weight: its name in the program's module, in either layout.
        segment: the program's number, -1 for `embed`.
        first_layer: the number of layers in the segments before.

    Returns:
        a name of `quantize.schemes.named_linears` or the word table's; None for other weights.
    """
    if not weight.endswith(".weight"):
        return None
    kind, *path = weight.removesuffix(".weight").split(".")
    if segment < 0:
        return WORD_TABLE_MATRIX if path == ["word"] else None
    if kind == "layers":
        layer, part = path
        return f"layers.{first_layer + int(layer)}.{'qkv' if part in ('query', 'key', 'value') else part}"
    return f"exits.{segment}.{'.'.join(part for part in path if part != 'head')}"  # `TokensFirst` wraps a head


class SchemeArguments(TypedDict, total=False):
    """Arguments of `program_modules` that depend on the precision."""

    matrix_schemes: Mapping[str, str]
    input_gains: Mapping[str, Tensor]


def scheme_arguments(
    precision: str, matrix_schemes: Mapping[str, str] | None, input_gains: Mapping[str, Tensor] | None
) -> SchemeArguments:
    """Returns the arguments of `program_modules` that a precision needs, and leaves the others out.

    Raises:
        UserError: what the precision needs is missing.
    """
    if SCHEMES[precision].by_matrix:
        if not matrix_schemes:
            raise UserError(
                "is mixed, and no scheme was chosen for any matrix; set quantize.scheme to mixed",
                field="export.coreml_precision",
            )
        return {"matrix_schemes": matrix_schemes}
    if coreml_weights(precision).int8_inputs:
        if not input_gains:
            raise UserError(
                f"{precision} needs texts to find the activations' ranges on; give some",
                field="export.coreml_calibration",
            )
        return {"input_gains": input_gains}
    return {}


class StoredWeights:
    """A program's weights as a scheme stores them. Each is compressed only once."""

    def __init__(self, program: ProgramModule, precision: str):
        self.program, self.precision = program, precision
        self.stored: dict[tuple[str, tuple[int, ...]], Weight] = {}

    def for_length(self, length: int) -> dict[str, Weight]:
        """Returns the weights of the program of a length, by name."""
        return {name: self._compressed(name, weight) for name, weight in self.program.weights(length).items()}

    def _compressed(self, name: str, weight: Tensor) -> Weight:
        key = (name, tuple(weight.shape))
        if key not in self.stored:
            self.stored[key] = compress(weight, self.program.schemes.get(name, self.precision))
        return self.stored[key]


def bucket_lengths(recipe: Recipe, positions: int) -> list[int]:
    """Returns the recipe's buckets that the programs can have, ascending. Raises UserError if there is none."""
    options = recipe.export
    longest = min(options.max_length, positions)
    lengths = sorted({length for length in options.coreml_buckets if 2 <= length <= longest})
    if not lengths:
        option = "coreml" if options.coreml else "executorch_coreml"
        raise UserError(
            f"no bucket of {options.coreml_buckets} is from 2 to export.max_length, {options.max_length}; "
            f"add one, or set export.{option}=false",
            field="export.coreml_buckets",
        )
    return lengths
