"""The catalogue of quantization schemes: one entry per scheme, with everything about it that is not arithmetic.

An entry says which targets a scheme has, how many bytes a weight takes there, and what its programs must reach in
`verify`. The recipe, the quantizer, the exporters, `verify`, `bench` and `size` read it. The arithmetic is in
`quantize/`, keyed by the scheme's name. To add a scheme, add its entry here and its arithmetic there; no other file
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

INT4_GROUP = 32  # neighbouring inputs of an output that share an int4 scale
INT8_TERM_ENDS = 2  # inputs that `int8-a16` adds to a layer, to fix the range of its int8 terms
PALETTE_OUTPUTS = 16  # at most this many outputs share a palette
MIN_PALETTE_OUTPUTS = 4  # with fewer outputs per palette, the palettes would take the bytes that they save

AppleSystem = Literal["iOS16", "iOS17", "iOS18"]
APPLE_SYSTEMS: tuple[AppleSystem, ...] = ("iOS16", "iOS17", "iOS18")  # oldest first

UNQUANTIZED = "fp32"  # the scheme of a matrix that is given no other
DEFAULT_SCHEME = "int8"  # of a recipe that names none; it fits every width and runs on every system
DELEGATE_SCHEME = "fp16"  # the weights of programs that ExecuTorch hands to Core ML
WORD_TABLE_MATRIX = "embeddings.word"  # the word table's name among the matrices of a mix


@dataclass(frozen=True)
class LinearLayers:
    """How an ExecuTorch program stores and computes linear layers.

    Attributes:
        stored_bytes: bytes of a weight with so many outputs and inputs, including scales, without the bias.
        snr_floor_db: least decibels of the quantized model's logits over the program's difference from them.
        activation_bits: integer bits that inputs are rounded to at run time; None for floats.
    """

    stored_bytes: Callable[[int, int], int]
    snr_floor_db: float
    activation_bits: int | None = None


@dataclass(frozen=True)
class WordTable:
    """How an ExecuTorch program stores the table of word embeddings.

    Attributes:
        stored_bytes: bytes of a table with so many rows of so many values, including scales.
        float16_positions: whether the table of position embeddings becomes float16.
    """

    stored_bytes: Callable[[int, int], int]
    float16_positions: bool = True


@dataclass(frozen=True)
class CoreMLFloors:
    """What Core ML programs must reach in `pipeline.verify.coreml_parity`.

    Attributes:
        logits_db, same_answer, uncertainty: against the conformance vectors, of the model quantized for ExecuTorch.
        module_db: against the program's own module in PyTorch, by the precision that the program is evaluated in.
        module_uncertainty: the same, 1 - the greatest difference of the uncertainty.
    """

    logits_db: float
    same_answer: float
    uncertainty: float
    module_db: Mapping[Literal["float32", "float16"], float]
    module_uncertainty: float


# A device computes in float16, the reference in float32 from the same stored weights. The floors of fp16's modules
# hold here too.
FLOAT16_DEVICE_FLOOR_DB = 45.0
# Float16 and the order of sums decide to which step an int8 activation is rounded: as much noise as the rounding
# itself makes.
INT8_DEVICE_FLOOR_DB = 8.0

# int8, measured with MiniLM's six layers, least over segments and buckets. Against the vectors: exits trained on
# SST-2 26 dB, 0.984 and every label the same; random heads, whose logits are nearly equal, 23 dB. Against the
# modules: 32 dB (embed) and 33 dB with trained exits, 24.8 dB with random ones; simulated float16 takes less than
# 0.3 dB of that.
INT8_FLOORS = CoreMLFloors(15.0, 0.85, 0.95, {"float32": 20.0, "float16": 20.0}, 0.95)
FP32_FLOORS = replace(INT8_FLOORS, module_db={"float32": 100.0}, module_uncertainty=0.9999)
FP16_FLOORS = replace(
    INT8_FLOORS, module_db={"float32": 60.0, "float16": FLOAT16_DEVICE_FLOOR_DB}, module_uncertainty=0.99
)
# Signal to noise of normally distributed weights: 41 dB with eight bits, 32 dB with six, 20 dB with four. MiniLM's
# last hidden states after six layers: int8 30 dB, four bits 11 dB. Exits trained on SST-2, int4: 17.3 dB, every
# label the same and 0.92 against the vectors; 11.4 dB and 0.763, the worst of random words, against the modules.
SIX_BIT_FLOORS = CoreMLFloors(8.0, 0.8, 0.9, {"float32": 14.0, "float16": 14.0}, 0.9)
FOUR_BIT_FLOORS = CoreMLFloors(0.0, 0.7, 0.8, {"float32": 5.0, "float16": 5.0}, 0.6)
# int8 inputs cost more than int8 weights: MiniLM's last hidden states with int8 weights alone 30 dB, with both 22 dB.
INT8_INPUT_FLOORS = CoreMLFloors(8.0, 0.8, 0.9, {"float32": 8.0, "float16": INT8_DEVICE_FLOOR_DB}, 0.8)


@dataclass(frozen=True)
class CoreMLWeights:
    """How a Core ML program stores its matrices. All other weights are floats.

    Attributes:
        stored_bytes: bytes of a matrix [outputs, inputs, ...] of a shape, including scales or palettes.
        floors: what the programs must reach.
        minimum_system: the oldest system that runs them.
        int8_inputs: whether the inputs of the layers' matrices are int8 too (`quantize.int8_inputs`).
        alternative: what to take instead on an older system.
        float_bytes: bytes of a value that stays a float.
        offered: whether a recipe may choose it; float32 programs are for tests.
    """

    stored_bytes: Callable[[tuple[int, ...]], int]
    floors: CoreMLFloors
    minimum_system: AppleSystem = "iOS16"
    int8_inputs: bool = False
    alternative: str = DEFAULT_SCHEME
    float_bytes: int = 2
    offered: bool = True

    def runs_on(self, system: AppleSystem) -> bool:
        """Returns whether a system runs programs with these weights."""
        return APPLE_SYSTEMS.index(system) >= APPLE_SYSTEMS.index(self.minimum_system)


@dataclass(frozen=True)
class Scheme:
    """One way to store and compute the matrices of a model.

    Attributes:
        name: what recipes, manifests and reports call it.
        summary: one line for people.
        weight_bits: bits of a stored weight, without scales; None where they differ by matrix.
        group: neighbouring inputs that share a scale; ExecuTorch's matrices must be a multiple of it wide.
        by_matrix: whether every matrix has a scheme of its own, found by `quantize.mixed`.
        rounded_by_texts: whether its weights, or some in a mix, can be rounded on training texts (`quantize.rounding`).
        mix_choice: whether a mix may give it to a matrix.
        coreml_counterpart: the Core ML scheme whose weights have as many bits; a mix has it in Core ML programs.
        linear, word_table, coreml: the targets; None where the scheme does not have one.
    """

    name: str
    summary: str
    weight_bits: int | None
    group: int = 1
    by_matrix: bool = False
    rounded_by_texts: bool = False
    mix_choice: bool = False
    coreml_counterpart: str | None = None
    linear: LinearLayers | None = None
    word_table: WordTable | None = None
    coreml: CoreMLWeights | None = None


def packed_bytes(values: int, bits: int) -> int:
    """Returns the bytes of packed integers of so many bits."""
    return -(-values * bits // 8)


def float32_bytes(outputs: int, inputs: int) -> int:
    return 4 * outputs * inputs


def float16_bytes(outputs: int, inputs: int) -> int:
    return 2 * outputs * inputs


def int8_bytes(outputs: int, inputs: int) -> int:
    """A float32 scale per output."""
    return outputs * (inputs + 4)


def int8_two_term_bytes(outputs: int, inputs: int) -> int:
    return int8_bytes(outputs, inputs + INT8_TERM_ENDS)


def int4_bytes(outputs: int, inputs: int) -> int:
    """A 16-bit scale per group."""
    return outputs * (inputs // 2 + 2 * (inputs // INT4_GROUP))


def coreml_float32_bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def coreml_float16_bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def coreml_int8_bytes(shape: tuple[int, ...]) -> int:
    """A float16 scale per output."""
    return math.prod(shape) + 2 * shape[0]


def coreml_int4_bytes(shape: tuple[int, ...]) -> int:
    """A float16 scale per group; int8 where the inputs are not a multiple of it."""
    if shape[1] % INT4_GROUP:
        return coreml_int8_bytes(shape)
    return packed_bytes(math.prod(shape), 4) + 2 * shape[0] * (shape[1] // INT4_GROUP)


def palette_count(outputs: int) -> int:
    """Returns how many palettes a matrix has.

    `PALETTE_OUTPUTS` outputs share one, or the most below that which divide all outputs into equal parts. If fewer than
    `MIN_PALETTE_OUTPUTS` would share one, all outputs do.
    """
    sizes = [size for size in range(MIN_PALETTE_OUTPUTS, PALETTE_OUTPUTS + 1) if outputs % size == 0]
    return outputs // max(sizes, default=outputs)


def palette_scheme(bits: int, floors: CoreMLFloors, per_tensor: bool = False) -> Scheme:
    """Returns the entry of a scheme whose matrices are indices into tables of `2 ** bits` float16 values."""

    def stored_bytes(shape: tuple[int, ...]) -> int:
        palettes = 1 if per_tensor else palette_count(shape[0])
        return packed_bytes(math.prod(shape), bits) + 2 * palettes * (1 << bits)

    sharing = "the whole matrix" if per_tensor else f"at most {PALETTE_OUTPUTS} outputs"
    name = f"palette{bits}"
    return Scheme(
        f"{name}-per-tensor" if per_tensor else name,
        f"{1 << bits} values for {sharing}, found by k-means",
        weight_bits=bits,
        coreml=CoreMLWeights(
            stored_bytes,
            floors,
            minimum_system="iOS16" if per_tensor else "iOS18",
            alternative=DEFAULT_SCHEME if per_tensor else f"{name}-per-tensor",
        ),
    )


# Floors of ExecuTorch programs. The program and the quantized model in PyTorch compute the same arithmetic in
# another order. Measured on MiniLM, 60 texts, after layers 1 to 6: float32 120 to 118 dB, int8 56, 42, 37, 33, 33,
# 32. Segments in the wrong order give less than 0. Schemes with float inputs have nothing that rounds to another
# step; float16 rounds finely.
FLOAT_SNR_FLOOR_DB = 60.0
FLOAT16_SNR_FLOOR_DB = 40.0
INT8_SNR_FLOOR_DB = 25.0
# An input of int8-a16 is off by 1/255 of an int8 step, so a difference in its last bit stays small. Measured on SQuAD,
# all exits: 73 to 84 dB, where int8 had 32 to 56, and the same answer to 500 of 500 questions: no floor of its own.
TWO_TERM_SNR_FLOOR_DB = 60.0


def int8_input_layers(stored_bytes: Callable[[int, int], int]) -> LinearLayers:
    """Returns linear layers whose inputs are rounded to int8 at run time, with a scale per token."""
    return LinearLayers(stored_bytes, INT8_SNR_FLOOR_DB, activation_bits=8)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            UNQUANTIZED,
            "float32",
            weight_bits=32,
            coreml_counterpart="fp16",
            linear=LinearLayers(float32_bytes, FLOAT_SNR_FLOOR_DB),
            word_table=WordTable(float32_bytes, float16_positions=False),
            coreml=CoreMLWeights(coreml_float32_bytes, FP32_FLOORS, float_bytes=4, offered=False),
        ),
        Scheme(
            "fp16",
            "float16 weights and products",
            weight_bits=16,
            coreml_counterpart="fp16",
            linear=LinearLayers(float16_bytes, FLOAT16_SNR_FLOOR_DB),
            word_table=WordTable(float16_bytes),
            coreml=CoreMLWeights(coreml_float16_bytes, FP16_FLOORS),
        ),
        Scheme(
            "int8-weight-only",
            "int8 weights with a scale per output, computed in float32",
            weight_bits=8,
            coreml_counterpart="int8",
            linear=LinearLayers(int8_bytes, FLOAT_SNR_FLOOR_DB),
        ),
        Scheme(
            "int8",
            "int8 weights with a scale per output, and in ExecuTorch int8 inputs",
            weight_bits=8,
            mix_choice=True,
            coreml_counterpart="int8",
            linear=int8_input_layers(int8_bytes),
            word_table=WordTable(int8_bytes),
            coreml=CoreMLWeights(coreml_int8_bytes, INT8_FLOORS),
        ),
        # Not a choice of a mix: it takes time and saves no bytes, and a mix has no budget of time.
        Scheme(
            "int8-a16",
            "int8 weights with a scale per output, inputs of 16 bits as two int8 terms, up to twice as slow",
            weight_bits=8,
            coreml_counterpart="int8",
            linear=LinearLayers(int8_two_term_bytes, TWO_TERM_SNR_FLOOR_DB, activation_bits=16),
        ),
        Scheme(
            "int8-a8",
            "int8 weights with a scale per output, and int8 inputs of the layers' matrices",
            weight_bits=8,
            coreml=CoreMLWeights(coreml_int8_bytes, INT8_INPUT_FLOORS, minimum_system="iOS17", int8_inputs=True),
        ),
        Scheme(
            "int4",
            f"int4 weights with a scale per {INT4_GROUP} inputs, and in ExecuTorch int8 inputs",
            weight_bits=4,
            group=INT4_GROUP,
            rounded_by_texts=True,
            mix_choice=True,
            coreml_counterpart="int4",
            linear=int8_input_layers(int4_bytes),
            word_table=WordTable(int4_bytes),
            coreml=CoreMLWeights(coreml_int4_bytes, FOUR_BIT_FLOORS, minimum_system="iOS18"),
        ),
        palette_scheme(4, FOUR_BIT_FLOORS),
        palette_scheme(6, SIX_BIT_FLOORS),
        palette_scheme(4, FOUR_BIT_FLOORS, per_tensor=True),
        palette_scheme(6, SIX_BIT_FLOORS, per_tensor=True),
        # Its bytes are those of a matrix that the mix does not name. Its floors hold for any mix.
        Scheme(
            "mixed",
            "each matrix in the scheme that a budget of bytes or accuracy leaves it",
            weight_bits=None,
            by_matrix=True,
            rounded_by_texts=True,
            linear=int8_input_layers(float32_bytes),
            word_table=WordTable(float32_bytes),
            coreml=CoreMLWeights(coreml_float16_bytes, FOUR_BIT_FLOORS, minimum_system="iOS18"),
        ),
    )
}

LINEAR_SCHEMES = tuple(name for name, scheme in SCHEMES.items() if scheme.linear)
WORD_TABLE_SCHEMES = tuple(name for name, scheme in SCHEMES.items() if scheme.word_table)
COREML_SCHEMES = tuple(name for name, scheme in SCHEMES.items() if scheme.coreml and scheme.coreml.offered)
MIX_CHOICES = tuple(name for name, scheme in SCHEMES.items() if scheme.mix_choice)  # beside `UNQUANTIZED`


def summaries(names: Iterable[str]) -> str:
    """Returns one line that says what each of some schemes is."""
    return "; ".join(f"{name}: {SCHEMES[name].summary}" for name in names)


class UnknownSchemeError(ValueError):
    """The catalogue does not have a name for the target asked for. The message lists the names that it has."""

    def __init__(self, name: str, target: str, known: Iterable[str]):
        self.known = tuple(known)
        super().__init__(f"{name!r} is no scheme{target}; take one of {', '.join(self.known)}")


def linear_layers(name: str) -> LinearLayers:
    """Returns what a scheme does to ExecuTorch's linear layers. Raises UnknownSchemeError where there is none."""
    scheme = SCHEMES.get(name)
    if scheme is None or scheme.linear is None:
        raise UnknownSchemeError(name, "", LINEAR_SCHEMES)
    return scheme.linear


def word_table(name: str) -> WordTable:
    """Returns what a scheme does to ExecuTorch's word table. Raises UnknownSchemeError where there is none."""
    scheme = SCHEMES.get(name)
    if scheme is None or scheme.word_table is None:
        raise UnknownSchemeError(name, " for embeddings", WORD_TABLE_SCHEMES)
    return scheme.word_table


def coreml_weights(name: str) -> CoreMLWeights:
    """Returns what a scheme does to the weights of Core ML programs. Raises UnknownSchemeError where there is none."""
    scheme = SCHEMES.get(name)
    if scheme is None or scheme.coreml is None:
        raise UnknownSchemeError(name, " for Core ML", (name for name, scheme in SCHEMES.items() if scheme.coreml))
    return scheme.coreml


def coreml_counterpart(name: str) -> str:
    """Returns the Core ML scheme that has a scheme's bits. Raises UnknownSchemeError where there is none."""
    scheme = SCHEMES.get(name)
    if scheme is None or scheme.coreml_counterpart is None:
        known = (name for name, scheme in SCHEMES.items() if scheme.coreml_counterpart)
        raise UnknownSchemeError(name, " that Core ML can follow", known)
    return scheme.coreml_counterpart
