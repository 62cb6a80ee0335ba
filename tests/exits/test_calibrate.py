"""The bound on a named speed holds as often as promised, and calibration finds speed where there is some."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import multinomial

from pipeline.bundle.exit_rule import exits_taken
from pipeline.exits.bound import (
    losses_needed,
    mean_exceeds_p_value,
    paired_level,
    paired_limit,
    paired_score,
    shows_less,
)
from pipeline.exits.calibrate import (
    DRAFT_SHARE,
    calibrate,
    calibrate_speeds,
    examples_needed,
    orders_of_tests,
    smallest_loss,
    speed_at,
)
from pipeline.exits.predictions import Predictions

SPLITS = 200
DELTA = 0.1


def draw_population(kind: str, count: int = 40000, exits: int = 4) -> Predictions:
    """Draws predictions of a model whose early exits are uncertain about hard examples.

    They are also wrong on some examples of low uncertainty, and right on some where the last exit is wrong.
    """
    random = np.random.default_rng(1)
    hard = random.beta(0.6, 1.2, count)[:, None]
    depth = np.arange(1, exits + 1)[None] / exits
    wrong = np.clip(0.05 + 0.6 * hard * (1.15 - depth), 0, 1)
    uncertainty = np.clip(hard * (1.3 - 0.8 * depth) + 0.15 * random.standard_normal((count, exits)), 0, 1)
    score = (random.random((count, exits)) > wrong).astype(float)
    if kind == "qa":  # token F1 is a fraction for answers that overlap in part
        partial = random.random((count, exits)) < 0.4
        score = np.where(partial, random.integers(0, 11, (count, exits)) / 10 * (1 - 0.5 * wrong), score)
    return Predictions(score, score, uncertainty.astype(np.float32), [["" if kind == "qa" else 0] * exits])


def compute_losses(predictions: Predictions, thresholds) -> np.ndarray:
    exits = exits_taken(predictions.uncertainty, thresholds)
    return predictions.score[:, -1] - predictions.score[np.arange(len(exits)), exits]


def take(predictions: Predictions, rows: np.ndarray) -> Predictions:
    return Predictions(
        predictions.score[rows], predictions.exact[rows], predictions.uncertainty[rows], predictions.answers
    )


@pytest.mark.parametrize(
    ("kind", "max_loss", "count"), [("classification", 0.01, 4000), ("classification", 0.03, 600), ("qa", 0.02, 700)]
)
def test_the_bound_holds_on_new_examples(kind, max_loss, count):
    """Among many calibration splits, at most a share of delta gives thresholds that lose too much on the population."""
    population = draw_population(kind)
    uniform = {t: compute_losses(population, [t] * population.exits).mean() for t in np.arange(0.02, 1.01, 0.02)}
    # Guards that the bound can be missed: answers change both ways, the boldest threshold loses too much, others do
    # not.
    changes = compute_losses(population, [1.01] * population.exits)
    assert (changes > 0).mean() > 0.05 and (changes < 0).mean() > 0.02
    assert changes.mean() > max_loss and sum(0 < loss <= max_loss for loss in uniform.values()) >= 2
    random = np.random.default_rng(2)
    losses, depths = [], []
    for split in range(SPLITS):
        rows = random.integers(0, len(population.score), count)
        metric = "accuracy" if kind == "classification" else "f1"
        speed = calibrate(take(population, rows), max_loss, DELTA, metric, seed=split)
        losses.append(compute_losses(population, speed.thresholds).mean())
        depths.append(speed.mean_depth)
    assert np.mean(np.array(losses) > max_loss) <= DELTA
    assert np.mean(depths) < population.exits - 0.1  # full depth would satisfy the bound without any speed


@pytest.mark.parametrize(
    ("kind", "count", "max_losses"),
    [
        ("classification", 300, {"exact": 0.01, "balanced": 0.02, "fast": 0.05}),
        ("classification", 1000, {"exact": 0.005, "balanced": 0.01, "fast": 0.02}),
        ("qa", 500, {"exact": 0.02, "balanced": 0.04, "fast": 0.08}),
    ],
)
def test_the_bounds_hold_for_each_of_several_nested_speeds(kind, count, max_losses):
    """Each speed's own promise holds with 1 - delta, and none that may lose more runs more segments."""
    population, random = draw_population(kind), np.random.default_rng(11)
    metric = "accuracy" if kind == "classification" else "f1"
    lost: dict[str, list[bool]] = {name: [] for name in max_losses}
    depths = []
    for split in range(40):
        sample = take(population, random.integers(0, len(population.score), count))
        speeds = calibrate_speeds(sample, max_losses, DELTA, metric, seed=split)
        depths.append([speed.mean_depth for speed in speeds.values()])
        for name, speed in speeds.items():
            lost[name].append(compute_losses(population, speed.thresholds).mean() > max_losses[name])
            assert (speed.max_loss, speed.delta) == (max_losses[name], DELTA)
    assert (np.diff(depths, axis=1) <= 0).all()
    assert np.mean(depths, axis=0)[-1] < population.exits - 0.1 and np.mean(np.diff(depths, axis=1) < 0) > 0.3
    # Of 40 draws with a share of 0.1, at most a quarter are wrong with probability 0.998.
    assert all(np.mean(wrong) <= 0.25 for wrong in lost.values())


def test_a_bolder_speed_takes_what_a_more_careful_one_has_shown(monkeypatch):
    """Its own candidates fail at once; without the other's it would run every segment."""
    count = 3000
    score, uncertainty = np.tile([1.0, 0.0, 1.0], (count, 1)), np.tile([0.5, 0.2, 0.0], (count, 1))
    good, bad = [0.6, 0.0, 0.0], [0.0, 0.3, 0.0]
    orders = {0.01: [good], 0.02: [bad, good]}
    monkeypatch.setattr("pipeline.exits.calibrate.candidates", lambda score, uncertainty, max_loss: orders[max_loss])
    predictions = Predictions(score, score, uncertainty, [[0]])
    assert calibrate(predictions, 0.02, DELTA, "accuracy").mean_depth == 3
    speeds = calibrate_speeds(predictions, {"fast": 0.02, "balanced": 0.01}, DELTA, "accuracy")
    assert list(speeds) == ["fast", "balanced"] and {speed.mean_depth for speed in speeds.values()} == {1.0}


def test_each_order_of_tests_begins_with_that_of_the_more_careful_speed():
    """So one series of tests serves both, and nothing is chosen between two series."""
    population = draw_population("classification")
    sample = take(population, np.arange(400))
    exact, balanced, fast = orders_of_tests(sample.score, sample.uncertainty, (0.005, 0.01, 0.02))
    assert balanced[: len(exact)] == exact and fast[: len(balanced)] == balanced
    assert 0 < len(exact) <= len(balanced) <= len(fast) and len(fast) == len({tuple(entry) for entry in fast})


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("examples", [20, 125, 300])
def test_the_smallest_loss_is_what_so_many_examples_can_show(examples, metric):
    smallest = smallest_loss(examples, DELTA, metric)
    assert examples_needed(smallest, DELTA, metric) <= examples < examples_needed(smallest - 0.001, DELTA, metric)
    assert smallest_loss(1, DELTA, metric) is None


def test_more_data_allows_more_speed():
    population = draw_population("classification")
    depths = [
        calibrate(take(population, np.arange(count)), 0.02, DELTA, "accuracy").mean_depth
        for count in (150, 5000, 40000)
    ]
    assert depths[0] > depths[1] > depths[2]
    # With much data it is about as fast as the boldest uniform threshold that is safe on the population, or faster.
    speed = calibrate(population, 0.02, DELTA, "accuracy")
    assert compute_losses(population, speed.thresholds).mean() <= 0.02
    safe = max(t for t in np.arange(0.02, 1.01, 0.02) if compute_losses(population, [t] * 4).mean() <= 0.02)
    assert speed.mean_depth <= (exits_taken(population.uncertainty, [safe] * 4) + 1).mean() + 0.1


def test_each_exit_gets_its_own_threshold():
    """The second exit is as good as the last, so it is always taken; the first guesses above an uncertainty of 0.3."""
    random = np.random.default_rng(6)
    count = 8000
    uncertainty = random.random((count, 3))
    right = random.random(count) < 0.9
    guess = random.random(count) < 0.5
    score = np.stack([np.where(uncertainty[:, 0] < 0.3, right, guess), right, right], axis=1).astype(float)
    speed = calibrate(Predictions(score, score, uncertainty, [[0]]), 0.01, DELTA, "accuracy")
    assert 0.2 < speed.thresholds[0] < 0.35 and speed.thresholds[1] > 0.99
    assert 1.65 < speed.mean_depth < 1.8  # a uniform threshold of 0.3 gives 2.19


def test_exits_without_any_loss_are_taken():
    random = np.random.default_rng(3)
    score = np.repeat(random.random((2000, 1)) < 0.9, 5, axis=1).astype(float)  # all exits give the same answer
    speed = calibrate(Predictions(score, score, random.random((2000, 5)), [[0]]), 0.01, DELTA, "accuracy")
    assert speed.thresholds[0] > 0.97 and speed.mean_depth < 1.05
    assert speed.value == speed.value_full_depth
    assert (speed.max_loss, speed.delta, speed.examples) == (0.01, DELTA, 2000)


def test_too_few_examples_give_full_depth():
    random = np.random.default_rng(4)
    score = np.repeat(random.random((50, 1)) < 0.9, 5, axis=1).astype(float)
    speed = calibrate(Predictions(score, score, random.random((50, 5)), [[0]]), 0.01, DELTA, "accuracy")
    assert speed.thresholds == [0.0] * 5 and speed.mean_depth == 5.0


def test_exits_that_lose_are_not_taken():
    count = 2000
    score = np.tile([0.0, 0.0, 1.0], (count, 1))
    speed = calibrate(Predictions(score, score, np.full((count, 3), 0.3), [[0]]), 0.02, DELTA, "accuracy")
    assert speed.mean_depth == 3.0 and speed.value == 1.0
    assert max(speed.thresholds) <= 0.3  # a threshold of 0.3 is not above the uncertainty, so nothing leaves


def test_testing_stops_at_the_first_candidate_that_is_not_safe(monkeypatch):
    """Later candidates are ignored even if they did well: picking the best of many would void the bound."""
    count = 3000
    score, uncertainty = np.tile([1.0, 0.0, 1.0], (count, 1)), np.tile([0.5, 0.2, 0.0], (count, 1))
    good, bad = [0.6, 0.0, 0.0], [0.0, 0.3, 0.0]
    predictions = Predictions(score, score, uncertainty, [[0]])
    for order, expected in (([good, bad], good), ([bad, good], [0.0] * 3)):
        monkeypatch.setattr("pipeline.exits.calibrate.candidates", lambda *_, order=order: order)
        assert calibrate(predictions, 0.02, DELTA, "accuracy").thresholds == expected


def test_candidates_are_proposed_on_examples_that_do_not_test_them(monkeypatch):
    """Candidates come from the first part of the shuffled split only."""
    count = 1000
    score = np.ones((count, 3))
    uncertainty = np.random.default_rng(7).random((count, 3))
    seen = []

    def spy(score, uncertainty, max_loss):
        seen.append(uncertainty)
        return []

    monkeypatch.setattr("pipeline.exits.calibrate.candidates", spy)
    for seed in (0, 1):
        calibrate(Predictions(score, score, uncertainty, [[0]]), 0.02, DELTA, "accuracy", seed)
    assert all(len(rows) == count * DRAFT_SHARE for rows in seen) and not np.array_equal(*seen)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize(("max_loss", "delta"), [(0.005, 0.1), (0.02, 0.1), (0.02, 0.01)])
def test_examples_needed_is_the_smallest_split_that_can_show_the_bound(max_loss, delta, metric):
    paired = metric == "accuracy"
    needed = losses_needed(max_loss, delta, paired)
    assert shows_less(np.zeros(needed), max_loss, delta, paired)
    assert not shows_less(np.zeros(needed - 1), max_loss, delta, paired)
    # If every exit answers as the last one does, it suffices; a tenth fewer examples do not.
    least = examples_needed(max_loss, delta, metric)
    for count, suffices in ((least + 2, True), (int(0.9 * least), False)):
        score = np.ones((count, 3))
        uncertainty = np.random.default_rng(9).random((count, 3))
        speed = calibrate(Predictions(score, score, uncertainty, [[0]]), max_loss, delta, metric)
        assert (speed.mean_depth < 3) == suffices


def test_a_speed_reports_what_was_measured():
    score = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], float)
    uncertainty = np.array([[0.1, 0.0, 0.0], [0.6, 0.2, 0.0], [0.9, 0.9, 0.9], [0.4, 0.0, 0.0]])
    speed = speed_at(Predictions(score, score, uncertainty, [[0]]), [0.5, 0.3, 0.0], "accuracy", None, None)
    assert (speed.value, speed.value_full_depth) == (1.0, 0.75)  # exits 1, 2, 3, 1 are right
    assert speed.mean_depth == (1 + 2 + 3 + 1) / 4 and speed.examples == 4 and speed.max_loss is None


def draw_flips(random, count, bound):
    """Draws 1, 0 and -1 with mean `bound`."""
    return random.choice([1.0, 0.0, -1.0], count, p=[0.1 + bound, 0.8 - bound, 0.1])


def draw_rare(random, count, bound):
    """Draws rare losses of 1, for which a test based on the normal distribution fails."""
    return (random.random(count) < bound).astype(float)


def draw_fractions(random, count, bound):
    """Draws losses in tenths, mostly equal to the bound, with mean `bound`."""
    return np.clip(random.integers(-10, 11, count) / 10 * (random.random(count) < 0.3), -1, 1) + bound


@pytest.mark.parametrize("draw", [draw_flips, draw_rare, draw_fractions])
def test_p_values_are_super_uniform_if_the_mean_is_the_bound(draw):
    random, bound, runs = np.random.default_rng(5), 0.02, 1500
    values = np.array(
        [mean_exceeds_p_value(np.clip(draw(random, 300, bound), -1, 1), bound, DELTA) for _ in range(runs)]
    )
    assert ((0 <= values) & (values <= 1)).all()
    for level in (0.01, 0.05, 0.1, 0.2):
        assert (values <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_p_values_fall_with_more_evidence():
    assert mean_exceeds_p_value(np.zeros(2000), 0.01, DELTA) < 1e-3
    assert mean_exceeds_p_value(np.zeros(20), 0.01, DELTA) > DELTA
    assert mean_exceeds_p_value(np.full(2000, 0.02), 0.01, DELTA) == 1.0
    assert mean_exceeds_p_value(np.full(50, -1.0), 0.01, DELTA) < 1e-3


@pytest.mark.parametrize(
    ("lost", "gained", "examples", "bound"),
    [(0, 0, 300, 0.01), (3, 9, 300, 0.02), (30, 12, 500, 0.005), (7, 0, 80, 0.1)],
)
def test_the_paired_score_uses_the_most_likely_distribution(lost, gained, examples, bound):
    """Compares Tango's closed form with a numerical search for the most likely probability of a gain."""

    def negative_log_likelihood(gain):
        counts = (lost, gained, examples - lost - gained)
        probabilities = (gain + bound, gain, 1 - 2 * gain - bound)
        return -sum(xlogy(count, probability) for count, probability in zip(counts, probabilities))

    bounds = (0, (1 - bound) / 2)
    gain = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
    expected = (lost - gained - examples * bound) / math.sqrt(examples * (2 * gain + bound - bound**2))
    assert float(paired_score(lost, gained, examples, bound)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("examples", "bound"), [(40, 0.1), (90, 0.03)])
def test_the_paired_test_keeps_its_level_for_any_probability_of_a_gain(examples, bound):
    """Sums the multinomial probabilities of all outcomes of a small sample that pass."""
    lost, gained = (grid.ravel() for grid in np.meshgrid(np.arange(examples + 1), np.arange(examples + 1)))
    lost, gained = lost[lost + gained <= examples], gained[lost + gained <= examples]
    passes = paired_score(lost, gained, examples, bound) <= paired_limit(examples, bound, DELTA)
    outcomes = np.stack([lost, gained, examples - lost - gained], axis=1)

    def level(gain, mean):
        return multinomial(examples, [gain + mean, gain, 1 - 2 * gain - mean]).pmf(outcomes)[passes].sum()

    gains = np.linspace(0, (1 - bound) / 2 - 1e-9, 331)
    levels = [level(gain, bound) for gain in gains]
    # Between the points at which `paired_level` is computed, the level may be slightly higher.
    assert 0.6 * DELTA < max(levels) <= DELTA + 5e-4
    assert max(levels) == pytest.approx(paired_level(paired_limit(examples, bound, DELTA), examples, bound), abs=5e-4)
    # A mean above the bound passes even less often.
    assert all(level(gain, 1.5 * bound) <= at_bound for gain, at_bound in zip(gains, levels) if gain + bound < 0.4)


def test_the_paired_test_shows_more_than_betting():
    """Uses the changes of answer that an early exit of a good model makes: few, and nearly as many gains as losses."""
    random, runs = np.random.default_rng(10), 200
    draws = [random.choice([1.0, 0.0, -1.0], 2000, p=[0.011, 0.98, 0.009]) for _ in range(runs)]
    paired, betting = (np.mean([shows_less(draw, 0.01, DELTA, kind) for draw in draws]) for kind in (True, False))
    assert betting < 0.85 < paired


def test_the_paired_test_counts_gains_and_losses():
    assert shows_less(np.zeros(500), 0.005, DELTA, paired=True)
    assert not shows_less(np.zeros(400), 0.005, DELTA, paired=True)
    changes = np.repeat([1.0, -1.0, 0.0], [40, 40, 920])
    assert shows_less(changes, 0.02, DELTA, paired=True)
    assert not shows_less(-np.sort(-changes)[:960], 0.02, DELTA, paired=True)
