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
    first, scores = _span_scores(start_logits, end_logits, answer_mask, max_answer_tokens)
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return Span(first + row, first + row + column, float(scores[row, column]))


def _span_scores(
    start_logits: np.ndarray, end_logits: np.ndarray, answer_mask: np.ndarray, max_answer_tokens: int
) -> tuple[int, np.ndarray]:
    """Returns the score of every span; arguments and errors are those of `best_span`.

    Returns:
        the position that row 0 starts at, and the scores. Row i has the spans of 1, 2, ... tokens that start at row 0's
        position plus i; -inf where an end is not allowed.
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
    return first, starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, width)  # [length, width]


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
        null = _no_answer(windows, scores)
        if null.score - spans[best].score > null_threshold:
            return null
    span = spans[best]
    start = int(windows[best].offsets[span.start_token, 0])
    end = int(windows[best].offsets[span.end_token, 1])
    probability = _probability(windows[best], scores[best], span.start_token, span.end_token)
    return DecodedAnswer(passage[start:end], start, end, span.score, best, probability)


def best_answers(
    windows: Sequence[QAWindow],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    passage: str,
    max_answer_tokens: int,
    allow_no_answer: bool,
    null_threshold: float,
    count: int,
) -> list[DecodedAnswer]:
    """Returns the best distinct answers over all windows, best first; the first is that of `decode_answer`.

    Spans of the same characters count once, with their best score. If it is allowed, "no answer" stands before every
    span whose score its own exceeds by more than `null_threshold`.

    Args:
        windows, scores, passage, max_answer_tokens, allow_no_answer, null_threshold: see `decode_answer`.
        count: how many answers to return at most.

    Raises:
        ValueError: there is no window, or not a pair of logits for each.
    """
    if not windows or len(windows) != len(scores):
        raise ValueError(f"{len(windows)} windows, {len(scores)} pairs of logits")
    found: list[tuple[int, int, Span, int]] = []  # first character, one past the last, span, window
    for index, (window, (start_logits, end_logits)) in enumerate(zip(windows, scores)):
        found += [
            (start, end, span, index)
            for start, end, span in _best_spans(window, start_logits, end_logits, max_answer_tokens, count)
        ]
    # The sort is stable, so between equal scores the earlier window wins, as in `decode_answer`.
    found.sort(key=lambda entry: -entry[2].score)
    answers: dict[tuple[int, int], DecodedAnswer] = {}
    for start, end, span, index in found:
        if (start, end) not in answers:
            probability = _probability(windows[index], scores[index], span.start_token, span.end_token)
            answers[start, end] = DecodedAnswer(passage[start:end], start, end, span.score, index, probability)
    ranked = list(answers.values())
    if allow_no_answer:
        null = _no_answer(windows, scores)
        better = sum(1 for answer in ranked if not null.score - answer.score > null_threshold)
        ranked.insert(better, null)
    return ranked[:count]


def _best_spans(
    window: QAWindow, start_logits: np.ndarray, end_logits: np.ndarray, max_answer_tokens: int, count: int
) -> list[tuple[int, int, Span]]:
    """Returns the best spans of distinct characters in a window: first character, one past the last, span."""
    first, scores = _span_scores(start_logits, end_logits, window.answer_mask, max_answer_tokens)
    spans: dict[tuple[int, int], Span] = {}
    # A stable sort keeps the order of `argmax` between equal scores: the earlier start, then the shorter span.
    for place in np.argsort(-scores, axis=None, kind="stable"):
        row, column = divmod(int(place), scores.shape[1])
        score = float(scores[row, column])
        if score == -np.inf or len(spans) == count:
            break
        span = Span(first + row, first + row + column, score)
        characters = int(window.offsets[span.start_token, 0]), int(window.offsets[span.end_token, 1])
        spans.setdefault(characters, span)
    return [(start, end, span) for (start, end), span in spans.items()]


def _no_answer(windows: Sequence[QAWindow], scores: Sequence[tuple[np.ndarray, np.ndarray]]) -> DecodedAnswer:
    """Returns "no answer" with the lowest null score of the windows, see `decode_answer`."""
    nulls = [null_score(start_logits, end_logits) for start_logits, end_logits in scores]
    lowest = min(range(len(nulls)), key=nulls.__getitem__)
    return DecodedAnswer("", -1, -1, nulls[lowest], lowest, _probability(windows[lowest], scores[lowest], 0, 0))


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
