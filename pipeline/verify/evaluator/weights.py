"""Decompresses the weights of a saved program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.verify.evaluator.mil import Operation


def constant_value(operation: Operation) -> Any:
    """Returns the value of a constant, decompressed."""
    if operation.op_type == "const":
        return operation.outputs[0].val
    return DECOMPRESSORS.get(operation.op_type, type(operation).materialized_val_inference)(operation)


def look_up_palette(operation: Operation) -> np.ndarray:
    """Returns a palettized weight.

    coremltools' own definition repeats the table for every index, which takes gigabytes for a vocabulary. Before iOS 18
    there is one table, and the indices are packed bits, the lowest first.
    """
    table = operation.lut.val
    if "shape" in operation.inputs:
        shape, bits = tuple(int(size) for size in operation.shape.val), int(table.size).bit_length() - 1
        return table[unpack_bits(operation.indices.val, bits, int(np.prod(shape)))].reshape(shape)
    *tables, size, width = table.shape
    indices = operation.indices.val.astype(np.int64)
    if width != 1:  # one index stands for several values
        return operation.materialized_val_inference()
    table_numbers = np.arange(int(np.prod(tables))).reshape(tables)
    for axis, (length, count) in enumerate(zip(indices.shape, tables)):
        table_numbers = np.repeat(table_numbers, length // count, axis)  # one for each value of the weight
    return table.ravel()[table_numbers * size + indices]


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Returns `count` integers of `bits` bits each from bytes, the lowest bits first."""
    rows = np.unpackbits(packed.view(np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return rows @ (1 << np.arange(bits))


# These replace coremltools' `materialized_val_inference`.
DECOMPRESSORS: dict[str, Callable[[Operation], Any]] = {"constexpr_lut_to_dense": look_up_palette}
