"""The schemes of Core ML programs: how their weights are stored, and what Core ML makes of them when it computes.

A weight is compressed here, once, whatever lengths a program has; `pipeline.export.coreml` writes the result into the programs, and
`pipeline.export.fingerprints` holds the programs against PyTorch with the same weights decompressed. All arithmetic is float16's, as a
package's is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantize.int4 import GROUP, scales_of, steps_of, stored

TARGETS = ("iOS16", "iOS17", "iOS18")  # oldest first

# Weights of so many values or fewer stay float16: biases, norms and the last layers of heads, which are under 0.1 % of a model. The same
# number is coremltools' `weight_threshold`.
SMALLEST = 2048
PALETTE_OUTPUTS = 16  # at most so many outputs share a palette
FEWEST_IN_GROUP = 4  # of fewer, the palettes would take up what they save; then all outputs share one

LLOYD_STEPS = 30
QUANTILES = 512  # whose distances say where it starts
TINY = torch.finfo(torch.float16).tiny


@dataclass(frozen=True)
class Affine:
    """Integers times scales.

    Attributes:
        data: int8, the weight's shape, in the range of `bits`.
        scale: float16, as many dimensions; each of its numbers is for a block of the weight's values.
    """

    data: np.ndarray
    scale: np.ndarray
    bits: int

    @property
    def bytes(self) -> int:
        return bytes_of(self.data.size, self.bits) + self.scale.nbytes

    def dense(self) -> np.ndarray:
        """The weight as Core ML computes with it, in float32."""
        scale = self.scale
        for axis, (size, scales) in enumerate(zip(self.data.shape, scale.shape)):
            scale = np.repeat(scale, size // scales, axis)
        return (self.data.astype(np.float16) * scale).astype(np.float32)


@dataclass(frozen=True)
class Palette:
    """Indices into tables of a few values.

    Attributes:
        indices: uint8, the weight's shape.
        table: float16 [groups, 2 ** bits], ascending; each row is for as many of the weight's outputs (its first dimension).
    """

    indices: np.ndarray
    table: np.ndarray
    bits: int

    @property
    def bytes(self) -> int:
        return bytes_of(self.indices.size, self.bits) + self.table.nbytes

    def dense(self) -> np.ndarray:
        """The weight as Core ML computes with it, in float32."""
        groups = self.table.shape[0]
        rows = self.indices.reshape(groups, -1).astype(np.int64)
        return np.take_along_axis(self.table.astype(np.float32), rows, axis=1).reshape(self.indices.shape)


Compressed = Affine | Palette


@dataclass(frozen=True)
class CoreMLScheme:
    """How a program's matrices are stored.

    Args:
        summary: one line for people.
        target: the oldest system that runs it, a name in `TARGETS`.
        stored: bytes that a matrix [outputs, inputs, ...] of that shape takes in a package.
        compress: makes the stored form of a matrix in float32; None leaves it float16.
        int8_inputs: whether the layers' matrices have int8 inputs, see `quantize.int8_inputs`.
        by_matrix: whether matrices have schemes of their own, see `OF_MATRIX`; this one is then that of all others.
    """

    summary: str
    target: str
    stored: Callable[[tuple[int, ...]], int]
    compress: Callable[[Tensor], Compressed] | None = None
    int8_inputs: bool = False
    by_matrix: bool = False


def bytes_of(values: int, bits: int) -> int:
    """What so many packed integers take."""
    return -(-values * bits // 8)


def int8_rows(weight: Tensor) -> Affine:
    """int8 from -127 to 127 with a scale for each output (a row of an embedding table)."""
    peak = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1))
    scale = stored(peak / 127, torch.float16)
    data = torch.round(weight / scale.float()).clamp_(-127, 127).to(torch.int8)
    return Affine(data.numpy(), scale.numpy(), 8)


def int4_blocks(weight: Tensor) -> Affine:
    """Integers from -7 to 7 with a scale for every `GROUP` inputs of an output; int8 where the inputs are no multiple of that."""
    outputs, inputs, *kernel = weight.shape
    if inputs % GROUP:
        return int8_rows(weight)
    groups = weight.reshape(outputs, inputs // GROUP, -1)  # [outputs, groups, GROUP * kernel]
    scale = scales_of(groups, torch.float16)
    data = steps_of(groups, scale).to(torch.int8).reshape(weight.shape)
    return Affine(data.numpy(), scale.reshape(outputs, inputs // GROUP, *[1] * len(kernel)).numpy(), 4)


def palette(weight: Tensor, bits: int, groups: int) -> Palette:
    """k-means over the values that share a table.

    Lloyd's algorithm in one dimension, for all groups at once: of sorted values, a cluster is a stretch, and cumulative sums give its mean.
    It is deterministic.
    """
    rows, size = weight.reshape(groups, -1).float(), 1 << bits  # [groups, values]
    values, order = rows.sort(dim=1)
    sums = torch.nn.functional.pad(values.double().cumsum(dim=1), (1, 0))
    centres = first_centres(values, size)
    for _ in range(LLOYD_STEPS):
        edges = edges_of(values, centres)
        counts = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres).sort(dim=1).values
    table = centres.to(torch.float16)
    stretches = edges_of(values, table.double()).diff(dim=1)  # values are given to the table as it is stored
    clusters = (
        torch.arange(size, dtype=torch.uint8).repeat(groups).repeat_interleave(stretches.flatten()).view(groups, -1)
    )
    indices = torch.empty_like(clusters).scatter_(1, order, clusters)
    return Palette(indices.reshape(weight.shape).numpy(), table.numpy(), bits)


def first_centres(values: Tensor, size: int) -> Tensor:
    """[groups, size] centres near the best: as dense as the cube root of the values' density (Panter and Dite 1951).

    Between neighbouring quantiles, d apart, the density is as 1 / d, so that they get centres as d * (1 / d) ** (1 / 3).

    Args:
        values: [groups, values], sorted.
    """
    at = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], QUANTILES)).long()
    quantiles = values[:, at].double()
    share = torch.nn.functional.pad((quantiles.diff(dim=1).pow(2 / 3) + TINY**2).cumsum(dim=1), (1, 0))
    wanted = share[:, -1:] * ((torch.arange(size) + 0.5) / size)
    before = (torch.searchsorted(share, wanted) - 1).clamp(min=0)
    low, high = share.gather(1, before), share.gather(1, before + 1)
    return torch.lerp(quantiles.gather(1, before), quantiles.gather(1, before + 1), (wanted - low) / (high - low))


def edges_of(values: Tensor, centres: Tensor) -> Tensor:
    """Where each cluster begins in the sorted values, and where the last ends: [groups, clusters + 1]."""
    middles = (centres[:, 1:] + centres[:, :-1]) / 2
    edges = torch.searchsorted(values, middles.float().contiguous())
    return torch.nn.functional.pad(torch.nn.functional.pad(edges, (1, 0)), (0, 1), value=values.shape[1])


def groups_of(outputs: int) -> int:
    """How many palettes a matrix of so many outputs has: one for every `PALETTE_OUTPUTS` of them, or for fewer where those divide it."""
    sizes = [size for size in range(FEWEST_IN_GROUP, PALETTE_OUTPUTS + 1) if outputs % size == 0]
    return outputs // max(sizes, default=outputs)


def int8_bytes(shape: tuple[int, ...]) -> int:
    return values_of(shape) + 2 * shape[0]


def int4_bytes(shape: tuple[int, ...]) -> int:
    if shape[1] % GROUP:
        return int8_bytes(shape)
    return bytes_of(values_of(shape), 4) + 2 * shape[0] * (shape[1] // GROUP)


def palettized(summary: str, bits: int, per_tensor: bool = False) -> CoreMLScheme:
    """A scheme with palettes of 2 ** bits values."""

    def groups(shape: tuple[int, ...]) -> int:
        return 1 if per_tensor else groups_of(shape[0])

    return CoreMLScheme(
        summary,
        "iOS16" if per_tensor else "iOS18",
        lambda shape: bytes_of(values_of(shape), bits) + 2 * groups(shape) * (1 << bits),
        lambda weight: palette(weight, bits, groups(tuple(weight.shape))),
    )


COREML_SCHEMES: dict[str, CoreMLScheme] = {
    "fp16": CoreMLScheme("weights in float16", "iOS16", lambda shape: 2 * values_of(shape)),
    "int8": CoreMLScheme("int8 weights with a scale per output channel", "iOS16", int8_bytes, int8_rows),
    "int8-a8": CoreMLScheme(
        "int8 weights, and int8 inputs of the layers' matrices", "iOS17", int8_bytes, int8_rows, int8_inputs=True
    ),
    "int4": CoreMLScheme(f"int4 weights with a scale per block of {GROUP} inputs", "iOS18", int4_bytes, int4_blocks),
    "palette4": palettized(f"16 values for at most {PALETTE_OUTPUTS} output channels, by k-means", 4),
    "palette6": palettized(f"64 values for at most {PALETTE_OUTPUTS} output channels, by k-means", 6),
    "palette4-per-tensor": palettized("16 values for a matrix, by k-means", 4, per_tensor=True),
    "palette6-per-tensor": palettized("64 values for a matrix, by k-means", 6, per_tensor=True),
    "mixed": CoreMLScheme(
        "each matrix as the mix of `quantize.mixed` has it", "iOS18", lambda shape: 2 * values_of(shape), by_matrix=True
    ),
}
# What a matrix has here that `quantize.schemes` has for ExecuTorch, of those that a mix may hold: as many bits; a package has no float32.
OF_MATRIX = {"fp32": "fp16", "fp16": "fp16", "int8": "int8", "int4": "int4"}


def values_of(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def is_compressed(shape: tuple[int, ...]) -> bool:
    """Whether a weight of that shape is stored in a scheme's way: a matrix, or a convolution's, of more than `SMALLEST` values."""
    return len(shape) >= 2 and shape[0] > 1 and values_of(shape) > SMALLEST


@torch.no_grad()
def compress(weight: Tensor, scheme: str) -> Compressed | np.ndarray:
    """The form in which a program of a scheme has a weight: compressed, or an array in float16 ("fp32", for tests, in float32).

    Args:
        weight: float32, any shape.
        scheme: a name in `COREML_SCHEMES`, or "fp32".
    """
    if scheme == "fp32":
        return weight.numpy()
    half = weight.to(torch.float16)
    with_scheme = COREML_SCHEMES[scheme].compress
    if with_scheme is None or not is_compressed(tuple(weight.shape)):
        return half.numpy()
    return with_scheme(half.float())


def decompressed(value: Compressed | np.ndarray) -> np.ndarray:
    """What Core ML computes with, in float32."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value.dense()


def stored_bytes(shape: tuple[int, ...], scheme: str) -> int:
    """What a weight of that shape takes in a package of a scheme, alignment aside."""
    if scheme == "fp32":
        return 4 * values_of(shape)
    return COREML_SCHEMES[scheme].stored(shape) if is_compressed(shape) else 2 * values_of(shape)
