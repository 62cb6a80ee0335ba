"""Labelled examples: what all kinds share, and the kinds that several tasks read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """What a task learns from and answers. Each kind is a frozen dataclass of values that JSON can hold."""


@dataclass(frozen=True)
class ClassificationExample(Example):
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
class QAExample(Example):
    """A question about a passage. It has no answers if the passage does not contain one (SQuAD v2.0)."""

    id: str
    question: str
    passage: str
    answers: tuple[Answer, ...] = field(default=())
