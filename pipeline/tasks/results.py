"""What a runner gives for one example of each task: the answer, and how the example came to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LabelCandidate:
    """One label of a classifier with its probability.

    Attributes:
        label: what an app shows.
        label_value: the same as the data files write it.
        label_index: its place among the logits.
        score: its softmax probability at the exit taken. The scores of all labels add up to 1.
    """

    label: str
    label_value: str
    label_index: int
    score: float


@dataclass(frozen=True)
class AnswerCandidate:
    """One span of a passage, or "no answer", with its scores.

    Attributes:
        answer: `passage[start:end]`; "" for "no answer".
        start: the position of its first character in the passage; -1 for "no answer".
        end: one past its last character; -1 for "no answer".
        score: its probability within its own window. Two windows cannot be compared by it.
        logit: start logit plus end logit, which orders the spans of all windows.
    """

    answer: str
    start: int
    end: int
    score: float
    logit: float


@dataclass(frozen=True)
class ClassificationResult:
    """A label, and how the input came to it.

    Attributes:
        label: what an app shows.
        label_value: the same as the data files write it.
        label_index: its place among the logits.
        score: the label's softmax probability at the exit taken.
        exit: the segment that the input left after, counted from 0.
        depth: how many segments ran, `exit + 1`.
        uncertainty: what was compared with the threshold after each segment that ran.
        latency_ms: tokenization, programs and decoding, in milliseconds.
        logits: [labels] at the exit taken.
        truncated: whether tokens beyond the bundle's `max_length` were dropped, as in training.
        candidates: the likeliest labels, best first, as many as `top_k` asked for. The first is the answer itself.
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
    candidates: tuple[LabelCandidate, ...]

    def to_json(self, candidates: bool = False) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints; with `candidates` also these."""
        fields = {
            "label": self.label,
            "label_value": self.label_value,
            "score": self.score,
            "exit": self.exit,
            "depth": self.depth,
            "uncertainty": list(self.uncertainty),
            "latency_ms": self.latency_ms,
            "truncated": self.truncated,
        }
        if candidates:
            shown = ("label", "label_value", "score")
            fields["candidates"] = [{name: getattr(candidate, name) for name in shown} for candidate in self.candidates]
        return fields


@dataclass(frozen=True)
class AnswerResult:
    """An answer, and how the question came to it.

    Attributes:
        answer: `passage[start:end]`; "" with start and end -1 when the answer is that there is none.
        start, end: characters of the passage, the end exclusive.
        score: probability of the span in its window at the exit taken.
        exit, depth, uncertainty, latency_ms: see `ClassificationResult`. The uncertainty is the decisive window's.
        windows: into how many windows the passage was cut; all run to the same depth.
        candidates: the best distinct spans, best first, as many as `top_k` asked for. The first is the answer itself.
            "No answer" is among them where the bundle may give it.
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
    candidates: tuple[AnswerCandidate, ...]

    def to_json(self, candidates: bool = False) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints; with `candidates` also these."""
        fields = {
            "answer": self.answer,
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "exit": self.exit,
            "depth": self.depth,
            "uncertainty": list(self.uncertainty),
            "latency_ms": self.latency_ms,
            "windows": self.windows,
        }
        if candidates:
            fields["candidates"] = [asdict(candidate) for candidate in self.candidates]
        return fields


@dataclass(frozen=True)
class RegressionResult:
    """A number, and how the input came to it.

    Attributes:
        value: in the data's unit; it may lie beyond the labels seen in training.
        exit, depth, uncertainty, latency_ms, truncated: see `ClassificationResult`.
    """

    value: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    truncated: bool

    def to_json(self, candidates: bool = False) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints. A number has no candidates."""
        return asdict(self) | {"uncertainty": list(self.uncertainty)}
