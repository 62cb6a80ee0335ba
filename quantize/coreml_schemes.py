"""The arithmetic of Core ML's schemes: how a weight is stored, and what Core ML makes of it when it computes.

A weight is compressed once, whatever lengths a program has. `pipeline.export.coreml` writes the result into the
programs, and `pipeline.export.fingerprints` compares the programs with PyTorch, with the same weights decompressed.
All arithmetic is in float16, as in a package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.schemes import INT4_GROUP, coreml_weights, packed_bytes, palette_count
from quantize.int4 import best_scales, nearest_steps, stored_scale

# Weights with at most this many values stay floats: biases, norms and the last layers of heads, under 0.1 % of a
# model. It is coremltools' `weight_threshold` too.
MAX_FLOAT_VALUES = 2048

LLOYD_ITERATIONS = 30
QUANTILES = 512  # the values whose distances give the first centres
TINY = torch.finfo(torch.float16).tiny


@dataclass(frozen=True)
class Affine:
    """A weight as integers times scales.

    Attributes:
        data: int8, the weight's shape, in the range of `bits`.
        scale: float16, as many dimensions; each number belongs to a block of the weight's values.
    """

    data: np.ndarray
    scale: np.ndarray
    bits: int

    @property
    def bytes(self) -> int:
        return packed_bytes(self.data.size, self.bits) + self.scale.nbytes

    def dense(self) -> np.ndarray:
        """Returns the weight that Core ML computes with, in float32."""
        scale = self.scale
        for axis, (size, scales) in enumerate(zip(self.data.shape, scale.shape)):
            scale = np.repeat(scale, size // scales, axis)
        return (self.data.astype(np.float16) * scale).astype(np.float32)


@dataclass(frozen=True)
class Palette:
    """A weight as indices into tables of a few values.

    Attributes:
        indices: uint8, the weight's shape.
        table: float16 [groups, 2 ** bits], ascending; every row belongs to equally many outputs (the weight's first
            dimension).
    """

    indices: np.ndarray
    table: np.ndarray
    bits: int

    @property
    def bytes(self) -> int:
        return packed_bytes(self.indices.size, self.bits) + self.table.nbytes

    def dense(self) -> np.ndarray:
        """Returns the weight that Core ML computes with, in float32."""
        groups = self.table.shape[0]
        rows = self.indices.reshape(groups, -1).astype(np.int64)
        return np.take_along_axis(self.table.astype(np.float32), rows, axis=1).reshape(self.indices.shape)


Compressed = Affine | Palette


def int8_rows(weight: Tensor) -> Affine:
    """Rounds a weight to int8, from -127 to 127, with a scale per output (a row of an embedding table)."""
    peak = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1))
    scale = stored_scale(peak / 127, torch.float16)
    data = torch.round(weight / scale.float()).clamp_(-127, 127).to(torch.int8)
    return Affine(data.numpy(), scale.numpy(), 8)


def int4_blocks(weight: Tensor) -> Affine:
    """Rounds a weight to integers from -7 to 7 with a scale per `INT4_GROUP` inputs of an output.

    Weights whose inputs are not a multiple of `INT4_GROUP` become int8.
    """
    outputs, inputs, *kernel = weight.shape
    if inputs % INT4_GROUP:
        return int8_rows(weight)
    groups = weight.reshape(outputs, inputs // INT4_GROUP, -1)  # [outputs, groups, INT4_GROUP * kernel]
    scale = best_scales(groups, torch.float16)
    data = nearest_steps(groups, scale).to(torch.int8).reshape(weight.shape)
    return Affine(data.numpy(), scale.reshape(outputs, inputs // INT4_GROUP, *[1] * len(kernel)).numpy(), 4)


def cluster(weight: Tensor, bits: int, groups: int) -> Palette:
    """Clusters the values that share a table by k-means.

    It is Lloyd's algorithm in one dimension, for all groups at once and deterministic. A cluster is a run of sorted
    values, so that cumulative sums give its mean.
    """
    rows, size = weight.reshape(groups, -1).float(), 1 << bits  # [groups, values]
    values, order = rows.sort(dim=1)
    sums = torch.nn.functional.pad(values.double().cumsum(dim=1), (1, 0))
    centres = first_centres(values, size)
    for _ in range(LLOYD_ITERATIONS):
        edges = cluster_edges(values, centres)
        counts = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres).sort(dim=1).values
    table = centres.to(torch.float16)
    counts = cluster_edges(values, table.double()).diff(dim=1)  # by the table's values as they are stored
    clusters = torch.arange(size, dtype=torch.uint8).repeat(groups).repeat_interleave(counts.flatten()).view(groups, -1)
    indices = torch.empty_like(clusters).scatter_(1, order, clusters)
    return Palette(indices.reshape(weight.shape).numpy(), table.numpy(), bits)


def first_centres(values: Tensor, size: int) -> Tensor:
    """Returns centres close to the best: their density is the cube root of the values' density (Panter and Dite 1951).

    Between neighbouring quantiles at a distance d the density of values is proportional to 1 / d, so the number of
    centres is proportional to d * (1 / d) ** (1 / 3).

    Args:
        values: [groups, values], sorted.

    Returns:
        [groups, size].
    """
    indices = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], QUANTILES)).long()
    quantiles = values[:, indices].double()
    share = torch.nn.functional.pad((quantiles.diff(dim=1).pow(2 / 3) + TINY**2).cumsum(dim=1), (1, 0))
    wanted = share[:, -1:] * ((torch.arange(size) + 0.5) / size)
    before = (torch.searchsorted(share, wanted) - 1).clamp(min=0)
    low, high = share.gather(1, before), share.gather(1, before + 1)
    return torch.lerp(quantiles.gather(1, before), quantiles.gather(1, before + 1), (wanted - low) / (high - low))


def cluster_edges(values: Tensor, centres: Tensor) -> Tensor:
    """Returns the index of each cluster's first sorted value, and the number of values: [groups, clusters + 1]."""
    middles = (centres[:, 1:] + centres[:, :-1]) / 2
    edges = torch.searchsorted(values, middles.float().contiguous())
    return torch.nn.functional.pad(torch.nn.functional.pad(edges, (1, 0)), (0, 1), value=values.shape[1])


def palettize(bits: int, per_tensor: bool = False) -> Callable[[Tensor], Palette]:
    """Returns a function that stores a weight as a `Palette` with tables of 2 ** bits values."""
    return lambda weight: cluster(weight, bits, 1 if per_tensor else palette_count(weight.shape[0]))


# Functions that turn a float32 matrix into its stored form; None keeps a float. A mix gives each matrix a scheme of
# its own, and the matrices that it does not name stay floats.
COREML_ARITHMETIC: dict[str, Callable[[Tensor], Compressed] | None] = {
    "fp32": None,
    "fp16": None,
    "int8": int8_rows,
    "int8-a8": int8_rows,
    "int4": int4_blocks,
    "palette4": palettize(4),
    "palette6": palettize(6),
    "palette4-per-tensor": palettize(4, per_tensor=True),
    "palette6-per-tensor": palettize(6, per_tensor=True),
    "mixed": None,
}


def is_compressed(shape: tuple[int, ...]) -> bool:
    """Returns whether a scheme applies to a weight of a shape: a matrix with more than `MAX_FLOAT_VALUES` values."""
    return len(shape) >= 2 and shape[0] > 1 and math.prod(shape) > MAX_FLOAT_VALUES


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
    """Returns the weight that Core ML computes with, in float32."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value.dense()


def stored_bytes(shape: tuple[int, ...], scheme: str) -> int:
    """Returns the bytes of a weight in a package of a scheme, without alignment."""
    weights = coreml_weights(scheme)
    return weights.stored_bytes(shape) if is_compressed(shape) else weights.float_bytes * math.prod(shape)
