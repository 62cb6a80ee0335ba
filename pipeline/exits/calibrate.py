"""Thresholds with a guarantee: what an exit threshold costs, bounded without assumptions on the model or the data.

Learn-then-Test (Angelopoulos et al. 2021, section 2; CALM, Schuster et al. 2022, uses it for early exit): thresholds are tried from the most
careful to the boldest, each tested against the hypothesis that it loses more than epsilon; the last one before the first that cannot
be rejected is taken. Tested in this fixed order, the chance that any accepted threshold loses more is at most delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.exits.predictions import Predictions
from pipeline.exits.rule import exits_taken
from pipeline.manifest import Speed

GRID = np.round(np.concatenate([np.arange(0.0, 0.1, 0.01), np.arange(0.1, 1.001, 0.02)]), 4)


def mean_exceeds_p_value(losses: np.ndarray, bound: float, delta: float) -> float:
    """A p-value for "the mean of the losses' distribution is at least `bound`", by betting against it.

    The capital of a gambler who bets on smaller losses is a supermartingale if the hypothesis holds, so by Ville's inequality one over its
    largest value is a p-value (Waudby-Smith and Ramdas 2023, section 4). Bets adapt to the variance seen so far, which for a model's
    rare changes of mind is far smaller than the worst case that Hoeffding's inequality pays for.

    Args:
        losses: independent draws in [-1, 1], in an order that does not depend on their values.
        bound: in (-1, 1).
        delta: the level the bets are tuned for; the p-value is valid at any.
    """
    count = np.arange(1, len(losses) + 1)
    mean = (0.0 + np.cumsum(losses)) / (count + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])  # a bet may only know what came earlier
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (len(losses) * before)), 0.75 / (1 - bound))
    wealth = np.cumsum(np.log1p(bets * (bound - losses)))
    return float(min(1.0, math.exp(-max(0.0, wealth.max()))))


def speed_at(predictions: Predictions, thresholds: Sequence[float], metric: str, max_loss: float | None, delta: float | None) -> Speed:
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
    """The boldest threshold, one for all exits, whose loss against full depth is at most `max_loss` with probability 1 - delta.

    Args:
        predictions: of a calibration split that neither the model nor anything else was trained on.
        max_loss: in score, a fraction of 1.
        delta: allowed chance of being wrong.

    Returns:
        A speed; full depth when nothing bolder can be shown to be safe on so few examples.
    """
    order = np.random.default_rng(seed).permutation(len(predictions.score))
    score, uncertainty = predictions.score[order], predictions.uncertainty[order]
    rows = np.arange(len(score))
    chosen = 0.0
    for threshold in GRID[1:]:
        exits = exits_taken(uncertainty, [threshold] * predictions.exits)
        losses = score[:, -1] - score[rows, exits]
        if mean_exceeds_p_value(losses, max_loss, delta) > delta:
            break
        chosen = float(threshold)
    return speed_at(predictions, [chosen] * predictions.exits, metric, max_loss, delta)
