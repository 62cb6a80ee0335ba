"""Finds the first overflow and the first NaN of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FaultKind = Literal["overflows", "makes NaN"]
DETECTORS: dict[FaultKind, Callable[[np.ndarray], np.ndarray]] = {"overflows": np.isinf, "makes NaN": np.isnan}


@dataclass(frozen=True)
class Fault:
    """The first value of an evaluation that has an infinity, or the first that has a NaN.

    Attributes:
        kind: "input", or the type of the operator that computed the value.
        name: the value's name.
        what: "overflows" for an infinity.
    """

    kind: str
    name: str
    what: FaultKind

    def __str__(self) -> str:
        if self.kind == "input":
            return f"input {self.name} {'is infinite' if self.what == 'overflows' else 'is NaN'}"
        return f"{self.kind} {self.name} {self.what}"


class FaultRecorder:
    """Is shown the values of an evaluation in the order in which they arise, and keeps the first fault of each kind."""

    def __init__(self) -> None:
        self.faults: dict[FaultKind, Fault] = {}

    def inspect(self, kind: str, name: str, value: Any) -> None:
        """Inspects one value; `kind` and `name` are those of `Fault`."""
        if len(self.faults) == len(DETECTORS) or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return
        # The sum is cheap, and finite unless some value is not. Finite values can overflow it too, hence the second
        # test.
        if np.isfinite(value.sum(dtype=np.float32)) or np.isfinite(value).all():
            return
        for what, detect in DETECTORS.items():
            if what not in self.faults and detect(value).any():
                self.faults[what] = Fault(kind, name, what)
