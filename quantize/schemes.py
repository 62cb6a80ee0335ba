"""The arithmetic of the schemes in ExecuTorch programs, and the pass that applies it to the programs of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.model.segments import Programs, SegmentProgram
from pipeline.schemes import DEFAULT_SCHEME, INT4_GROUP, SCHEMES, UNQUANTIZED, WORD_TABLE_MATRIX, word_table
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging
from quantize.embeddings import HalfEmbedding, Int4Embedding, Int8Embedding
from quantize.float_inputs import HalfLinear, WeightOnlyLinear
from quantize.int4 import best_scales
from quantize.two_term import TwoTermLinear

# A head's linear layer with fewer weights stays float. It is under 0.2 % of a model, its answer is the one people
# see, and quantizing its input at run time costs about what int8 saves.
MIN_HEAD_WEIGHTS = 32_768
INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # torch's stubs lack it


@dataclass(frozen=True)
class LinearArithmetic:
    """How the linear layers of a scheme in `pipeline.schemes` compute.

    Attributes:
        replacement: makes the module that replaces a layer; None keeps the layer.
        torchao_config: makes the torchao configuration for the layer, or for the one in its replacement; None leaves
            it as it is. It is a function so that only quantizing imports torchao.
        from_steps: makes the stored weight of one that `quantize.rounding` has rounded to whole steps; None where the
            scheme has no such weights.
    """

    replacement: Callable[[nn.Linear], nn.Module] | None = None
    torchao_config: Callable[[], object] | None = None
    from_steps: Callable[[Tensor], Tensor] | None = None


def int8_dynamic() -> object:
    """Returns torchao's configuration for int8 weights with a scale per output, and int8 inputs per token."""
    torchao = import_quietly("torchao.quantization")
    granularity = import_quietly("torchao.quantization.granularity")
    return torchao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=granularity.PerAxis(0)
    )


def int4_dynamic() -> object:
    """Returns torchao's configuration for int4 weights with a scale per `INT4_GROUP` inputs, and int8 inputs per token.

    The scales are bfloat16 because XNNPACK's are. With float32 scales, PyTorch and the program are 0.003 apart after
    a layer instead of 2e-7.
    """
    torchao = import_quietly("torchao.quantization")
    granularity = import_quietly("torchao.quantization.granularity")
    return torchao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=INT4, weight_granularity=granularity.PerGroup(INT4_GROUP), weight_scale_dtype=torch.bfloat16
    )


def int4_steps(weight: Tensor) -> Tensor:
    """Stores a weight as `int4_dynamic` does, with scales that keep a weight from `quantize.rounding` as it is."""
    tensor = import_quietly("torchao.quantization").IntxUnpackedToInt8Tensor
    scales = best_scales(weight.view(weight.shape[0], -1, INT4_GROUP), torch.bfloat16).squeeze(-1)
    zeros = torch.zeros_like(scales, dtype=torch.int8)
    return tensor.from_hp(
        weight,
        (1, INT4_GROUP),
        INT4,
        activation_quantization="int8_asym_per_token",
        intx_choose_qparams_algorithm=None,
        custom_scale=scales,
        custom_zero_point=zeros,
    )


LINEAR_ARITHMETIC: dict[str, LinearArithmetic] = {
    "fp32": LinearArithmetic(),
    "fp16": LinearArithmetic(HalfLinear),
    "int8-weight-only": LinearArithmetic(WeightOnlyLinear),
    "int8": LinearArithmetic(torchao_config=int8_dynamic),
    "int8-a16": LinearArithmetic(TwoTermLinear, int8_dynamic),
    "int4": LinearArithmetic(torchao_config=int4_dynamic, from_steps=int4_steps),
}
# Functions that make the module that replaces the word table, from its weight; None keeps the table.
WORD_TABLE_ARITHMETIC: dict[str, Callable[[Tensor], nn.Module] | None] = {
    "fp32": None,
    "fp16": HalfEmbedding,
    "int8": Int8Embedding,
    "int4": Int4Embedding,
}


@torch.no_grad()
def apply_scheme(
    programs: Programs, scheme: str | Mapping[str, str], embeddings: str, rounded: Programs | None = None
) -> Programs:
    """Returns a quantized copy of the programs: the model in PyTorch that every exported program is compared with.

    It quantizes the linear layers of the encoder, and those of the heads with at least `MIN_HEAD_WEIGHTS` weights.
    The copy runs eagerly and can be exported. It shares no memory with `programs`.

    Args:
        scheme: a name in `LINEAR_ARITHMETIC` for all of them, or one per layer by its name in `named_linears`. A layer
            without one stays float32.
        embeddings: a name in `WORD_TABLE_ARITHMETIC`, for the word table.
        rounded: the programs of `quantize.rounding.round_model`, whose weights int4 takes; None rounds to the nearest
            step.

    Raises:
        UserError: a scheme is unknown, or its groups do not fit a layer's inputs.
    """
    quantized = copy.deepcopy(programs).eval()
    linears = named_linears(quantized)
    schemes = dict.fromkeys(linears, scheme) if isinstance(scheme, str) else scheme
    for name in {scheme} if isinstance(scheme, str) else sorted(set(schemes.values())):
        check_known(name, LINEAR_ARITHMETIC, "no scheme", "quantize.scheme")
    check_known(embeddings, WORD_TABLE_ARITHMETIC, "no scheme for embeddings", "quantize.embeddings")
    for name, arithmetic in LINEAR_ARITHMETIC.items():
        chosen = {matrix: linear for matrix, linear in linears.items() if schemes.get(matrix) == name}
        for matrix, linear in chosen.items():
            check_groups(matrix, linear.in_features, name, "quantize.scheme")
        quantize_linears(arithmetic, quantized, list(chosen.values()))
        if arithmetic.from_steps is not None and rounded is not None:
            steps = named_linears(rounded)
            for matrix, linear in chosen.items():
                weight = arithmetic.from_steps(steps[matrix].weight.detach())
                linear.weight = nn.Parameter(weight, requires_grad=False)
    tables = quantized.embed.embeddings
    check_groups(WORD_TABLE_MATRIX, tables.word.embedding_dim, embeddings, "quantize.embeddings")
    replacement = WORD_TABLE_ARITHMETIC[embeddings]
    if replacement is not None:
        tables.register_module("word", replacement(tables.word.weight.detach()))
    if word_table(embeddings).float16_positions:
        tables.position.half()
    return quantized.requires_grad_(False)


def apply_schemes(programs: Programs, schemes: Mapping[str, str], rounded: Programs | None = None) -> Programs:
    """Applies a scheme per matrix, including the word table, `WORD_TABLE_MATRIX`; see `apply_scheme`.

    Matrices that are not named stay float32.
    """
    linears = {matrix: scheme for matrix, scheme in schemes.items() if matrix != WORD_TABLE_MATRIX}
    return apply_scheme(programs, linears, schemes.get(WORD_TABLE_MATRIX, UNQUANTIZED), rounded)


def quantize_programs(
    programs: Programs,
    scheme: str,
    embeddings: str,
    matrix_schemes: Mapping[str, str],
    rounded: Programs | None = None,
) -> Programs:
    """Returns a quantized copy of the programs, as a manifest or a recipe describes it.

    Args:
        scheme, embeddings: as of `apply_scheme`; not read where there are `matrix_schemes`.
        matrix_schemes: the scheme of every matrix in a mix, the word table among them; empty for all others.
        rounded: as of `apply_scheme`.
    """
    if matrix_schemes:
        return apply_schemes(programs, matrix_schemes, rounded)
    return apply_scheme(programs, scheme, embeddings, rounded)


def check_known(name: str, arithmetic: Collection[str], what: str, field: str) -> None:
    """Raises UserError unless there is arithmetic for a scheme."""
    if name not in arithmetic:
        raise UserError(f"{name!r} is {what}; take one of {', '.join(arithmetic)}", field=field)


def check_groups(matrix: str, width: int, scheme: str, field: str) -> None:
    """Raises UserError unless a matrix of so many inputs divides into a scheme's groups."""
    group = SCHEMES[scheme].group
    if width % group:
        raise UserError(
            f"{scheme} has groups of {group}, and {matrix} is {width} wide, no multiple of it; take {DEFAULT_SCHEME}",
            field=field,
        )


def quantize_linears(arithmetic: LinearArithmetic, programs: Programs, linears: list[nn.Linear]) -> None:
    """Quantizes some linear layers of the programs, in place."""
    modules: list[nn.Module] = list(linears)
    if arithmetic.replacement is not None:
        replacements = {id(linear): arithmetic.replacement(linear) for linear in linears}
        for parent in list(programs.modules()):
            for name, module in list(parent.named_children()):
                if id(module) in replacements:
                    setattr(parent, name, replacements[id(module)])
        modules = list(replacements.values())
    if arithmetic.torchao_config is not None and modules:
        chosen = {id(part) for module in modules for part in module.modules() if isinstance(part, nn.Linear)}
        quantize_ = import_quietly("torchao.quantization").quantize_
        with quiet_logging():
            quantize_(programs, arithmetic.torchao_config(), filter_fn=lambda module, name: id(module) in chosen)


def named_linears(programs: Programs) -> dict[str, nn.Linear]:
    """Returns the linear layers that schemes apply to, by name.

    The names are `layers.0.qkv`, `layers.0.attention_out`, ... for the encoder and `exits.0.value`, ... for the
    heads' large layers. Layers are counted through all segments; an exit has its segment's number.
    """
    named: dict[str, nn.Module] = {}
    segments = [cast(SegmentProgram, segment) for segment in programs.segments]  # a ModuleList forgets the type
    layers = [layer for segment in segments for layer in segment.layers]
    for index, layer in enumerate(layers):
        named.update((f"layers.{index}.{name}", module) for name, module in layer.named_modules())
    for index, segment in enumerate(segments):
        named.update((f"exits.{index}.{name}", module) for name, module in segment.head.named_modules())
    return {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.Linear) and (name.startswith("layers.") or module.weight.numel() >= MIN_HEAD_WEIGHTS)
    }
