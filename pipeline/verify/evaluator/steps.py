"""The operations of a function, made ready once to be run many times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.verify.evaluator.mil import Operation, Variable, shape_of

# What an operation that computes nothing does to its input `x`: the values stay, in other places.
MOVING_OPERATORS = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "split"})
Rounding = Callable[[Any], Any]


class BoundVariable:
    """A coremltools variable with a value: `value_inference` reads `val` here and everything else from the variable."""

    def __init__(self, variable: Variable):
        self._variable, self.val, self.sym_val = variable, None, None
        self._defaults: dict[Rounding, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._variable, name)

    def bind(self, values: Mapping[str, Any], rounding: Rounding) -> None:
        """Takes the value of its name, or its default: no operation computes a parameter that the file omits."""
        name = self._variable.name
        if name in values:
            value = values[name]
        else:
            if rounding not in self._defaults:
                self._defaults[rounding] = rounding(self._variable.val)
            value = self._defaults[rounding]
        self.val = self.sym_val = value


class Step:
    """One operation whose inputs take the values of a run. The loaded program stays as it is.

    Attributes:
        operation: a copy of the program's, with inputs of its own.
        outputs: the name of each result, with its declared shape.
        moves: whether the results have the values of an input that was computed before, which are rounded already.
    """

    def __init__(self, operation: Operation, computed: set[str]):
        self.variables: list[BoundVariable] = []
        self.outputs = tuple((output.name, shape_of(output)) for output in operation.outputs)
        source = operation.inputs.get("x")
        self.moves = operation.op_type in MOVING_OPERATORS and source is not None and source.name in computed
        bound = {name: self._bound(variable) for name, variable in operation.inputs.items()}
        self.operation = copy.copy(operation)
        self.operation._input_vars = {**operation._input_vars, **bound}
        for name, variable in bound.items():
            setattr(self.operation, name, variable)

    def _bound(self, variable: Any) -> Any:
        if isinstance(variable, (list, tuple)):
            return tuple(self._bound(element) for element in variable)
        self.variables.append(BoundVariable(variable))
        return self.variables[-1]

    def bind(self, values: Mapping[str, Any], rounding: Rounding) -> None:
        """Gives each input its value."""
        for variable in self.variables:
            variable.bind(values, rounding)

    def release(self) -> None:
        """Forgets the values, which may be large."""
        for variable in self.variables:
            variable.val = variable.sym_val = None


def make_steps(inputs: Mapping[str, Any], operations: tuple[Operation, ...]) -> tuple[Step, ...]:
    """Returns a step for each of some operations, which follow each other.

    Args:
        inputs: the function's, by name.
    """
    computed, steps = set(inputs), []
    for operation in operations:
        steps.append(Step(operation, computed))
        computed |= {name for name, _ in steps[-1].outputs}
    return tuple(steps)
