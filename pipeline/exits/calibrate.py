"""Chooses one threshold per exit so that early exits cost at most `max_loss` score, with probability 1 - delta.

The bound holds for any model and any data. The calibration split is cut in two. The smaller part proposes candidates
and orders them by how clearly they seem safe (Pareto testing, Laufer-Goldshlager et al. 2023). The larger part tests
them in that order (Learn-then-Test, Angelopoulos et al. 2021, section 2; CALM, Schuster et al. 2022, uses it for early
exit). Each test asks whether a candidate may lose more than `max_loss`, and testing stops at the first that may. The
order was fixed before testing, so all candidates before that one are safe at once with probability 1 - delta. We keep
the fastest.

Several speeds are nested: one that may lose more never runs more segments. Its order begins with the whole order of
the speed that may lose less, see `orders_of_tests`. The more careful speed accepts a candidate only if the tests for
the larger losses pass too. So whatever it accepts, the bolder speed accepts as well, in one single series of tests.
No choice between two series is made, and so no probability is spent twice: each promise holds with 1 - delta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.bundle.exit_rule import FULL_DEPTH, exits_taken
from pipeline.bundle.manifest import Speed
from pipeline.exits.bound import losses_needed, shows_less
from pipeline.exits.predictions import Predictions
from pipeline.exits.stopping import stopping_path

# Share of the calibration split that proposes thresholds. The rest tests them, which needs more examples.
DRAFT_SHARE = 0.2
# Candidates with the same threshold for all exits (FastBERT's speed). Unlike the others, they are not fitted to few
# examples.
UNIFORM = np.round(np.arange(0.02, 1.0, 0.02), 4)


def examples_needed(max_loss: float, delta: float, metric: str) -> int:
    """Returns the size of the smallest calibration split that can show a loss of at most `max_loss` at level `delta`.

    It suffices if no example in it loses anything. At least one example must be left to propose thresholds.
    """
    tested = losses_needed(max_loss, delta, metric == "accuracy")
    return max(math.ceil(tested / (1 - DRAFT_SHARE)), math.ceil(1 / DRAFT_SHARE))


def smallest_loss(examples: int, delta: float, metric: str) -> float | None:
    """Returns the smallest loss that so many calibration examples can show, in steps of 0.001; None if they show none.

    It is the least loss for which `examples_needed` is at most `examples`.
    """
    low, high = 0, 1000  # in steps; `low` cannot be shown, 1000 stands for nothing that can
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if examples_needed(middle / 1000, delta, metric) <= examples else (middle, high)
    return None if high == 1000 else high / 1000


def split_rows(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the calibration examples into a part that proposes thresholds and a part that tests them.

    Whatever else is fitted to calibration examples, such as temperatures, uses the first part only.

    Returns:
        the row numbers of both parts.
    """
    order = np.random.default_rng(seed).permutation(examples)
    cut = int(examples * DRAFT_SHARE)
    return order[:cut], order[cut:]


def losses_and_depths(
    score: np.ndarray, uncertainty: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each example's loss against full depth and the exit (from 1) that it takes, [examples] each.

    Args:
        score, uncertainty: [examples, exits].
    """
    exits = exits_taken(uncertainty, thresholds)
    return score[:, -1] - score[np.arange(len(exits)), exits], exits + 1


def candidates(score: np.ndarray, uncertainty: np.ndarray, max_loss: float) -> list[list[float]]:
    """Returns thresholds worth testing, ordered by how many standard deviations their loss lies below `max_loss`.

    Many candidates lose nothing on few examples; among such equals the more careful come first.

    Args:
        score, uncertainty: [examples, exits], of the examples that propose thresholds.
    """

    def order(thresholds: list[float]) -> tuple[float, float]:
        losses, depths = losses_and_depths(score, uncertainty, thresholds)
        # A mean gain counts as no loss, as lucky candidates must not come first.
        return -(max_loss - max(0.0, losses.mean())) / deviation(losses), -depths.mean()

    uniform = [[float(threshold)] * (score.shape[1] - 1) + [0.0] for threshold in UNIFORM]
    return sorted(stopping_path(score, uncertainty) + uniform, key=order)


def deviation(losses: np.ndarray) -> float:
    """Returns the standard deviation of losses. One medium loss is added, because few examples prove little."""
    return math.sqrt((len(losses) * losses.var() + 0.25) / (len(losses) + 1))


def speed_at(
    predictions: Predictions, thresholds: Sequence[float], metric: str, max_loss: float | None, delta: float | None
) -> Speed:
    """Returns the manifest's entry for these thresholds, measured on these predictions."""
    exits = exits_taken(predictions.uncertainty, thresholds)
    rows = np.arange(len(exits))
    return Speed(
        thresholds=[round(float(threshold), 4) for threshold in thresholds],
        metric=metric,
        value=round(float(predictions.score[rows, exits].mean()), 6),
        value_full_depth=round(float(predictions.score[:, -1].mean()), 6),
        mean_depth=round(float((exits + 1).mean()), 6),
        examples=len(exits),
        max_loss=max_loss,
        delta=delta,
    )


def calibrate(predictions: Predictions, max_loss: float, delta: float, metric: str, seed: int = 0) -> Speed:
    """Chooses the boldest thresholds whose loss against full depth is at most `max_loss` with probability 1 - delta.

    Args and result are those of `calibrate_speeds`, for one speed.
    """
    return calibrate_speeds(predictions, {"": max_loss}, delta, metric, seed)[""]


def calibrate_speeds(
    predictions: Predictions, max_losses: Mapping[str, float], delta: float, metric: str, seed: int = 0
) -> dict[str, Speed]:
    """Chooses the boldest thresholds for each of several allowed losses.

    Args:
        predictions: of a calibration split on which nothing was trained.
        max_losses: the loss that each speed may have with probability 1 - delta, in score, a fraction of 1.
        delta: allowed chance of being wrong, for each speed.
        metric: of `predictions.score`. With "accuracy" every score is 0 or 1, with all others it is a fraction.
        seed: of the split into examples that propose and examples that test.

    Returns:
        the speeds by name. A speed has full depth if too few examples show that anything bolder is safe. Of two
        speeds, the one that may lose more has at most the other's mean depth.
    """
    draft, test = split_rows(len(predictions.score), seed)
    score, uncertainty = predictions.score[test], predictions.uncertainty[test]
    losses_allowed = sorted(set(max_losses.values()))
    orders = orders_of_tests(predictions.score[draft], predictions.uncertainty[draft], losses_allowed)
    chosen: dict[float, list[float]] = {}
    for index, max_loss in enumerate(losses_allowed):
        best, least_depth = [FULL_DEPTH] * predictions.exits, float(predictions.exits)
        for thresholds in orders[index]:
            losses, _ = losses_and_depths(score, uncertainty, thresholds)
            bounds = losses_allowed[index:]
            if not all(shows_less(losses, bound, delta, paired=metric == "accuracy") for bound in bounds):
                break
            # On all calibration examples, as the manifest states it. All candidates up to here hold at once, so any
            # rule may choose among them.
            depth = float(exits_taken(predictions.uncertainty, thresholds).mean()) + 1
            if depth < least_depth:
                best, least_depth = thresholds, depth
        chosen[max_loss] = best
    return {
        name: speed_at(predictions, chosen[max_loss], metric, max_loss, delta) for name, max_loss in max_losses.items()
    }


def orders_of_tests(
    score: np.ndarray, uncertainty: np.ndarray, losses_allowed: Sequence[float]
) -> list[list[list[float]]]:
    """Returns the candidates for each allowed loss in the order of their tests.

    Each order begins with the whole order for the next smaller loss. A bolder speed must then pass tests that it could
    do without. So an order before the last leaves out what loses clearly more than it allows, by a standard error. Its
    own tests would hardly accept that.

    Args:
        score, uncertainty: [examples, exits], of the examples that propose thresholds.
        losses_allowed: from the smallest to the largest.
    """

    def may_pass(thresholds: list[float], max_loss: float) -> bool:
        losses, _ = losses_and_depths(score, uncertainty, thresholds)
        return bool(losses.mean() < max_loss + deviation(losses) / math.sqrt(len(losses)))

    orders: list[list[list[float]]] = []
    for max_loss in losses_allowed:
        order = list(orders[-1]) if orders else []
        tested = {tuple(thresholds) for thresholds in order}
        for thresholds in candidates(score, uncertainty, max_loss):
            is_new = tuple(thresholds) not in tested
            if is_new and (max_loss == losses_allowed[-1] or may_pass(thresholds, max_loss)):
                tested.add(tuple(thresholds))
                order.append(thresholds)
        orders.append(order)
    return orders
