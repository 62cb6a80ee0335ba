"""Thresholds with a guarantee: for each exit one, and what they cost together, bounded without assumptions on the model or the data.

The calibration split is cut in two. On the smaller part candidates are drawn up, and put in the order of how clearly they seem to be safe
(Pareto testing, Laufer-Goldshlager et al. 2023). On the other part Learn-then-Test (Angelopoulos et al. 2021, section 2; CALM, Schuster et
al. 2022, uses it for early exit) goes down that list, testing for each the hypothesis that it loses more than epsilon, and stops at the
first that cannot be rejected. Tested in an order that the tested examples had no say in, the chance that any of those before loses more is
at most delta; so the fastest of them may be taken.
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

# Of the calibration split, for drawing up the candidates. The rest is for the bound, which costs far more examples.
DRAFT_SHARE = 0.2
# The same threshold for all exits, FastBERT's speed: few candidates, of no bias, beside those fitted to few examples.
UNIFORM = np.round(np.arange(0.02, 1.0, 0.02), 4)


def examples_needed(max_loss: float, delta: float, metric: str) -> int:
    """The smallest calibration split that can show a loss of at most `max_loss` with confidence 1 - delta, if none is lost in it."""
    return math.ceil(losses_needed(max_loss, delta, metric == "accuracy") / (1 - DRAFT_SHARE))


def split_rows(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of a calibration split's examples serve to draft (thresholds, temperatures), and which to test what was drafted."""
    order = np.random.default_rng(seed).permutation(examples)
    cut = int(examples * DRAFT_SHARE)
    return order[:cut], order[cut:]


def losses_and_depths(
    score: np.ndarray, uncertainty: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """What each example loses against full depth, and the exits (from 1) it takes; score, uncertainty: [examples, exits]."""
    exits = exits_taken(uncertainty, thresholds)
    return score[:, -1] - score[np.arange(len(exits)), exits], exits + 1


def candidates(score: np.ndarray, uncertainty: np.ndarray, max_loss: float) -> list[list[float]]:
    """Thresholds worth testing, in the order of how many standard deviations their loss lies below `max_loss` on these examples.

    Among equals, many of which lose nothing on few examples, the more careful come first.
    """

    def order(thresholds: list[float]) -> tuple[float, float]:
        losses, depths = losses_and_depths(score, uncertainty, thresholds)
        # Few examples prove little: one made-up loss of medium size is added, and a gain counts as no loss, or the luckiest came first.
        variance = (len(losses) * losses.var() + 0.25) / (len(losses) + 1)
        return -(max_loss - max(0.0, losses.mean())) / math.sqrt(variance), -depths.mean()

    uniform = [[float(threshold)] * (score.shape[1] - 1) + [0.0] for threshold in UNIFORM]
    return sorted(stopping_path(score, uncertainty) + uniform, key=order)


def speed_at(
    predictions: Predictions, thresholds: Sequence[float], metric: str, max_loss: float | None, delta: float | None
) -> Speed:
    """The manifest's entry for thresholds, measured on these predictions."""
    exits = exits_taken(predictions.uncertainty, thresholds)
    rows = np.arange(len(exits))
    return Speed(
        thresholds=[round(float(t), 4) for t in thresholds],
        metric=metric,
        value=round(float(predictions.score[rows, exits].mean()), 6),
        value_full_depth=round(float(predictions.score[:, -1].mean()), 6),
        mean_depth=round(float((exits + 1).mean()), 6),
        examples=len(exits),
        max_loss=max_loss,
        delta=delta,
    )


def calibrate(predictions: Predictions, max_loss: float, delta: float, metric: str, seed: int = 0) -> Speed:
    """The boldest thresholds, one for each exit, whose loss against full depth is at most `max_loss` with probability 1 - delta.

    Args:
        predictions: of a calibration split that neither the model nor anything else was trained on.
        max_loss: in score, a fraction of 1.
        delta: allowed chance of being wrong.
        metric: of `predictions.score`; "accuracy" says that every score is 0 or 1, all others are fractions.

    Returns:
        A speed; full depth when nothing bolder can be shown to be safe on so few examples.
    """
    draft, test = split_rows(len(predictions.score), seed)
    score, uncertainty = predictions.score[test], predictions.uncertainty[test]
    chosen, least = [0.0] * predictions.exits, float(predictions.exits)
    for thresholds in candidates(predictions.score[draft], predictions.uncertainty[draft], max_loss):
        losses, depths = losses_and_depths(score, uncertainty, thresholds)
        if not shows_less(losses, max_loss, delta, paired=metric == "accuracy"):
            break
        if depths.mean() < least:
            chosen, least = thresholds, float(depths.mean())
    return speed_at(predictions, chosen, metric, max_loss, delta)
