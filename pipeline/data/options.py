"""How inputs are cut: the lengths that a recipe sets for training and a manifest repeats for the phone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionOptions:
    """How a passage is cut into windows and an answer is chosen. Lengths are in tokens.

    Attributes:
        window: the longest window, special tokens included.
        stride: passage tokens that a window shares with the one before it.
        max_question: the question's tokens beyond this many are dropped.
        max_answer: the longest answer.
        allow_no_answer: whether "no answer" is an answer (SQuAD v2.0).
        null_threshold: how much better than the best span "no answer" must score to win.
    """

    window: int
    stride: int
    max_question: int
    max_answer: int
    allow_no_answer: bool
    null_threshold: float = 0.0


@dataclass(frozen=True)
class InputOptions:
    """How a task's inputs are cut.

    Attributes:
        max_length: the longest text or pair of texts in tokens, special tokens included.
        question: for question answering, None for other tasks.
    """

    max_length: int
    question: QuestionOptions | None = None
