"""A Core ML package as it was read from the disk: its functions, their signatures and constants."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.support.errors import UserError
from pipeline.verify.evaluator.mil import Operation, is_constant, shapes_fit
from pipeline.verify.evaluator.steps import Step, make_steps
from pipeline.verify.evaluator.weights import SharedConstants

EXPORT_AGAIN = "export the bundle again"


@dataclass(frozen=True)
class ArraySpec:
    """The name, type and shape of a function's input or output.

    Attributes:
        dtype: numpy's name, such as "int32" or "float32".
        shape: a flexible dimension is None.
        default_shape: for inputs, the sizes that the package names first for flexible dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    default_shape: tuple[int, ...] = ()

    def accepts(self, value: np.ndarray) -> bool:
        """Returns whether an array has this type and shape."""
        return value.dtype.name == self.dtype and shapes_fit(value.shape, self.shape)


@dataclass(frozen=True)
class Function:
    """One function of a package.

    Attributes:
        operations: in an order in which they can run.
        shared: what the package's functions have decompressed so far; those of one program have the same weights.
    """

    name: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    operations: tuple[Operation, ...] = field(repr=False)
    shared: SharedConstants = field(default_factory=SharedConstants, repr=False, compare=False)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The operations that compute, in their order. They are kept, since every evaluation needs them."""
        computing = tuple(operation for operation in self.operations if not is_constant(operation))
        return make_steps({spec.name: spec for spec in self.inputs}, computing)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The constants by name, decompressed and in float32. They are kept, since every evaluation needs them."""
        return {
            operation.outputs[0].name: self.shared.value(operation)
            for operation in self.operations
            if is_constant(operation)
        }

    @cached_property
    def float16_constants(self) -> dict[str, Any]:
        """The constants rounded to float16. Weights that are float16 already share their array with `constants`."""
        return {name: self.shared.rounded(value) for name, value in self.constants.items()}


@dataclass(frozen=True)
class Package:
    """A package; its only function is called "main", several have names of their own."""

    path: Path
    specification_version: int
    functions: dict[str, Function]

    def function(self, name: str) -> Function:
        """Returns the function of that name. Raises UserError if there is none."""
        if name not in self.functions:
            raise UserError(
                f"there is no such function; the package has {', '.join(self.functions)}", file=self.path, field=name
            )
        return self.functions[name]
