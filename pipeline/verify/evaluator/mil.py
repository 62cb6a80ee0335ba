"""Names for coremltools' classes, and small questions about the programs that it loads.

coremltools calls the language of Core ML programs MIL. It ships no types, so its objects are `Any` under the names
below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Specification = Any  # coremltools.proto.Model_pb2.Model, the protocol buffer in a package
Operation = Any  # coremltools.converters.mil.mil.Operation
Variable = Any  # coremltools.converters.mil.mil.Var


def is_constant(operation: Operation) -> bool:
    """Returns whether an operation is a value stored in the package, plain or compressed."""
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def variables_read(operation: Operation) -> Iterator[Variable]:
    """Yields the variables that an operation reads, including those inside lists."""
    for value in operation.inputs.values():
        yield from value if isinstance(value, (list, tuple)) else (value,)


def shape_of(variable: Variable) -> tuple[int | None, ...]:
    """Returns a variable's shape; a flexible dimension is None."""
    from coremltools.converters.mil.mil.types.symbolic import is_symbolic

    return tuple(None if is_symbolic(size) else int(size) for size in variable.shape)


def dtype_of(variable: Variable) -> str:
    """Returns MIL's name of a variable's element type, such as "fp16" or "int8"."""
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(variable.dtype)


def shapes_fit(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """Returns whether a shape matches a declared one, in which None allows any size."""
    return len(shape) == len(declared) and all(size in (None, actual) for actual, size in zip(shape, declared))
