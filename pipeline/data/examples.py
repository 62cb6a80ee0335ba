"""The two kinds of labelled example, and the tasks that they are for, as every other folder sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class ClassificationExample:
    """A text or a pair of texts; `label` is the class as the data file writes it, for regression a number, None when unlabelled."""

    text: str
    text_pair: str | None = None
    label: str | float | None = None


@dataclass(frozen=True)
class Answer:
    """An answer as SQuAD has it: its text and the position of its first character in the passage."""

    text: str
    start: int


@dataclass(frozen=True)
class QAExample:
    """A question on a passage. No answers means that the passage does not hold one (SQuAD v2.0)."""

    id: str
    question: str
    passage: str
    answers: tuple[Answer, ...] = field(default=())


Example = Union[ClassificationExample, QAExample]
