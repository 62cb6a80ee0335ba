"""All measures equal their definitions, and numpy's equal the programs'."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from pipeline.model.uncertainty import MEASURES, answer_bias
from pipeline.names import Uncertainty
from pipeline.tasks.measures import LABEL_MEASURES, label_measures, span_positions, window_measures

IN_PROGRAM = ("entropy", "max_probability", "margin")


def draw_windows(seed: int, lengths=(6, 40, 90)) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns start and end logits, [4 exits, length], and answer mask, [length]. The second window allows [CLS]."""
    random = np.random.default_rng(seed)
    cases = []
    for index, length in enumerate(lengths):
        start, end = (random.normal(0, 1 + 2 * index, (4, length)).astype(np.float32) for _ in range(2))
        mask = np.arange(length) >= length // 4
        mask[-1], mask[0] = False, index == 1
        cases.append((start, end, mask))
    return cases


def test_measures_have_the_manifests_names():
    assert set(MEASURES) == {*IN_PROGRAM, "patience", "agreement"}
    assert set(get_args(Uncertainty)) == {*MEASURES, "change"}  # the runner computes "change"
    assert set(LABEL_MEASURES) == set(IN_PROGRAM)
    assert MEASURES["patience"] == MEASURES["agreement"] == MEASURES["entropy"]  # the programs give the entropy


@pytest.mark.parametrize("name", IN_PROGRAM)
@pytest.mark.parametrize("labels", [2, 3, 9])
def test_label_measures_equal_the_programs(name, labels):
    logits = np.random.default_rng(labels).normal(0, 3, (50, 4, labels)).astype(np.float32)
    values = label_measures(logits)[name]
    assert values.shape == (50, 4)
    np.testing.assert_allclose(values, MEASURES[name].labels(torch.from_numpy(logits)).numpy(), atol=2e-6)


@pytest.mark.parametrize("name", IN_PROGRAM)
def test_window_measures_equal_the_programs(name):
    for start, end, mask in draw_windows(1):
        bias = answer_bias(torch.from_numpy(np.tile(mask, (4, 1))))
        by_program = MEASURES[name].spans(torch.from_numpy(start), torch.from_numpy(end), bias).numpy()
        np.testing.assert_allclose(window_measures(start, end, mask, 8)[name], by_program, atol=2e-6)


def test_label_measures_equal_their_definitions():
    logits = np.random.default_rng(0).normal(0, 2, (30, 3, 5))
    measures, p = label_measures(logits), np.sort(torch.softmax(torch.from_numpy(logits), -1).numpy(), -1)
    entropy = Categorical(logits=torch.from_numpy(logits)).entropy().numpy()
    np.testing.assert_allclose(measures["entropy"], entropy / math.log(5))
    np.testing.assert_allclose(measures["max_probability"], (1 - p[..., -1]) * 5 / 4)
    np.testing.assert_allclose(measures["margin"], 1 - p[..., -1] + p[..., -2])


def test_with_two_labels_margin_equals_max_probability_and_entropy_ranks_the_same():
    measures = label_measures(np.random.default_rng(0).normal(0, 2, (100, 1, 2)))
    np.testing.assert_allclose(measures["margin"], measures["max_probability"], atol=1e-12)
    assert np.array_equal(np.argsort(measures["entropy"][:, 0]), np.argsort(measures["margin"][:, 0]))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", IN_PROGRAM)
def test_label_measures_range_from_0_for_certainty_to_1_for_equal_logits(name, classes):
    flat, certain = np.full((1, classes), 3.5), np.zeros((1, classes))
    certain[0, 1] = 60
    assert label_measures(flat)[name][0] == pytest.approx(1.0)
    assert label_measures(certain)[name][0] == pytest.approx(0.0)


def test_a_tie_of_two_among_four_is_1_for_the_margin_only():
    tie = label_measures(np.array([[2.0, 2.0, -90.0, -90.0]]))
    assert tie["margin"][0] == pytest.approx(1.0)
    assert tie["entropy"][0] == pytest.approx(0.5) and tie["max_probability"][0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_span_measures_cover_all_allowed_spans(longest):
    for start, end, mask in draw_windows(2):
        spans = [
            (i, j)
            for i in range(len(mask))
            for j in range(len(mask))
            if mask[i] and mask[j] and i <= j < i + longest and (i > 0 or j == 0)
        ]
        first, last = span_positions(mask, longest)
        assert sorted(zip(first.tolist(), last.tolist())) == spans
        measures = window_measures(start, end, mask, longest)
        for exit in range(4):
            scores = torch.tensor([float(start[exit, i]) + float(end[exit, j]) for i, j in spans], dtype=torch.float64)
            entropy = float(Categorical(logits=scores).entropy()) / math.log(len(spans))
            assert measures["span_entropy"][exit] == pytest.approx(entropy, abs=1e-6)
            remaining = (1 - float(torch.softmax(scores, 0).max())) / (1 - 1 / len(spans))
            assert measures["span_probability"][exit] == pytest.approx(remaining, abs=1e-6)


def test_impossible_tokens_change_the_scaled_entropy_but_not_the_span_probability():
    """A short and a long passage have two equally likely answers."""

    def measures(length: int) -> dict[str, np.ndarray]:
        start, end = np.full((1, length), -50.0), np.full((1, length), -50.0)
        start[0, [3, 9]], end[0, [4, 10]] = 0.0, 0.0
        return window_measures(start, end, np.arange(length) > 1, 3)

    short, long = measures(16), measures(384)
    assert short["span_probability"][0] == pytest.approx(0.5, abs=0.02)
    assert long["span_probability"][0] == pytest.approx(0.5, abs=0.02)
    assert short["unscaled_entropy"][0] == pytest.approx(long["unscaled_entropy"][0])
    assert short["entropy"][0] > 2 * long["entropy"][0] and short["span_entropy"][0] > 1.5 * long["span_entropy"][0]


def test_a_uniform_guess_is_1_in_any_passage_except_by_unscaled_entropy():
    short, long = (
        window_measures(np.zeros((1, length)), np.zeros((1, length)), np.arange(length) > 0, 5) for length in (9, 300)
    )
    assert all(short[name][0] == pytest.approx(1.0) == long[name][0] for name in short if name != "unscaled_entropy")
    assert short["unscaled_entropy"][0] < 0.4 < 0.9 < long["unscaled_entropy"][0]


def test_a_single_candidate_is_certain():
    mask = np.arange(6) == 4
    measures = window_measures(np.random.default_rng(0).normal(size=(2, 6)), np.zeros((2, 6)), mask, 4)
    assert all(np.allclose(values, 0.0) for values in measures.values())
    with pytest.raises(ValueError, match="allows no token"):
        window_measures(np.zeros((2, 6)), np.zeros((2, 6)), np.zeros(6, bool), 4)


def test_temperatures_divide_the_logits_of_their_exit():
    logits = np.random.default_rng(0).normal(0, 2, (20, 2, 3))
    scaled, plain, halved = label_measures(logits, [1.0, 2.0]), label_measures(logits), label_measures(logits / 2)
    for name in IN_PROGRAM:
        assert np.array_equal(scaled[name][:, 0], plain[name][:, 0])
        assert np.array_equal(scaled[name][:, 1], halved[name][:, 1])
    start, end, mask = draw_windows(3)[1]
    scaled = window_measures(start, end, mask, 5, [1, 1, 2, 1])
    plain, halved = (window_measures(start / divisor, end / divisor, mask, 5) for divisor in (1, 2))
    for name in plain:
        np.testing.assert_allclose(scaled[name], np.where([0, 0, 1, 0], halved[name], plain[name]), atol=1e-6)
