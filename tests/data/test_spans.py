"""The span decoder is exact and fast, and its answers are quotations from the passage."""

import time

import numpy as np
import pytest

from pipeline.data.spans import best_answers, best_span, decode_answer, null_score
from pipeline.data.windows import QAWindow


def _brute_force(start_logits, end_logits, answer_mask, longest):
    best = None
    for start in range(1, len(start_logits)):
        for end in range(start, min(start + longest, len(start_logits))):
            if answer_mask[start] and answer_mask[end]:
                score = float(start_logits[start]) + float(end_logits[end])
                if best is None or score > best[2]:
                    best = (start, end, score)
    return best


@pytest.mark.parametrize("seed", range(60))
def test_best_span_equals_brute_force(seed):
    random = np.random.default_rng(seed)
    length = int(random.integers(2, 48))
    longest = int(random.integers(1, 52))
    # Rounded for some seeds, so that some scores are equal.
    start_logits, end_logits = random.normal(size=(2, length)).round(1 if seed % 3 == 0 else 7).astype(np.float32)
    mask = random.random(length) < (0.7 if seed % 2 else 0.15)
    mask[0] = bool(seed % 2)
    mask[int(random.integers(1, length))] = True
    span = best_span(start_logits, end_logits, mask, longest)
    assert (span.start_token, span.end_token, span.score) == _brute_force(start_logits, end_logits, mask, longest)


def test_cls_is_never_part_of_a_span():
    logits = np.array([99.0, 0.0, 1.0, 0.0])
    span = best_span(logits, logits, np.array([True, False, True, True]), 4)
    assert (span.start_token, span.end_token) == (2, 2)
    assert null_score(logits, logits) == 198.0


def test_a_mask_without_tokens_is_refused():
    with pytest.raises(ValueError):
        best_span(np.zeros(4), np.zeros(4), np.array([True, False, False, False]), 4)
    with pytest.raises(ValueError):
        best_span(np.zeros(4), np.zeros(4), np.ones(4, dtype=bool), 0)


def test_best_span_of_384_tokens_takes_under_a_millisecond():
    start_logits, end_logits = np.random.default_rng(0).normal(size=(2, 384)).astype(np.float32)
    mask = np.arange(384) >= 20
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        best_span(start_logits, end_logits, mask, 30)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1e-3


PASSAGE = "red green blue gold"


def _window(words: list[str], allow_no_answer: bool) -> QAWindow:
    """Returns the window [CLS] q [SEP] words of PASSAGE [SEP]."""
    length = len(words) + 4
    offsets = np.full((length, 2), -1)
    for index, word in enumerate(words):
        offsets[3 + index] = PASSAGE.index(word), PASSAGE.index(word) + len(word)
    mask = np.zeros(length, dtype=bool)
    mask[3:-1] = True
    mask[0] = allow_no_answer
    return QAWindow(np.arange(length), np.zeros(length, dtype=int), mask, 3, offsets, (0, len(PASSAGE)))


def _logits(length: int, **values: float) -> np.ndarray:
    """Returns logits that are 0 but for the given values; `_3=2.0` is the value 2 at position 3."""
    logits = np.zeros(length)
    for name, value in values.items():
        logits[int(name[1:])] = value
    return logits


def _case(allow_no_answer: bool):
    windows = [_window(["red", "green", "blue"], allow_no_answer), _window(["blue", "gold"], allow_no_answer)]
    scores = [
        (_logits(7, _0=4.0, _3=2.0, _1=50.0), _logits(7, _0=4.0, _4=3.0)),  # red green 5, null 8
        (_logits(6, _0=3.0, _3=4.0), _logits(6, _0=3.5, _4=2.0)),  # blue gold 6, null 6.5
    ]
    return windows, scores


def test_the_best_window_wins():
    windows, scores = _case(False)
    answer = decode_answer(windows, scores, PASSAGE, 8, allow_no_answer=False)
    assert (answer.text, answer.start, answer.end) == ("blue gold", 10, 19)
    assert PASSAGE[answer.start : answer.end] == answer.text
    assert (answer.score, answer.window_index) == (6.0, 1)
    # Two passage tokens: softmax([4, 0]) at the first, softmax([0, 2]) at the second.
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-4)) * 1 / (1 + np.exp(-2)))


def test_an_answer_has_at_most_the_allowed_tokens():
    windows, scores = _case(False)
    answer = decode_answer(windows, scores, PASSAGE, 1, allow_no_answer=False)
    assert (answer.text, answer.score) == ("blue", 4.0)


def test_no_answer_needs_the_lowest_null_score_to_exceed_the_threshold():
    windows, scores = _case(True)
    nothing = decode_answer(windows, scores, PASSAGE, 8, allow_no_answer=True)
    assert (nothing.text, nothing.start, nothing.end, nothing.score, nothing.window_index) == ("", -1, -1, 6.5, 1)
    exps = [np.exp([3.0, 4.0, 0.0]), np.exp([3.5, 0.0, 2.0])]
    assert nothing.probability == pytest.approx(exps[0][0] / exps[0].sum() * exps[1][0] / exps[1].sum())
    # The margin is 6.5 - 6. A threshold of exactly this margin is not exceeded.
    assert decode_answer(windows, scores, PASSAGE, 8, True, null_threshold=0.5).text == "blue gold"
    assert decode_answer(windows, scores, PASSAGE, 8, True, null_threshold=0.49).text == ""
    assert decode_answer(windows, scores, PASSAGE, 8, False, null_threshold=-99.0).text == "blue gold"


def test_large_logits_keep_the_probability_finite():
    windows, _ = _case(False)
    scores = [(np.full(7, 5e4), np.full(7, -5e4)), (np.full(6, -5e4), np.full(6, -5e4))]
    answer = decode_answer(windows, scores, PASSAGE, 8, allow_no_answer=False)
    assert answer.probability == pytest.approx(1 / 9)


def test_each_window_needs_scores():
    windows, scores = _case(False)
    with pytest.raises(ValueError):
        decode_answer(windows, scores[:1], PASSAGE, 8, allow_no_answer=False)
    with pytest.raises(ValueError):
        decode_answer([], [], PASSAGE, 8, allow_no_answer=False)


def _random_windows(random: np.random.Generator, tied: bool):
    """Returns overlapping windows of a passage of one-letter words, and logits. Some tokens share their characters."""
    words = int(random.integers(3, 14))
    passage = " ".join("abcdefghijklmn"[:words])
    windows, scores = [], []
    for _ in range(int(random.integers(1, 4))):
        first = int(random.integers(0, words))
        places = np.arange(first, int(random.integers(first, words)) + 1)
        places = np.sort(np.concatenate([places, random.choice(places, 1)]))  # one word is two tokens
        length = len(places) + 4
        offsets = np.full((length, 2), -1)
        offsets[3:-1] = np.stack([2 * places, 2 * places + 1], axis=1)
        mask = np.zeros(length, dtype=bool)
        mask[3:-1] = True
        windows.append(QAWindow(np.arange(length), np.zeros(length, dtype=int), mask, 3, offsets, (0, len(passage))))
        scores.append(tuple(random.normal(size=(2, length)).round(0 if tied else 7).astype(np.float32)))
    return passage, windows, scores


def _all_answers(windows, scores, longest, allow_no_answer, null_threshold):
    """Returns every distinct (start, end, score) by the definition, best first, from a list of all of them."""
    best: dict[tuple[int, int], float] = {}
    for window, (start_logits, end_logits) in zip(windows, scores):
        for first in range(1, len(window)):
            for last in range(first, min(first + longest, len(window))):
                if window.answer_mask[first] and window.answer_mask[last]:
                    place = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                    score = float(start_logits[first]) + float(end_logits[last])
                    best[place] = max(best.get(place, -np.inf), score)
    ranked = sorted(((*place, score) for place, score in best.items()), key=lambda answer: -answer[2])
    if allow_no_answer:
        null = min(float(start_logits[0]) + float(end_logits[0]) for start_logits, end_logits in scores)
        ahead = [answer for answer in ranked if not null - answer[2] > null_threshold]
        ranked = [*ahead, (-1, -1, null), *ranked[len(ahead) :]]
    return ranked


@pytest.mark.parametrize("seed", range(60))
def test_the_best_answers_are_those_of_a_list_of_all_spans(seed):
    random = np.random.default_rng(seed)
    passage, windows, scores = _random_windows(random, tied=seed % 3 == 0)
    longest, count = int(random.integers(1, 6)), int(random.integers(1, 12))
    allow_no_answer, null_threshold = seed % 2 == 0, float(random.normal())
    options = (longest, allow_no_answer, null_threshold)
    answers = best_answers(windows, scores, passage, *options, count)
    expected = _all_answers(windows, scores, *options)
    assert [answer.score for answer in answers] == [score for _, _, score in expected[:count]]
    assert len({(answer.start, answer.end) for answer in answers}) == len(answers)
    for answer in answers:  # between equal scores the order is free, but for the first
        assert (answer.start, answer.end, answer.score) in expected
        assert answer.text == ("" if answer.start < 0 else passage[answer.start : answer.end])
    assert answers[0] == decode_answer(windows, scores, passage, *options)
