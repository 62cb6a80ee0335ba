"""The schemes of Core ML programs: how their weights are stored, and what Core ML makes of them when it computes.

A weight is compressed here, once, whatever lengths a program has; `pipeline.export.coreml` writes the result into the programs, and
`pipeline.export.fingerprints` holds the programs against PyTorch with the same weights decompressed. All arithmetic is float16's, as a
package's is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.schemes import INT4_GROUP, coreml_weights, packed_bytes, palette_count
from quantize.int4 import scales_of, steps_of, stored

# Weights of so many values or fewer stay float16: biases, norms and the last layers of heads, which are under 0.1 % of a model. The same
# number is coremltools' `weight_threshold`.
SMALLEST = 2048

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
        return packed_bytes(self.data.size, self.bits) + self.scale.nbytes

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
        return packed_bytes(self.indices.size, self.bits) + self.table.nbytes

    def dense(self) -> np.ndarray:
        """The weight as Core ML computes with it, in float32."""
        groups = self.table.shape[0]
        rows = self.indices.reshape(groups, -1).astype(np.int64)
        return np.take_along_axis(self.table.astype(np.float32), rows, axis=1).reshape(self.indices.shape)


Compressed = Affine | Palette


def int8_rows(weight: Tensor) -> Affine:
    """int8 from -127 to 127 with a scale for each output (a row of an embedding table)."""
    peak = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1))
    scale = stored(peak / 127, torch.float16)
    data = torch.round(weight / scale.float()).clamp_(-127, 127).to(torch.int8)
    return Affine(data.numpy(), scale.numpy(), 8)


def int4_blocks(weight: Tensor) -> Affine:
    """Integers from -7 to 7 with a scale for every `INT4_GROUP` inputs of an output; int8 where the inputs are no multiple of that."""
    outputs, inputs, *kernel = weight.shape
    if inputs % INT4_GROUP:
        return int8_rows(weight)
    groups = weight.reshape(outputs, inputs // INT4_GROUP, -1)  # [outputs, groups, INT4_GROUP * kernel]
    scale = scales_of(groups, torch.float16)
    data = steps_of(groups, scale).to(torch.int8).reshape(weight.shape)
    return Affine(data.numpy(), scale.reshape(outputs, inputs // INT4_GROUP, *[1] * len(kernel)).numpy(), 4)


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


def palette_of(bits: int, per_tensor: bool = False) -> Callable[[Tensor], Palette]:
    """Returns the function that makes a weight's `Palette` with tables of 2 ** bits values."""
    return lambda weight: palette(weight, bits, 1 if per_tensor else palette_count(weight.shape[0]))


# Makes the stored form of a float32 matrix; None leaves it a float. A mix names the scheme of each matrix that it compresses.
COREML_ARITHMETIC: dict[str, Callable[[Tensor], Compressed] | None] = {
    "fp32": None,
    "fp16": None,
    "int8": int8_rows,
    "int8-a8": int8_rows,
    "int4": int4_blocks,
    "palette4": palette_of(4),
    "palette6": palette_of(6),
    "palette4-per-tensor": palette_of(4, per_tensor=True),
    "palette6-per-tensor": palette_of(6, per_tensor=True),
    "mixed": None,
}


def is_compressed(shape: tuple[int, ...]) -> bool:
    """Whether a weight of that shape is stored in a scheme's way: a matrix, or a convolution's, of more than `SMALLEST` values."""
    return len(shape) >= 2 and shape[0] > 1 and math.prod(shape) > SMALLEST


@torch.no_grad()
def compress(weight: Tensor, scheme: str) -> Compressed | np.ndarray:
    """Returns a weight as a program of a scheme stores it: compressed, or an array in the scheme's float type.

    Args:
        weight: float32, any shape.
        scheme: a name in `COREML_ARITHMETIC`.
    """
    if coreml_weights(scheme).float_bytes == 4:
        return weight.numpy()
    half = weight.to(torch.float16)
    compress_matrix = COREML_ARITHMETIC[scheme]
    if compress_matrix is None or not is_compressed(tuple(weight.shape)):
        return half.numpy()
    return compress_matrix(half.float())


def decompressed(value: Compressed | np.ndarray) -> np.ndarray:
    """What Core ML computes with, in float32."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value.dense()


def stored_bytes(shape: tuple[int, ...], scheme: str) -> int:
    """Returns the bytes of a weight in a package of a scheme, without alignment."""
    weights = coreml_weights(scheme)
    return weights.stored_bytes(shape) if is_compressed(shape) else weights.float_bytes * math.prod(shape)
