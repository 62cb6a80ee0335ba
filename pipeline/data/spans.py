"""From start and end logits back to an answer: the best span of a window, the best answer over windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.windows import QAWindow


@dataclass(frozen=True)
class Span:
    """Tokens `start_token` to `end_token`, both inclusive; `score` is the sum of their start and end logit."""

    start_token: int
    end_token: int
    score: float


@dataclass(frozen=True)
class DecodedAnswer:
    """An answer read off the logits.

    Args:
        text: `passage[start:end]`; "" when the answer is that there is none.
        start: the answer's first character in the passage, -1 when there is none.
        end: one past its last character, -1 when there is none.
        score: start logit plus end logit, of the span or of [CLS]; comparable over the windows of one question.
        window_index: the window it was read from.
        probability: in [0, 1]; softmax of the start logits times that of the end logits, each over the tokens that
            this window allows.
    """

    text: str
    start: int
    end: int
    score: float
    window_index: int
    probability: float


def best_span(
    start_logits: np.ndarray, end_logits: np.ndarray, answer_mask: np.ndarray, max_answer_tokens: int
) -> Span:
    """The best-scoring span of 1 to `max_answer_tokens` tokens whose ends `answer_mask` allows, exactly.

    Position 0 is never part of it: [CLS] is no answer, see `null_score`. Of equal scores the first start wins, then
    the shorter span.

    Args:
        start_logits: [S].
        end_logits: [S].
        answer_mask: bool, [S].

    Raises:
        ValueError: no token is allowed, or `max_answer_tokens` is less than 1.
    """
    allowed = np.array(answer_mask, dtype=bool)
    allowed[0] = False
    positions = np.flatnonzero(allowed)
    if len(positions) == 0:
        raise ValueError("answer_mask allows no token")
    if max_answer_tokens < 1:
        raise ValueError("max_answer_tokens is at least 1")
    first, last = int(positions[0]), int(positions[-1])
    length = last - first + 1
    width = min(max_answer_tokens, length)
    # float64, in which the sum of two float32 logits is exact: spans that differ never tie by rounding.
    starts = np.where(allowed, start_logits, -np.inf).astype(np.float64)[first : last + 1]
    ends = np.full(length + width - 1, -np.inf)
    ends[:length] = np.where(allowed, end_logits, -np.inf)[first : last + 1]
    # Row i holds the ends i ... i + width - 1: the band of the [length, length] matrix that spans may lie in.
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, width)  # [length, width]
    row, column = divmod(int(scores.argmax()), width)
    return Span(first + row, first + row + column, float(scores[row, column]))


def null_score(start_logits: np.ndarray, end_logits: np.ndarray) -> float:
    """The score of "no answer" in a window: the start and end logit of [CLS] (Devlin et al. 2019, 4.3)."""
    return float(start_logits[0]) + float(end_logits[0])


def decode_answer(
    windows: Sequence[QAWindow],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    passage: str,
    max_answer_tokens: int,
    allow_no_answer: bool,
    null_threshold: float = 0.0,
) -> DecodedAnswer:
    """The best span over all windows, or no answer.

    There is no answer when it is allowed and the least `null_score` of the windows exceeds the best span's score by
    more than `null_threshold`: the least, since a window without the answer rightly says so.

    Args:
        windows: the windows of one question, as `make_windows` gives them.
        scores: (start_logits, end_logits) for each window, [S] each.

    Raises:
        ValueError: `scores` does not fit `windows`.
    """
    if not windows or len(windows) != len(scores):
        raise ValueError(f"{len(windows)} windows, {len(scores)} pairs of logits")
    spans = [
        best_span(start_logits, end_logits, window.answer_mask, max_answer_tokens)
        for window, (start_logits, end_logits) in zip(windows, scores)
    ]
    best = max(range(len(spans)), key=lambda index: spans[index].score)
    if allow_no_answer:
        nulls = [null_score(start_logits, end_logits) for start_logits, end_logits in scores]
        least = min(range(len(nulls)), key=nulls.__getitem__)
        if nulls[least] - spans[best].score > null_threshold:
            probability = _probability(windows[least], scores[least], 0, 0)
            return DecodedAnswer("", -1, -1, nulls[least], least, probability)
    span = spans[best]
    start = int(windows[best].offsets[span.start_token, 0])
    end = int(windows[best].offsets[span.end_token, 1])
    probability = _probability(windows[best], scores[best], span.start_token, span.end_token)
    return DecodedAnswer(passage[start:end], start, end, span.score, best, probability)


def _probability(window: QAWindow, logits: tuple[np.ndarray, np.ndarray], start_token: int, end_token: int) -> float:
    allowed = window.answer_mask.copy()
    allowed[start_token] = allowed[end_token] = True  # [CLS], when only the caller allows no answer
    start_logits, end_logits = logits
    return _softmax_at(start_logits, allowed, start_token) * _softmax_at(end_logits, allowed, end_token)


def _softmax_at(logits: np.ndarray, allowed: np.ndarray, position: int) -> float:
    logits = np.asarray(logits, dtype=np.float64)
    peak = logits[allowed].max()
    return float(np.exp(logits[position] - peak) / np.exp(logits[allowed] - peak).sum())
