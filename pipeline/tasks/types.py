"""What goes into and comes out of a task: inputs, labels, answers, and one example's way through the exits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.data.labels import LabelRange
from pipeline.data.options import InputOptions

if TYPE_CHECKING:
    from torch import Tensor

# The names of the classes, or the range of the numbers; ("start", "end") for question answering.
Labels = tuple[str, ...] | LabelRange
# One exit's logits for one input, in the order of `exit_outputs`. Programs and vectors give flat arrays: a task with
# several logits for each token reshapes them to [length, ...].
Logits = tuple[np.ndarray, ...]


class ModelInput(Protocol):
    """What one forward pass reads: [length] arrays. `answer_mask` is None for tasks that have none."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def type_ids(self) -> np.ndarray: ...
    @property
    def answer_mask(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class AnswerContext:
    """What is needed, beside logits, to read an answer.

    Attributes:
        options: how inputs are cut.
        labels: what an app shows for each class, in the order of the logits.
        label_values: what the data files write for each class.
        label_range: from a regression's logit to the data's unit.
    """

    options: InputOptions
    labels: tuple[str, ...] = ()
    label_values: tuple[str, ...] = ()
    label_range: LabelRange | None = None


@dataclass(frozen=True)
class Walk:
    """One example's way through the exits.

    Attributes:
        uncertainty: what was compared with the threshold after each segment that ran.
        latency_ms: tokenization, programs and decoding, in milliseconds.
    """

    uncertainty: tuple[float, ...]
    latency_ms: float

    @property
    def exit(self) -> int:
        """The segment it left after, counted from 0."""
        return len(self.uncertainty) - 1

    @property
    def depth(self) -> int:
        """How many segments ran."""
        return len(self.uncertainty)


class Result(Protocol):
    """What a runner gives for one example; every task's result has these fields, and its own answer."""

    @property
    def exit(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def uncertainty(self) -> tuple[float, ...]: ...
    @property
    def latency_ms(self) -> float: ...
    def to_json(self, candidates: bool = False) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a user names; None for those to be found by their names, "" for none."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Request:
    """The texts of one input as a user gives them; which of them are needed depends on the task."""

    text: str | None = None
    text_pair: str | None = None
    question: str | None = None
    passage: str | None = None


class ProgramMeasure(Protocol):
    """A measure of uncertainty as a program computes it, see `pipeline.model.uncertainty.Measure`."""

    @property
    def labels(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def spans(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...
