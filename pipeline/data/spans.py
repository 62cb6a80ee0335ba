"""Decodes start and end logits: the best span of a window, and the best answer over all windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.windows import QAWindow


@dataclass(frozen=True)
class Span:
    """The tokens from `start_token` to `end_token`, both inclusive; `score` is start logit plus end logit."""

    start_token: int
    end_token: int
    score: float


@dataclass(frozen=True)
class DecodedAnswer:
    """An answer that was read off the logits.

    Attributes:
        text: `passage[start:end]`; "" for "no answer".
        start: the position of its first character in the passage; -1 for "no answer".
        end: one past its last character; -1 for "no answer".
        score: start logit plus end logit of the span, or of [CLS]; comparable between the windows of one question.
        window_index: the window that it was found in.
        probability: in [0, 1]; the softmax of the start logits at its first token times the softmax of the end logits
            at its last token, both over the allowed tokens of this window.
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
    """Returns the span with the best score. The search is exact.

    A span has 1 to `max_answer_tokens` tokens, and `answer_mask` allows both of its ends. It never contains [CLS] at
    position 0, see `null_score`. Between equal scores the earlier start wins, then the shorter span.

    Args:
        start_logits: [S].
        end_logits: [S].
        answer_mask: bool, [S].
        max_answer_tokens: maximum number of tokens of a span.

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
    # The sum of two float32 logits is exact in float64, so rounding never makes two scores equal.
    starts = np.where(allowed, start_logits, -np.inf).astype(np.float64)[first : last + 1]
    ends = np.full(length + width - 1, -np.inf)
    ends[:length] = np.where(allowed, end_logits, -np.inf)[first : last + 1]
    # Row i holds the scores of the spans that start at i and end at i ... i + width - 1.
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, width)  # [length, width]
    row, column = divmod(int(scores.argmax()), width)
    return Span(first + row, first + row + column, float(scores[row, column]))


def null_score(start_logits: np.ndarray, end_logits: np.ndarray) -> float:
    """Returns the score of "no answer" in a window: start plus end logit of [CLS] (Devlin et al. 2019, section 4.3)."""
    return float(start_logits[0]) + float(end_logits[0])


def decode_answer(
    windows: Sequence[QAWindow],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    passage: str,
    max_answer_tokens: int,
    allow_no_answer: bool,
    null_threshold: float = 0.0,
) -> DecodedAnswer:
    """Returns the best span over all windows, or "no answer".

    If it is allowed, "no answer" wins when the lowest `null_score` of the windows exceeds the best span's score by more
    than `null_threshold`. The lowest counts because a window without the answer has a high null score rightly.

    Args:
        windows: the windows of one question, as `make_windows` gives them.
        scores: (start_logits, end_logits) for each window, [S] each.
        passage: the passage of the question.
        max_answer_tokens: maximum number of tokens of an answer.
        allow_no_answer: whether "no answer" is a possible result.
        null_threshold: see above.

    Raises:
        ValueError: there is no window, or not a pair of logits for each.
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
        lowest = min(range(len(nulls)), key=nulls.__getitem__)
        if nulls[lowest] - spans[best].score > null_threshold:
            probability = _probability(windows[lowest], scores[lowest], 0, 0)
            return DecodedAnswer("", -1, -1, nulls[lowest], lowest, probability)
    span = spans[best]
    start = int(windows[best].offsets[span.start_token, 0])
    end = int(windows[best].offsets[span.end_token, 1])
    probability = _probability(windows[best], scores[best], span.start_token, span.end_token)
    return DecodedAnswer(passage[start:end], start, end, span.score, best, probability)


def span_score(
    windows: Sequence[QAWindow], scores: Sequence[tuple[np.ndarray, np.ndarray]], start: int, end: int
) -> float:
    """Returns the best score of the characters `start` to `end`.

    Args:
        scores: (start_logits, end_logits) for each window, [S] each.

    Returns:
        the sum of a start and an end logit; -inf if no window has tokens that start and end there.
    """
    found = [-np.inf]
    for window, (start_logits, end_logits) in zip(windows, scores):
        starts = start_logits[window.answer_mask & (window.offsets[:, 0] == start)]
        ends = end_logits[window.answer_mask & (window.offsets[:, 1] == end)]
        if len(starts) and len(ends):
            found.append(float(starts.max() + ends.max()))
    return max(found)


def _probability(window: QAWindow, logits: tuple[np.ndarray, np.ndarray], start_token: int, end_token: int) -> float:
    allowed = window.answer_mask.copy()
    allowed[start_token] = allowed[end_token] = (
        True  # [CLS], if the window does not allow "no answer" but the caller does
    )
    start_logits, end_logits = logits
    return _softmax_at(start_logits, allowed, start_token) * _softmax_at(end_logits, allowed, end_token)


def _softmax_at(logits: np.ndarray, allowed: np.ndarray, position: int) -> float:
    logits = np.asarray(logits, dtype=np.float64)
    peak = logits[allowed].max()
    return float(np.exp(logits[position] - peak) / np.exp(logits[allowed] - peak).sum())
