"""Decompresses the weights of a saved program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.verify.evaluator.mil import Operation
from pipeline.verify.evaluator.precision import round_to_float16, to_float32

MIN_SHARED_NUMBERS = 1024  # below, comparing takes longer than converting


def constant_value(operation: Operation) -> Any:
    """Returns the value of a constant, decompressed."""
    if operation.op_type == "const":
        return operation.outputs[0].val
    return DECOMPRESSORS.get(operation.op_type, type(operation).materialized_val_inference)(operation)


class SharedConstants:
    """Decompresses and rounds each weight once, although every function of a package has it as a constant of its own.

    Values are told apart by all their bytes, before and after: nothing in a loaded program says what is shared.
    """

    def __init__(self) -> None:
        self._values: dict[bytes, Any] = {}
        self._rounded: dict[int, tuple[Any, Any]] = {}  # by id, with the value itself, which keeps the id taken

    def value(self, operation: Operation) -> Any:
        """Returns a constant, decompressed and in float32."""
        if operation.op_type == "const" and np.size(operation.outputs[0].val) < MIN_SHARED_NUMBERS:
            return to_float32(constant_value(operation))
        key = digest(operation)
        if key not in self._values:
            # Writeable, since torch copies other arrays before it uses them.
            self._values[key] = np.require(to_float32(constant_value(operation)), requirements="W")
        return self._values[key]

    def rounded(self, value: Any) -> Any:
        """Returns a value of `value` rounded to float16; the same array if that changes nothing."""
        if id(value) not in self._rounded:
            rounded = round_to_float16(value)
            unchanged = isinstance(value, np.ndarray) and np.array_equal(rounded, value)
            self._rounded[id(value)] = (value, value if unchanged else rounded)
        return self._rounded[id(value)][1]


def digest(operation: Operation) -> bytes:
    """Returns a digest of everything that a constant's value depends on: its operator and all that it reads."""
    hashed = hashlib.blake2b(operation.op_type.encode(), digest_size=16)
    named = {"val": operation.outputs[0]} if operation.op_type == "const" else operation.inputs
    for name, variable in named.items():
        value = np.asarray(variable.val)
        hashed.update(f"{name} {value.dtype.str} {value.shape} ".encode() + value.tobytes())
    return hashed.digest()


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
