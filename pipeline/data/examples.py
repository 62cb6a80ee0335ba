"""The two kinds of labelled example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class ClassificationExample:
    """A text or a pair of texts, for classification and regression.

    Attributes:
        label: the class as the data file writes it, a number for regression, None if unlabelled.
    """

    text: str
    text_pair: str | None = None
    label: str | float | None = None


@dataclass(frozen=True)
class Answer:
    """An answer as in SQuAD: its text and the position of its first character in the passage."""

    text: str
    start: int


@dataclass(frozen=True)
class QAExample:
    """A question about a passage. It has no answers if the passage does not contain one (SQuAD v2.0)."""

    id: str
    question: str
    passage: str
    answers: tuple[Answer, ...] = field(default=())


Example = Union[ClassificationExample, QAExample]
