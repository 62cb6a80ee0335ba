"""A study says what stopping early costs: by hand on five examples, by plain loops on many."""

import json

import numpy as np
import pytest

from pipeline.bundle.exit_rule import exit_taken
from pipeline.bundle.manifest import Speed
from pipeline.exits.predictions import Predictions
from pipeline.exits.study import Costs, Study, bins_of, study, thresholds_of

# Five examples at three exits: one always right and sure, one right from the second exit on, one right and slow to be sure,
# one never right, one right at the last exit only.
SCORE = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]], float)
UNSURE = np.array([[0.1, 0.1, 0.1], [0.3, 0.2, 0.1], [0.5, 0.4, 0.1], [0.9, 0.8, 0.7], [0.7, 0.6, 0.2]])
LENGTH = np.array([10, 20, 30, 40, 50])
COSTS = Costs(LENGTH, LENGTH[:, None] * np.array([1.0, 2.0, 3.0]))


def predictions(score=SCORE, unsure=UNSURE, **measures) -> Predictions:
    return Predictions(score, score, unsure, [[0] * score.shape[1]] * len(score), measures=measures)


def speed(*thresholds, **promise) -> Speed:
    return Speed(
        thresholds=thresholds, metric="accuracy", value=0.5, value_full_depth=0.5, mean_depth=1.0, examples=9, **promise
    )


def made(*arguments, speeds=(), **measures) -> Study:
    return study(predictions(*arguments, **measures), COSTS, (1, 2, 4), "entropy", dict(speeds))


def drawn(count: int, exits: int, seed: int) -> tuple[Predictions, Costs]:
    """Random examples whose uncertainty says something of their scores."""
    chance = np.random.default_rng(seed)
    unsure = chance.random((count, exits)) ** 3
    score = (chance.random((count, exits)) > 0.6 * unsure).astype(float)
    length = chance.integers(4, 60, count)
    flops = length[:, None] * np.arange(1, exits + 1) + 3.0
    margin = chance.random((count, exits))
    return Predictions(score, score, unsure, [[0] * exits] * count, measures={"margin": margin}), Costs(length, flops)


def at(curve, threshold: float) -> tuple[float, float, float]:
    place = curve.thresholds.index(threshold)
    return curve.score[place], curve.mean_depth[place], curve.flops[place]


def test_the_sweep_by_hand():
    result = made()
    assert (result.task, result.metric, result.examples, result.full_depth) == ("classification", "accuracy", 5, 0.8)
    assert result.full_depth_flops == 90
    curve = result.own.curve
    assert at(curve, 0.0) == (0.8, 3, 1)
    assert at(curve, 0.2) == (0.8, 2.6, pytest.approx((10 + 60 + 90 + 120 + 150) / 450, abs=1e-6))
    # The second example leaves wrong, the third right, after two segments.
    assert at(curve, 0.45) == (0.6, 2.0, pytest.approx((10 + 20 + 60 + 120 + 150) / 450, abs=1e-6))
    assert at(curve, 1.01) == (0.4, 1, pytest.approx(1 / 3, abs=1e-6))


def test_exits_alone_by_hand():
    first, second, last = made().exits
    assert [(each.layer, each.score) for each in (first, second, last)] == [(1, 0.4), (2, 0.6), (4, 0.8)]
    assert (first.flops, last.flops) == (pytest.approx(1 / 3, abs=1e-6), 1.0)
    assert first.quantiles[2] == 0.5 and second.quantiles[2] == 0.4
    assert first.exact_match is None


def test_loss_stays_within_at_the_boldest_threshold_before_it_does_not():
    for point in made().own.within:
        # Just above 0.3 the second example leaves wrong: a fifth of the score.
        assert (point.thresholds, point.loss, point.mean_depth) == ([0.3] * 3, 0.0, 2.4)
        assert point.exits == [1, 1, 3]
        assert point.flops == pytest.approx(82 / 90, abs=1e-6) and point.speed_up == pytest.approx(90 / 82, abs=1e-6)


def test_a_loss_that_luck_makes_good_again_is_a_loss():
    score = SCORE.copy()
    score[3, 0] = 1  # from a threshold of 0.9 on the fourth example leaves right, which full depth is not
    score[4, 0] = 1
    result = made(score)
    assert at(result.own.curve, 1.01)[0] == 0.8
    assert [point.thresholds[0] for point in result.own.within] == [0.3] * 3


def test_a_loss_of_just_the_bound_is_within():
    count = 200
    unsure = np.stack([np.arange(1, count + 1) / (count + 1), np.zeros(count)], axis=1)
    score = np.ones((count, 2))
    score[150:, 0] = 0
    costs = Costs(np.full(count, 5), np.ones((count, 2)))
    within = study(
        Predictions(score, score, unsure, [[0, 0]] * count, measures={}), costs, (1, 2), "entropy", {}
    ).own.within
    assert [point.loss for point in within] == [0.005, 0.01, 0.02]
    assert [point.exits[0] for point in within] == [151, 152, 154]


def test_named_speeds_keep_their_thresholds_and_promises():
    result = made(speeds={"exact": speed(0.2, 0.45, 0.0, max_loss=0.005, delta=0.1), "mine": speed(1.1, 0, 0)}.items())
    exact, mine = result.speeds
    assert (exact.speed, exact.thresholds, exact.max_loss, exact.delta) == ("exact", [0.2, 0.45, 0.0], 0.005, 0.1)
    assert (exact.exits, exact.score, exact.loss, exact.mean_depth) == ([1, 2, 2], 0.8, 0.0, 2.2)
    assert (mine.exits, mine.loss, mine.max_loss) == ([5, 0, 0], 0.4, None)


def test_thirds_by_length():
    (point,) = made(speeds={"s": speed(0.45, 0.45, 0)}.items()).speeds
    thirds = [(third.examples, third.shortest, third.longest, third.loss, third.mean_depth) for third in point.thirds]
    assert thirds == [(2, 10, 20, 0.5, 1.0), (2, 30, 40, 0.0, 2.5), (1, 50, 50, 0.0, 3.0)]


def test_measures_are_compared_on_the_same_answers():
    perfect = np.array([[0, 0, 0], [0.9, 0, 0], [0, 0, 0], [0, 0, 0], [0.9, 0.9, 0]])
    result = made(
        oracle=perfect + 0.01, entropy=perfect
    )  # the bundle's own is what its programs say, not what is computed beside them
    assert [(each.measure, each.own) for each in result.measures] == [("entropy", True), ("oracle", False)]
    own, oracle = result.measures
    assert own.curve == made().own.curve
    assert [point.mean_depth for point in oracle.within] == [pytest.approx((1 + 2 + 1 + 1 + 3) / 5)] * 3
    assert at(oracle.curve, 0.0)[:2] == (0.8, 3)
    assert own.rankings[0].auroc == pytest.approx(
        5 / 6, abs=1e-6
    )  # one wrong answer of three is surer than one of two right ones
    assert own.rankings[2].auroc == 1.0


def test_thresholds_of_their_own_are_measured_on_what_they_were_not_fitted_to(monkeypatch):
    """By hand: with one price, each half leaves by what the other half was given."""
    given, costs = drawn(60, 3, 3)
    fitted_to = []

    def spy(score, uncertainty, price):
        fitted_to.append({tuple(row) for row in uncertainty})
        return [0.4, 0.6, 0.0] if len(fitted_to) % 2 else [0.2, 0.1, 0.0]

    monkeypatch.setattr("pipeline.exits.study.stopping_thresholds", spy)
    monkeypatch.setattr("pipeline.exits.study.PRICES", [0.01])
    monkeypatch.setattr("pipeline.exits.study.LOSSES", (1.0,))
    (fitted,) = study(given, costs, (1, 2, 3), "entropy", {}).own.fitted
    first, second = fitted_to[:2]
    assert len(first) == len(second) == 30 and not first & second
    # Who is in the second half was not in the first, which its thresholds were fitted to, and leaves by them.
    exits = [exit_taken(row, [0.4, 0.6, 0.0] if tuple(row) in second else [0.2, 0.1, 0.0]) for row in given.uncertainty]
    assert fitted.exits == [exits.count(exit) for exit in range(3)] and fitted.mean_depth == pytest.approx(
        np.mean(exits) + 1, abs=1e-6
    )
    lost = np.mean([row[-1] - row[exit] for row, exit in zip(given.score, exits)])
    assert fitted.loss == pytest.approx(lost, abs=1e-6) and fitted.score == pytest.approx(
        given.score[:, -1].mean() - lost, abs=1e-6
    )


def test_an_exit_as_good_as_the_last_costs_nothing_to_leave_at():
    """With one threshold for both exits, the one that guesses holds the good one back."""
    random = np.random.default_rng(4)
    right, guess = (random.random(600) < 0.9).astype(float), (random.random(600) < 0.5).astype(float)
    score, unsure = np.stack([guess, right, right], axis=1), random.random((600, 3))
    own = study(
        Predictions(score, score, unsure, [[0] * 3] * 600),
        Costs(np.full(600, 5), np.ones((600, 3))),
        (1, 2, 3),
        "entropy",
        {},
    ).own
    assert [point.mean_depth for point in own.fitted] == pytest.approx([2.0] * 3, abs=0.02) and min(
        point.mean_depth for point in own.within
    ) > 2.5


@pytest.mark.parametrize("seed", [0, 1])
def test_sweeps_are_what_a_plain_loop_counts(seed):
    given, costs = drawn(120, 4, seed)
    result = study(given, costs, (1, 2, 3, 4), "entropy", {})
    full = costs.flops[:, -1].mean()
    for measure, unsure in zip(result.measures, (given.uncertainty, given.measures["margin"])):
        curve = measure.curve
        assert curve.thresholds == sorted(set(curve.thresholds)) and len(curve.thresholds) > 200
        boldest = {loss: 0.0 for loss in (0.005, 0.01, 0.02)}
        safe = set(boldest)
        for place, threshold in enumerate(curve.thresholds):
            exits = [exit_taken(row, [threshold] * 4) for row in unsure]
            score = np.mean([given.score[row, exit] for row, exit in enumerate(exits)])
            assert curve.score[place] == pytest.approx(score, abs=1e-6)
            assert curve.mean_depth[place] == pytest.approx(np.mean(exits) + 1, abs=1e-6)
            assert curve.flops[place] == pytest.approx(
                np.mean([costs.flops[row, exit] for row, exit in enumerate(exits)]) / full, abs=1e-6
            )
            safe = {loss for loss in safe if given.score[:, -1].mean() - score <= loss + 1e-9}
            boldest |= {loss: threshold for loss in safe}
        assert {point.max_loss: point.thresholds[0] for point in measure.within} == boldest
        assert curve.mean_depth[-1] == 1 and curve.mean_depth[0] == 4


def test_question_answering_is_measured_by_f1_and_right_means_exact():
    f1 = np.array([[0.5, 1.0], [0.0, 0.8], [1.0, 1.0]])
    exact = (f1 == 1).astype(float)
    unsure = np.array([[0.2, 0.1], [0.9, 0.5], [0.1, 0.1]])
    given = Predictions(f1, exact, unsure, [["a", "b"], ["c", "d"], ["e", "f"]], task="qa")
    result = study(given, Costs(np.array([1, 2, 3]), np.ones((3, 2))), (3, 6), "entropy", {})
    assert (result.task, result.metric) == ("qa", "f1")
    assert [each.score for each in result.exits] == [0.5, pytest.approx(2.8 / 3, abs=1e-6)]
    assert [each.exact_match for each in result.exits] == [
        pytest.approx(1 / 3, abs=1e-6),
        pytest.approx(2 / 3, abs=1e-6),
    ]
    assert result.own.rankings[0].auroc == 1.0 and result.own.rankings[0].spearman == -1.0
    assert result.own.rankings[1].auroc == 1.0  # four fifths of F1 are no exact match


def test_bins_are_tenths_and_keep_equal_values_together():
    values = np.linspace(0, 1, 200)
    bins = bins_of(values, 1 - values)
    assert [part.examples for part in bins] == [20] * 10
    for place, part in enumerate(bins):
        chosen = values[20 * place : 20 * place + 20]
        assert (part.uncertainty, part.score) == (
            pytest.approx(chosen.mean(), abs=1e-6),
            pytest.approx(1 - chosen.mean(), abs=1e-6),
        )
    tied = np.repeat([0.0, 0.5, 1.0], [150, 40, 10])
    assert [(part.examples, part.uncertainty) for part in bins_of(tied, tied)] == [(150, 0.0), (40, 0.5), (10, 1.0)]
    assert [part.examples for part in bins_of(np.full(7, 0.3), np.ones(7))] == [7]


def test_thresholds_are_fine_where_examples_are():
    unsure = np.stack([np.linspace(0.0001, 0.003, 300), np.ones(300)], axis=1)
    thresholds = thresholds_of(unsure)
    assert ((thresholds > 0) & (thresholds < 0.003)).sum() > 150
    assert set(np.arange(101) / 100) <= set(thresholds) and thresholds[-1] > 1


def test_one_exit_has_nothing_to_decide():
    given = Predictions(SCORE[:, :1], SCORE[:, :1], UNSURE[:, :1], [[0]] * 5, measures={})
    result = study(given, Costs(LENGTH, COSTS.flops[:, :1]), (3,), "entropy", {"exact": speed(0.5)})
    assert set(result.own.curve.mean_depth) == {1} and result.speeds[0].loss == 0


def test_json_and_back():
    result = made(speeds={"exact": speed(0.2, 0.45, 0.0)}.items(), patience=np.array([[1, 0.5, 0.25]] * 5))
    assert Study.model_validate_json(json.dumps(result.model_dump())) == result
