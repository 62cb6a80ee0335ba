"""A study reports what stopping early costs: checked by hand on five examples and with plain loops on many."""

import json

import numpy as np
import pytest

from pipeline.bundle.exit_rule import exit_taken
from pipeline.bundle.manifest import Speed
from pipeline.exits.predictions import Predictions
from pipeline.exits.study import Costs, make_bins, study, sweep_thresholds
from pipeline.exits.study_document import Study

# Five examples at three exits: always right with low uncertainty; right from the second exit on; always right, with an
# uncertainty that falls late; never right; right at the last exit only.
SCORE = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]], float)
UNCERTAINTY = np.array([[0.1, 0.1, 0.1], [0.3, 0.2, 0.1], [0.5, 0.4, 0.1], [0.9, 0.8, 0.7], [0.7, 0.6, 0.2]])
LENGTH = np.array([10, 20, 30, 40, 50])
COSTS = Costs(LENGTH, LENGTH[:, None] * np.array([1.0, 2.0, 3.0]))


def make_predictions(score=SCORE, uncertainty=UNCERTAINTY, **measures) -> Predictions:
    return Predictions(score, score, uncertainty, [[0] * score.shape[1]] * len(score), measures=measures)


def make_speed(*thresholds, **promise) -> Speed:
    return Speed(
        thresholds=thresholds, metric="accuracy", value=0.5, value_full_depth=0.5, mean_depth=1.0, examples=9, **promise
    )


def make_study(*arguments, speeds=(), **measures) -> Study:
    return study(make_predictions(*arguments, **measures), COSTS, (1, 2, 4), "entropy", dict(speeds))


def draw_examples(count: int, exits: int, seed: int) -> tuple[Predictions, Costs]:
    """Draws examples whose scores fall with their uncertainty."""
    random = np.random.default_rng(seed)
    uncertainty = random.random((count, exits)) ** 3
    score = (random.random((count, exits)) > 0.6 * uncertainty).astype(float)
    length = random.integers(4, 60, count)
    flops = length[:, None] * np.arange(1, exits + 1) + 3.0
    measures = {"margin": random.random((count, exits))}
    return Predictions(score, score, uncertainty, [[0] * exits] * count, measures=measures), Costs(length, flops)


def read_curve(curve, threshold: float) -> tuple[float, float, float]:
    """Returns score, mean depth and flops at a threshold of a sweep."""
    index = curve.thresholds.index(threshold)
    return curve.score[index], curve.mean_depth[index], curve.flops[index]


def test_the_sweep_is_as_computed_by_hand():
    result = make_study()
    assert (result.task, result.metric, result.examples, result.full_depth) == ("classification", "accuracy", 5, 0.8)
    assert result.full_depth_flops == 90
    curve = result.own.curve
    assert read_curve(curve, 0.0) == (0.8, 3, 1)
    assert read_curve(curve, 0.2) == (0.8, 2.6, pytest.approx((10 + 60 + 90 + 120 + 150) / 450, abs=1e-6))
    # The second example leaves with a wrong answer, the third with a right one after two segments.
    assert read_curve(curve, 0.45) == (0.6, 2.0, pytest.approx((10 + 20 + 60 + 120 + 150) / 450, abs=1e-6))
    assert read_curve(curve, 1.01) == (0.4, 1, pytest.approx(1 / 3, abs=1e-6))


def test_single_exits_are_as_computed_by_hand():
    first, second, last = make_study().exits
    assert [(exit.layer, exit.score) for exit in (first, second, last)] == [(1, 0.4), (2, 0.6), (4, 0.8)]
    assert (first.flops, last.flops) == (pytest.approx(1 / 3, abs=1e-6), 1.0)
    assert first.quantiles[2] == 0.5 and second.quantiles[2] == 0.4
    assert first.exact_match is None


def test_within_loss_is_the_boldest_threshold_before_the_loss_is_too_large():
    for point in make_study().own.within:
        # Just above 0.3 the second example leaves with a wrong answer, a fifth of the score.
        assert (point.thresholds, point.loss, point.mean_depth) == ([0.3] * 3, 0.0, 2.4)
        assert point.exits == [1, 1, 3]
        assert point.flops == pytest.approx(82 / 90, abs=1e-6) and point.speed_up == pytest.approx(90 / 82, abs=1e-6)


def test_a_loss_that_a_bolder_threshold_makes_up_for_still_counts():
    score = SCORE.copy()
    score[3, 0] = 1  # above a threshold of 0.9 the fourth example leaves with a right answer, unlike at full depth
    score[4, 0] = 1
    result = make_study(score)
    assert read_curve(result.own.curve, 1.01)[0] == 0.8
    assert [point.thresholds[0] for point in result.own.within] == [0.3] * 3


def test_a_loss_equal_to_the_bound_is_allowed():
    count = 200
    uncertainty = np.stack([np.arange(1, count + 1) / (count + 1), np.zeros(count)], axis=1)
    score = np.ones((count, 2))
    score[150:, 0] = 0
    costs = Costs(np.full(count, 5), np.ones((count, 2)))
    predictions = Predictions(score, score, uncertainty, [[0, 0]] * count, measures={})
    within = study(predictions, costs, (1, 2), "entropy", {}).own.within
    assert [point.loss for point in within] == [0.005, 0.01, 0.02]
    assert [point.exits[0] for point in within] == [151, 152, 154]


def test_named_speeds_keep_their_thresholds_and_promises():
    result = make_study(
        speeds={"exact": make_speed(0.2, 0.45, 0.0, max_loss=0.005, delta=0.1), "mine": make_speed(1.1, 0, 0)}.items()
    )
    exact, mine = result.speeds
    assert (exact.speed, exact.thresholds, exact.max_loss, exact.delta) == ("exact", [0.2, 0.45, 0.0], 0.005, 0.1)
    assert (exact.exits, exact.score, exact.loss, exact.mean_depth) == ([1, 2, 2], 0.8, 0.0, 2.2)
    assert (mine.exits, mine.loss, mine.max_loss) == ([5, 0, 0], 0.4, None)


def test_thirds_are_cut_by_length():
    (point,) = make_study(speeds={"s": make_speed(0.45, 0.45, 0)}.items()).speeds
    thirds = [(third.examples, third.shortest, third.longest, third.loss, third.mean_depth) for third in point.thirds]
    assert thirds == [(2, 10, 20, 0.5, 1.0), (2, 30, 40, 0.0, 2.5), (1, 50, 50, 0.0, 3.0)]


def test_measures_are_compared_on_the_same_answers():
    perfect = np.array([[0, 0, 0], [0.9, 0, 0], [0, 0, 0], [0, 0, 0], [0.9, 0.9, 0]])
    # The bundle's own measure is the programs' uncertainty; an alternative of the same name is ignored.
    result = make_study(oracle=perfect + 0.01, entropy=perfect)
    assert [(measure.measure, measure.own) for measure in result.measures] == [("entropy", True), ("oracle", False)]
    own, oracle = result.measures
    assert own.curve == make_study().own.curve
    assert [point.mean_depth for point in oracle.within] == [pytest.approx((1 + 2 + 1 + 1 + 3) / 5)] * 3
    assert read_curve(oracle.curve, 0.0)[:2] == (0.8, 3)
    # One of six pairs of a wrong and a right answer is in the wrong order.
    assert own.rankings[0].auroc == pytest.approx(5 / 6, abs=1e-6)
    assert own.rankings[2].auroc == 1.0


def test_fitted_thresholds_are_measured_on_the_other_half(monkeypatch):
    """With a single price, each half leaves by the thresholds that were fitted to the other."""
    predictions, costs = draw_examples(60, 3, 3)
    fitted_to = []

    def spy(score, uncertainty, price):
        fitted_to.append({tuple(row) for row in uncertainty})
        return [0.4, 0.6, 0.0] if len(fitted_to) % 2 else [0.2, 0.1, 0.0]

    monkeypatch.setattr("pipeline.exits.study.stopping_thresholds", spy)
    monkeypatch.setattr("pipeline.exits.study.PRICES", [0.01])
    monkeypatch.setattr("pipeline.exits.study.LOSSES", (1.0,))
    (fitted,) = study(predictions, costs, (1, 2, 3), "entropy", {}).own.fitted
    first, second = fitted_to[:2]
    assert len(first) == len(second) == 30 and not first & second
    # The second half leaves by the thresholds that were fitted to the first, and the other way round.
    exits = [
        exit_taken(row, [0.4, 0.6, 0.0] if tuple(row) in second else [0.2, 0.1, 0.0]) for row in predictions.uncertainty
    ]
    assert fitted.exits == [exits.count(exit) for exit in range(3)]
    assert fitted.mean_depth == pytest.approx(np.mean(exits) + 1, abs=1e-6)
    lost = np.mean([row[-1] - row[exit] for row, exit in zip(predictions.score, exits)])
    assert fitted.loss == pytest.approx(lost, abs=1e-6)
    assert fitted.score == pytest.approx(predictions.score[:, -1].mean() - lost, abs=1e-6)


def test_leaving_at_an_exit_as_good_as_the_last_costs_nothing():
    """A single threshold for both exits cannot use it: the first exit guesses and forces a low threshold."""
    random = np.random.default_rng(4)
    right, guess = (random.random(600) < 0.9).astype(float), (random.random(600) < 0.5).astype(float)
    score, uncertainty = np.stack([guess, right, right], axis=1), random.random((600, 3))
    predictions = Predictions(score, score, uncertainty, [[0] * 3] * 600)
    own = study(predictions, Costs(np.full(600, 5), np.ones((600, 3))), (1, 2, 3), "entropy", {}).own
    assert [outcome.mean_depth for outcome in own.fitted] == pytest.approx([2.0] * 3, abs=0.02)
    assert min(point.mean_depth for point in own.within) > 2.5


@pytest.mark.parametrize("seed", [0, 1])
def test_sweeps_equal_a_plain_loop(seed):
    predictions, costs = draw_examples(120, 4, seed)
    result = study(predictions, costs, (1, 2, 3, 4), "entropy", {})
    full = costs.flops[:, -1].mean()
    for measure, uncertainty in zip(result.measures, (predictions.uncertainty, predictions.measures["margin"])):
        curve = measure.curve
        assert curve.thresholds == sorted(set(curve.thresholds)) and len(curve.thresholds) > 200
        boldest = {loss: 0.0 for loss in (0.005, 0.01, 0.02)}
        safe = set(boldest)
        for index, threshold in enumerate(curve.thresholds):
            exits = [exit_taken(row, [threshold] * 4) for row in uncertainty]
            score = np.mean([predictions.score[row, exit] for row, exit in enumerate(exits)])
            flops = np.mean([costs.flops[row, exit] for row, exit in enumerate(exits)])
            assert curve.score[index] == pytest.approx(score, abs=1e-6)
            assert curve.mean_depth[index] == pytest.approx(np.mean(exits) + 1, abs=1e-6)
            assert curve.flops[index] == pytest.approx(flops / full, abs=1e-6)
            safe = {loss for loss in safe if predictions.score[:, -1].mean() - score <= loss + 1e-9}
            boldest |= {loss: threshold for loss in safe}
        assert {point.max_loss: point.thresholds[0] for point in measure.within} == boldest
        assert curve.mean_depth[-1] == 1 and curve.mean_depth[0] == 4


def test_question_answering_scores_f1_and_ranks_by_exact_match():
    f1 = np.array([[0.5, 1.0], [0.0, 0.8], [1.0, 1.0]])
    exact = (f1 == 1).astype(float)
    uncertainty = np.array([[0.2, 0.1], [0.9, 0.5], [0.1, 0.1]])
    predictions = Predictions(f1, exact, uncertainty, [["a", "b"], ["c", "d"], ["e", "f"]], task="qa")
    result = study(predictions, Costs(np.array([1, 2, 3]), np.ones((3, 2))), (3, 6), "entropy", {})
    assert (result.task, result.metric) == ("qa", "f1")
    assert [exit.score for exit in result.exits] == pytest.approx([0.5, 2.8 / 3], abs=1e-6)
    assert [exit.exact_match for exit in result.exits] == pytest.approx([1 / 3, 2 / 3], abs=1e-6)
    assert result.own.rankings[0].auroc == 1.0 and result.own.rankings[0].spearman == -1.0
    assert result.own.rankings[1].auroc == 1.0  # an F1 of 0.8 is not an exact match


def test_bins_are_tenths_and_keep_equal_values_together():
    values = np.linspace(0, 1, 200)
    bins = make_bins(values, 1 - values)
    assert [bin.examples for bin in bins] == [20] * 10
    for index, bin in enumerate(bins):
        mean = values[20 * index : 20 * index + 20].mean()
        assert (bin.uncertainty, bin.score) == pytest.approx((mean, 1 - mean), abs=1e-6)
    tied = np.repeat([0.0, 0.5, 1.0], [150, 40, 10])
    assert [(bin.examples, bin.uncertainty) for bin in make_bins(tied, tied)] == [(150, 0.0), (40, 0.5), (10, 1.0)]
    assert [bin.examples for bin in make_bins(np.full(7, 0.3), np.ones(7))] == [7]


def test_thresholds_are_dense_where_examples_are():
    uncertainty = np.stack([np.linspace(0.0001, 0.003, 300), np.ones(300)], axis=1)
    thresholds = sweep_thresholds(uncertainty)
    assert ((thresholds > 0) & (thresholds < 0.003)).sum() > 150
    assert set(np.arange(101) / 100) <= set(thresholds) and thresholds[-1] > 1


def test_a_single_exit_is_always_taken():
    predictions = Predictions(SCORE[:, :1], SCORE[:, :1], UNCERTAINTY[:, :1], [[0]] * 5, measures={})
    result = study(predictions, Costs(LENGTH, COSTS.flops[:, :1]), (3,), "entropy", {"exact": make_speed(0.5)})
    assert set(result.own.curve.mean_depth) == {1} and result.speeds[0].loss == 0


def test_a_study_survives_json():
    result = make_study(speeds={"exact": make_speed(0.2, 0.45, 0.0)}.items(), patience=np.array([[1, 0.5, 0.25]] * 5))
    assert Study.model_validate_json(json.dumps(result.model_dump())) == result
