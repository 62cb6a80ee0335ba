"""All runtimes share one exit rule: leave below the threshold, and at the last exit in any case."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.bundle.exit_rule import (
    FULL_DEPTH,
    change_uncertainty,
    exit_taken,
    exits_taken,
    leaves,
    patience_uncertainty,
)


@pytest.mark.parametrize("seed", range(3))
def test_one_input_and_many_take_the_same_exits(seed):
    random = np.random.default_rng(seed)
    uncertainties = random.random((300, 5)).astype(np.float32)
    thresholds = random.uniform(0.15, 0.5, 5).tolist()
    exits = exits_taken(uncertainties, thresholds).tolist()
    assert exits == [exit_taken(row.tolist(), thresholds) for row in uncertainties]
    assert len(set(exits)) == 5


def test_one_and_many_agree_at_the_threshold_too():
    """A phone compares a float32 uncertainty with a threshold that was written in decimals."""
    for hundredths in range(101):
        threshold = hundredths / 100
        uncertainties = np.array([[threshold, 0.0]], np.float32)
        assert exits_taken(uncertainties, [threshold] * 2)[0] == exit_taken(
            uncertainties[0].tolist(), [threshold] * 2
        ), threshold


def test_an_uncertainty_equal_to_the_threshold_stays():
    assert not leaves(0.5, 0.5, 0, 2)
    assert leaves(0.49, 0.5, 0, 2)
    assert exits_taken(np.array([[0.5, 0.9], [0.25, 0.9]]), [0.5, 0.5]).tolist() == [1, 0]


def test_threshold_0_runs_to_the_end_and_above_1_leaves_at_once():
    uncertainties = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.3]])
    assert exits_taken(uncertainties, [FULL_DEPTH] * 3).tolist() == [2, 2, 2]
    assert exits_taken(uncertainties, [1.01] * 3).tolist() == [0, 0, 0]
    assert [exit_taken(row, [0.0] * 3) for row in uncertainties.tolist()] == [2, 2, 2]
    assert [exit_taken(row, [1.01] * 3) for row in uncertainties.tolist()] == [0, 0, 0]


def test_each_exit_has_its_own_threshold_and_the_last_is_not_used():
    uncertainties = [0.4, 0.2, 0.9]
    assert exit_taken(uncertainties, [0.3, 0.3, 0.0]) == 1
    assert exit_taken(uncertainties, [0.5, 0.3, 0.0]) == 0
    assert exit_taken(uncertainties, [0.1, 0.1, 0.0]) == exit_taken(uncertainties, [0.1, 0.1, 1.0]) == 2
    assert exit_taken([0.9], [0.0]) == 0


def test_the_uncertainties_are_not_changed():
    uncertainties = np.array([[0.9, 0.9]])
    exits_taken(uncertainties, [0.1, 0.1])
    assert uncertainties.tolist() == [[0.9, 0.9]]


def test_no_segments_is_an_error():
    with pytest.raises(ValueError, match="no segments"):
        exit_taken([], [])


def pabee(answers: list, patience: int) -> int:
    """Returns the exit (0-based) by the paper's rule: leave after `patience` agreements in a row."""
    count = 0
    for exit, answer in enumerate(answers):
        count = count + 1 if exit and answer == answers[exit - 1] else 0
        if count == patience:
            return exit
    return len(answers) - 1


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
def test_patience_by_the_exit_rule_is_pabees_rule(patience):
    random = np.random.default_rng(patience)
    taken = set()
    for _ in range(300):
        answers = random.choice(["yes", "no", ""], 7, p=[0.6, 0.3, 0.1]).tolist()
        uncertainties = [patience_uncertainty(answers[: exit + 1]) for exit in range(7)]
        expected = pabee(answers, patience)
        for threshold in (1 / (patience + 0.5), 1 / patience, 1 / (patience + 1) + 1e-9):
            assert exit_taken(uncertainties, [threshold] * 7) == expected
        taken.add(expected)
    assert len(taken) >= 3  # otherwise the test proves nothing


def test_patience_is_1_at_the_first_exit_and_again_after_a_new_answer():
    assert patience_uncertainty([3]) == 1.0
    assert patience_uncertainty([3, 3]) == 0.5
    assert patience_uncertainty([3, 3, 3, 3]) == 0.25
    assert patience_uncertainty([3, 3, 3, 1]) == 1.0
    assert patience_uncertainty([3, 1, 3, 3]) == 0.5


def pabee_regression(predictions: list[float], patience: int, threshold: float) -> int:
    """Returns the exit (0-based) by the paper's rule for numbers: `patience` small changes in a row."""
    count = 0
    for exit, prediction in enumerate(predictions):
        count = count + 1 if exit and abs(prediction - predictions[exit - 1]) < threshold else 0
        if count == patience:
            return exit
    return len(predictions) - 1


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.1, 1.0])
def test_change_by_the_exit_rule_is_pabees_rule_for_regression(threshold):
    random, taken = np.random.default_rng(0), set()
    for _ in range(300):
        shares = np.clip(0.5 + np.cumsum(random.normal(0, 0.1, 6)), 0, 1).tolist()
        uncertainties = [change_uncertainty(shares[: exit + 1]) for exit in range(6)]
        taken.add(pabee_regression(shares, 1, threshold))
        assert exit_taken(uncertainties, [threshold] * 6) == pabee_regression(shares, 1, threshold)
    assert len(taken) >= 3 or threshold in (0.0, 1.0)


def test_change_is_1_at_the_first_exit_and_at_most_1_after_it():
    assert change_uncertainty([0.5]) == 1.0
    assert change_uncertainty([0.5, 0.25]) == change_uncertainty([9.0, 0.25, 0.5]) == 0.25
    assert change_uncertainty([-1.5, 1.5]) == 1.0
