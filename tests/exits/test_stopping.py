"""Thresholds fitted to a price are (nearly) the best: by hand, against all others, and against uniform ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pipeline.bundle.exit_rule import exit_taken, exits_taken
from pipeline.exits.stopping import ALWAYS, GAIN_WEIGHT, PRICES, best_threshold, stopping_path, stopping_thresholds


def cost(score, uncertainty, thresholds, price: float) -> float:
    """Returns the mean of loss + price * segments, computed example by example."""
    exits = [exit_taken(row, thresholds) for row in uncertainty]
    losses = [row[-1] - row[exit] for row, exit in zip(score, exits)]
    return float(
        np.mean([(loss if loss > 0 else GAIN_WEIGHT * loss) + price * (exit + 1) for loss, exit in zip(losses, exits)])
    )


def draw_examples(count: int, exits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws scores that are lower at early exits and at high uncertainty."""
    random = np.random.default_rng(seed)
    uncertainty = random.random((count, exits))
    wrong = 0.5 * uncertainty * (1.1 - np.arange(1, exits + 1) / exits)
    return (random.random((count, exits)) > wrong).astype(float), uncertainty


def test_the_best_threshold_is_as_computed_by_hand():
    uncertainty = np.array([0.5, 0.1, 0.3, 0.9])
    # In the order of uncertainty: 0.1 saves 1, 0.3 costs 0.5, 0.5 saves 1, 0.9 costs 3.
    assert best_threshold(uncertainty, np.array([-1.0, -1.0, 0.5, 3.0])) == 0.7
    assert best_threshold(uncertainty, np.array([0.4, -1.0, 0.5, 3.0])) == 0.2
    assert best_threshold(uncertainty, np.full(4, -0.1)) == ALWAYS
    # The last one would save 2, but the others cost as much.
    assert best_threshold(uncertainty, np.array([1.0, 0.0, 1.0, -2.0])) == 0.0
    assert best_threshold(np.array([]), np.array([])) == 0.0


def test_examples_of_equal_uncertainty_leave_together_or_not_at_all():
    uncertainty = np.array([0.2, 0.4, 0.4])
    assert best_threshold(uncertainty, np.array([-1.0, -1.0, 0.5])) == ALWAYS
    assert best_threshold(uncertainty, np.array([-1.0, -1.0, 1.5])) == 0.3


def test_an_exit_as_good_as_the_last_is_always_taken_and_a_guessing_one_never():
    random = np.random.default_rng(0)
    right = (random.random(4000) < 0.8).astype(float)
    guess = (random.random(4000) < 0.5).astype(float)
    thresholds = stopping_thresholds(np.stack([guess, right, right], axis=1), random.random((4000, 3)), 0.01)
    assert thresholds[0] < 0.01 and thresholds[1:] == [ALWAYS, 0.0]


def test_an_exit_that_saves_more_segments_may_lose_more():
    """Both early exits always lose 0.05. The first saves two segments, so it pays from a price of 0.025."""
    score = np.repeat([[0.95, 0.95, 1.0]], 500, axis=0)
    uncertainty = np.random.default_rng(1).random((500, 3))
    assert stopping_thresholds(score, uncertainty, 0.024) == [0.0] * 3
    assert stopping_thresholds(score, uncertainty, 0.026) == [ALWAYS, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("price", [0.005, 0.03, 0.1])
def test_the_cost_is_near_the_least_of_all_thresholds(seed, price):
    """With two early exits, all pairs of thresholds can be tried."""
    score, uncertainty = draw_examples(40, 3, seed)
    grids = [[0.0, *sorted(uncertainty[:, exit] + 1e-9)] for exit in range(2)]
    least = min(cost(score, uncertainty, [*pair, 0.0], price) for pair in product(*grids))
    full_depth = cost(score, uncertainty, [0.0] * 3, price)
    found = cost(score, uncertainty, stopping_thresholds(score, uncertainty, price), price)
    assert least <= found + 1e-12
    # Mostly they are equal; the search exit by exit can end in a local minimum.
    assert full_depth - found >= 0.85 * (full_depth - least)


def test_fitted_thresholds_cost_less_than_any_uniform_one():
    score, uncertainty = draw_examples(3000, 6, 5)
    # Gives each exit its own scale of uncertainty.
    uncertainty = uncertainty ** np.array([0.3, 3.0, 1.0, 0.5, 2.0, 1.0])
    for price in (0.002, 0.01, 0.05):
        uniform = min(cost(score, uncertainty, [t] * 5 + [0.0], price) for t in np.linspace(0, 1.01, 102))
        assert cost(score, uncertainty, stopping_thresholds(score, uncertainty, price), price) < uniform


def test_the_path_goes_from_full_depth_to_the_first_exit():
    score, uncertainty = draw_examples(2000, 5, 6)
    depths = [exits_taken(uncertainty, thresholds).mean() + 1 for thresholds in stopping_path(score, uncertainty)]
    assert len(depths) == len(PRICES) and depths[-1] == 1.0
    assert (
        depths[0] > 4 and (np.diff(depths) <= 0.05).all()
    )  # small increases are possible where other exits become the best
