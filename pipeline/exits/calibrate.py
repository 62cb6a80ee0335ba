"""Chooses one threshold per exit so that early exits cost at most `max_loss` score, with probability 1 - delta.

The bound holds for any model and any data. The calibration split is cut in two. The smaller part proposes candidates
and orders them by how clearly they seem safe (Pareto testing, Laufer-Goldshlager et al. 2023). The larger part tests
them in that order (Learn-then-Test, Angelopoulos et al. 2021, section 2; CALM, Schuster et al. 2022, uses it for early
exit). Each test asks whether a candidate may lose more than `max_loss`, and testing stops at the first that may. The
order was fixed before testing, so all candidates before that one are safe at once with probability 1 - delta. We keep
the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.bundle.exit_rule import exits_taken
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

    It suffices if no example in it loses anything.
    """
    return math.ceil(losses_needed(max_loss, delta, metric == "accuracy") / (1 - DRAFT_SHARE))


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
        # Few examples prove little, and lucky candidates must not come first. So one medium loss is added to the
        # variance, and a mean gain counts as no loss.
        variance = (len(losses) * losses.var() + 0.25) / (len(losses) + 1)
        return -(max_loss - max(0.0, losses.mean())) / math.sqrt(variance), -depths.mean()

    uniform = [[float(threshold)] * (score.shape[1] - 1) + [0.0] for threshold in UNIFORM]
    return sorted(stopping_path(score, uncertainty) + uniform, key=order)


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

    Args:
        predictions: of a calibration split on which nothing was trained.
        max_loss: in score, a fraction of 1.
        delta: allowed chance of being wrong.
        metric: of `predictions.score`. With "accuracy" every score is 0 or 1, with all others it is a fraction.
        seed: of the split into examples that propose and examples that test.

    Returns:
        a speed; full depth if too few examples show that anything bolder is safe.
    """
    draft, test = split_rows(len(predictions.score), seed)
    score, uncertainty = predictions.score[test], predictions.uncertainty[test]
    chosen, least_depth = [0.0] * predictions.exits, float(predictions.exits)
    for thresholds in candidates(predictions.score[draft], predictions.uncertainty[draft], max_loss):
        losses, depths = losses_and_depths(score, uncertainty, thresholds)
        if not shows_less(losses, max_loss, delta, paired=metric == "accuracy"):
            break
        if depths.mean() < least_depth:
            chosen, least_depth = thresholds, float(depths.mean())
    return speed_at(predictions, chosen, metric, max_loss, delta)
