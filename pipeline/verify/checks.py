"""The parts of what `pocketbert verify --json` prints: checks, warnings, and whether Core ML itself ran."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.names import Backend
from pipeline.support.document import Document


class Check(Document):
    """One number measured on a program, and the least that it may be.

    Attributes:
        program: the program's name, or what else was checked.
        metric: what was measured; more is better.
        passed: whether `value` is at least `floor`.
        note: where it failed; empty if there is nothing to add.
    """

    program: str
    backend: Backend
    metric: str
    value: float
    floor: float
    passed: bool
    note: str = ""

    @classmethod
    def at_least(cls, program: str, backend: Backend, metric: str, value: float, floor: float, note: str = "") -> Check:
        """Returns a check that passes if `value` reaches `floor`.

        JSON has neither NaN nor infinity: -1 stands for both, and fails.
        """
        finite = math.isfinite(value)
        return cls(
            program=program,
            backend=backend,
            metric=metric,
            value=float(value) if finite else -1.0,
            floor=floor,
            passed=bool(finite and value >= floor),
            note=note,
        )

    @model_serializer(mode="wrap")
    def _omit_empty_note(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if name != "note" or value}

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        measured = f"{self.metric} is {self.value:.4g}, at least {self.floor:.4g} is needed"
        return f"{self.backend} {self.program}: {measured}{note}"


class EngineWarning(Document):
    """An operator or input that may keep a program off the Neural Engine.

    Attributes:
        package: the file's name.
        name: the operator's result, or the input.
        reason: a key of `pipeline.verify.neural_engine.REASONS`.
        detail: what makes this operator one of those.
        text, source: the reason in words, and who published it.
    """

    package: str
    function: str
    operator: str
    name: str
    reason: str
    detail: str
    text: str
    source: str


class PlannedOperator(Document):
    """One operator of a compute plan.

    Attributes:
        operator: its type.
        name: its result.
        device: the processor that Core ML prefers.
        supported: every processor that could run it.
        cost: its share of the model's work, as Core ML estimates it; None if it gives no estimate.
    """

    operator: str
    name: str
    device: str
    supported: tuple[str, ...]
    cost: float | None


class ProgramPlan(Document):
    """Where Core ML would run one program, if it may use all processors.

    Attributes:
        reason: why there is no plan; empty if there is one.
        devices: how many operators each processor has, the largest number first.
    """

    program: str
    backend: Backend
    length: int
    operators: tuple[PlannedOperator, ...]
    reason: str = ""
    devices: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, program: str, backend: Backend, length: int, operators: Sequence[PlannedOperator], reason: str = ""
    ) -> ProgramPlan:
        """Returns the plan with its operators counted."""
        devices = dict(Counter(operator.device for operator in operators).most_common())
        return cls(
            program=program,
            backend=backend,
            length=length,
            operators=tuple(operators),
            reason=reason,
            devices=devices,
        )


class MacReport(Document):
    """Whether Core ML itself ran. Its checks are among the others.

    Attributes:
        reason: why it did not run.
        machine: on what it ran.
    """

    ran: bool
    reason: str = ""
    machine: str = ""
    plans: tuple[ProgramPlan, ...] = ()
