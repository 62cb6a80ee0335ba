"""The lengths at which inputs are cut. A recipe sets them for training, and a manifest repeats them for the phone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionOptions:
    """How a passage is cut into windows and how an answer is chosen. Lengths are in tokens.

    Attributes:
        window: maximum number of tokens of a window, special tokens included.
        stride: passage tokens that two neighbouring windows share.
        max_question: question tokens to keep; the rest are dropped.
        max_answer: maximum number of tokens of an answer.
        allow_no_answer: whether "no answer" is a possible result (SQuAD v2.0).
        null_threshold: "no answer" wins if its score exceeds that of the best span by more than this.
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
        max_length: maximum number of tokens of a text or a pair of texts, special tokens included.
        question: the lengths for question answering, None for other tasks.
    """

    max_length: int
    question: QuestionOptions | None = None
