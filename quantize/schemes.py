"""The quantization schemes, and the pass that puts them on the programs of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.segments import Programs
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging
from quantize.embeddings import HalfEmbedding, Int4Embedding, Int8Embedding
from quantize.float_inputs import HalfLinear, WeightOnlyLinear
from quantize.int4 import GROUP, scales_of
from quantize.two_term import GRID_ENDS, TwoTermLinear

# A head's linear layer with fewer parameters stays float: it is under 0.2 % of a model, its answer is the one people see, and
# quantizing its input at run time costs about what int8 saves.
SMALLEST_HEAD_LINEAR = 32_768
EMBEDDINGS_MATRIX = "embeddings.word"  # the word table's name among the matrices


@dataclass(frozen=True)
class Scheme:
    """How linear layers are stored and computed.

    Args:
        summary: one line for people.
        stored: bytes that a weight of so many outputs and inputs takes in an ExecuTorch program, scales included, the bias not.
        replacement: makes the module that takes a layer's place; None leaves the layer itself there.
        config: makes the torchao configuration, `quantize_`'s second argument, for the layer, or for the one within its replacement; None
            leaves it as it is. A function, so that torchao is imported by those who quantize alone.
        group: how many inputs share a scale; a layer's inputs must be a multiple.
    """

    summary: str
    stored: Callable[[int, int], int]
    replacement: Callable[[nn.Linear], nn.Module] | None = None
    config: Callable[[], object] | None = None
    group: int = 1


@dataclass(frozen=True)
class EmbeddingScheme:
    """How the word table is stored; the fields are as those of `Scheme`, with a row for an output.

    With any but float32 the position table is in float16: whatever the program's length, its file holds all the rows there are.
    """

    summary: str
    stored: Callable[[int, int], int]
    replacement: Callable[[Tensor], nn.Module] | None = None
    group: int = 1


def int8_dynamic() -> object:
    """int8 weights with a scale per output channel, activations quantized per token at run time."""
    torchao = import_quietly("torchao.quantization")
    granularity = import_quietly("torchao.quantization.granularity")
    return torchao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=granularity.PerAxis(0)
    )


def int4_dynamic() -> object:
    """int4 weights with a scale per `GROUP` inputs of an output channel, activations quantized per token at run time.

    The scales are bfloat16 because XNNPACK's are: with float32 ones, PyTorch and the program are 0.003 apart after a layer, not 2e-7.
    """
    torchao = import_quietly("torchao.quantization")
    granularity = import_quietly("torchao.quantization.granularity")
    return torchao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=granularity.PerGroup(GROUP), weight_scale_dtype=torch.bfloat16
    )


def int4_steps(weight: Tensor) -> Tensor:
    """What `int4_dynamic` makes of a weight, but with scales that leave as it is what is whole steps already (`quantize.rounding`)."""
    tensor = import_quietly("torchao.quantization").IntxUnpackedToInt8Tensor
    scales = scales_of(weight.view(weight.shape[0], -1, GROUP), torch.bfloat16).squeeze(-1)
    zeros = torch.zeros_like(scales, dtype=torch.int8)
    return tensor.from_hp(
        weight,
        (1, GROUP),
        torch.int4,
        activation_quantization="int8_asym_per_token",
        intx_choose_qparams_algorithm=None,
        custom_scale=scales,
        custom_zero_point=zeros,
    )


SCHEMES: dict[str, Scheme] = {
    "fp32": Scheme("linear layers in float32", lambda outputs, inputs: 4 * outputs * inputs),
    "fp16": Scheme("weights and products in float16", lambda outputs, inputs: 2 * outputs * inputs, HalfLinear),
    "int8-weight-only": Scheme(
        "int8 weights per output channel, computed in float32",
        lambda outputs, inputs: outputs * (inputs + 4),
        WeightOnlyLinear,
    ),
    "int8": Scheme(
        "int8 weights per output channel, int8 activations per token at run time",
        lambda outputs, inputs: outputs * (inputs + 4),
        config=int8_dynamic,
    ),
    "int8-a16": Scheme(
        "int8 weights per output channel, activations of 16 bits as two int8 terms",
        lambda outputs, inputs: outputs * (inputs + GRID_ENDS + 4),
        TwoTermLinear,
        int8_dynamic,
    ),
    "int4": Scheme(
        f"int4 weights in groups of {GROUP}, int8 activations per token at run time",
        lambda outputs, inputs: outputs * (inputs // 2 + 2 * (inputs // GROUP)),
        config=int4_dynamic,
        group=GROUP,
    ),
}
EMBEDDINGS: dict[str, EmbeddingScheme] = {
    "fp32": EmbeddingScheme("rows in float32", lambda rows, width: 4 * rows * width),
    "fp16": EmbeddingScheme("rows in float16", lambda rows, width: 2 * rows * width, HalfEmbedding),
    "int8": EmbeddingScheme("int8 rows with a scale each", lambda rows, width: rows * (width + 4), Int8Embedding),
    "int4": EmbeddingScheme(
        f"int4 rows in groups of {GROUP}, two values to a byte",
        lambda rows, width: rows * (width // 2 + 2 * (width // GROUP)),
        Int4Embedding,
        GROUP,
    ),
}


@torch.no_grad()
def apply_scheme(
    programs: Programs, scheme: str | Mapping[str, str], embeddings: str, rounded: Programs | None = None
) -> Programs:
    """A quantized copy of the programs: the quantized model in PyTorch, which every exported program is held against.

    The linear layers of the encoder are quantized, and those of the heads from `SMALLEST_HEAD_LINEAR` parameters on. The copy runs
    eagerly and can be exported; it shares no memory with `programs`.

    Args:
        scheme: a name in `SCHEMES` for all of them, or one for each by its name in `named_linears`; who is not named stays float32.
        embeddings: a name in `EMBEDDINGS`, for the word table.
        rounded: of `quantize.rounding.round_model`, whose weights int4 takes; None rounds to the nearest step.

    Raises:
        UserError: an unknown scheme, or one whose groups do not fit a layer's inputs.
    """
    quantized = copy.deepcopy(programs).eval()
    linears = named_linears(quantized)
    schemes = dict.fromkeys(linears, scheme) if isinstance(scheme, str) else scheme
    for each in {scheme} if isinstance(scheme, str) else sorted(set(schemes.values())):
        if each not in SCHEMES:
            raise UserError(f"{each!r} is no scheme; take one of {', '.join(SCHEMES)}", field="quantize.scheme")
    if embeddings not in EMBEDDINGS:
        raise UserError(
            f"{embeddings!r} is no scheme for embeddings; take one of {', '.join(EMBEDDINGS)}",
            field="quantize.embeddings",
        )
    for name, each in SCHEMES.items():
        chosen = {matrix: linear for matrix, linear in linears.items() if schemes.get(matrix) == name}
        for matrix, linear in chosen.items():
            check_groups(matrix, linear.in_features, name, each, "quantize.scheme")
        put(each, quantized, list(chosen.values()))
        if name == "int4" and rounded is not None:
            steps = named_linears(rounded)
            for matrix, linear in chosen.items():
                linear.weight = nn.Parameter(int4_steps(steps[matrix].weight.detach()), requires_grad=False)
    word, table = quantized.embed.embeddings.word, EMBEDDINGS[embeddings]
    check_groups(EMBEDDINGS_MATRIX, word.embedding_dim, embeddings, table, "quantize.embeddings")
    if table.replacement is not None:
        quantized.embed.embeddings.word = table.replacement(word.weight.detach())
        quantized.embed.embeddings.position.half()
    return quantized.requires_grad_(False)


def apply_schemes(programs: Programs, schemes: Mapping[str, str], rounded: Programs | None = None) -> Programs:
    """`apply_scheme` with a scheme for each matrix, the word table, `EMBEDDINGS_MATRIX`, among them; who is not named stays float32."""
    linears = {matrix: scheme for matrix, scheme in schemes.items() if matrix != EMBEDDINGS_MATRIX}
    return apply_scheme(programs, linears, schemes.get(EMBEDDINGS_MATRIX, "fp32"), rounded)


def check_groups(matrix: str, inputs: int, name: str, scheme: Scheme | EmbeddingScheme, field: str) -> None:
    """UserError unless a matrix of so many inputs is made of whole groups."""
    if inputs % scheme.group:
        raise UserError(
            f"{name} has groups of {scheme.group}, and {matrix} is {inputs} wide, no multiple of it; take int8",
            field=field,
        )


def put(scheme: Scheme, programs: Programs, linears: list[nn.Linear]) -> None:
    """Puts a scheme on some linear layers of the programs, in place."""
    modules: list[nn.Module] = linears
    if scheme.replacement is not None:
        replacements = {id(linear): scheme.replacement(linear) for linear in linears}
        for parent in list(programs.modules()):
            for name, module in list(parent.named_children()):
                if id(module) in replacements:
                    setattr(parent, name, replacements[id(module)])
        modules = list(replacements.values())
    if scheme.config is not None and modules:
        chosen = {id(part) for module in modules for part in module.modules() if isinstance(part, nn.Linear)}
        quantize_ = import_quietly("torchao.quantization").quantize_
        with quiet_logging():
            quantize_(programs, scheme.config(), filter_fn=lambda module, name: id(module) in chosen)


def named_linears(programs: Programs) -> dict[str, nn.Linear]:
    """The linear layers that schemes apply to: `layers.0.qkv`, `layers.0.attention_out`, ... and the heads' large ones, `exits.0.value`.

    Layers are counted through all segments, exits are the segments.
    """
    named: dict[str, nn.Module] = {}
    layers = [layer for segment in programs.segments for layer in segment.layers]
    for index, layer in enumerate(layers):
        named.update((f"layers.{index}.{name}", module) for name, module in layer.named_modules())
    for index, segment in enumerate(programs.segments):
        named.update((f"exits.{index}.{name}", module) for name, module in segment.head.named_modules())
    return {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.Linear)
        and (name.startswith("layers.") or module.weight.numel() >= SMALLEST_HEAD_LINEAR)
    }
