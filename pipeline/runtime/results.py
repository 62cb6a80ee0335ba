"""The answers of a runner, and what `pocketbert predict --json` prints of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Classification:
    """The label of a text, and how deep the text went.

    Args:
        label: what an app shows.
        label_value: the same label as the data files write it.
        label_index: its index among the logits.
        score: the label's softmax probability at the exit taken.
        exit: the segment that the text left after, counted from 0.
        depth: how many segments ran, `exit + 1`.
        uncertainty: the number that was compared with the threshold, for each segment that ran.
        latency_ms: the milliseconds for tokenization, programs and decoding of this input at its real length.
        logits: [labels], at the exit taken.
        truncated: whether tokens beyond the bundle's `max_length` were dropped, as in training.
    """

    label: str
    label_value: str
    label_index: int
    score: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    logits: tuple[float, ...]
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints."""
        return {
            "label": self.label,
            "label_value": self.label_value,
            "score": self.score,
            "exit": self.exit,
            "depth": self.depth,
            "uncertainty": list(self.uncertainty),
            "latency_ms": self.latency_ms,
            "truncated": self.truncated,
        }


@dataclass(frozen=True)
class Estimate:
    """The number that a regression predicts for a text, and how deep the text went.

    Args:
        value: the prediction in the unit of the data. It may lie outside the range of the training labels.
        exit, depth, uncertainty, latency_ms, truncated: see `Classification`.
    """

    value: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints."""
        return asdict(self) | {"uncertainty": list(self.uncertainty)}


@dataclass(frozen=True)
class AnswerResult:
    """The answer to a question, and how deep the question went.

    Args:
        answer: `passage[start:end]`, or "" for no answer.
        start: the first character of the answer in the passage; -1 for no answer.
        end: one past its last character; -1 for no answer.
        score: the probability of the span in its window at the exit taken.
        exit, depth, latency_ms: see `Classification`.
        uncertainty: see `Classification`; the question's, as `question_uncertainty` computes it from the windows'.
        windows: the number of windows that the passage was cut into. All of them run to the same depth.
    """

    answer: str
    start: int
    end: int
    score: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    windows: int

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints."""
        return asdict(self) | {"uncertainty": list(self.uncertainty)}
