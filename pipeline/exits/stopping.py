"""Thresholds for every exit from one dial, the price of a segment: the optimal stopping rule among those that thresholds can say.

An exit that answers nearly as well as the last one is worth stopping at for a small gain; one that saves five segments may lose more than
one that saves a single one. Both follow from one number: how much score one is ready to give for a segment that is not run.
"""

from __future__ import annotations

import numpy as np

from pipeline.bundle.exit_rule import FULL_DEPTH, exits_taken

ALWAYS = 1.01  # a threshold above every uncertainty: all inputs leave
# Score for a segment, a fraction of 1: from what no exit of a good model is worth to what sends everything out at the first exit.
PRICES = np.geomspace(1e-4, 1.0, 56)
GAIN = 0.5  # of a gain is counted, see `stopping_thresholds`


def stopping_thresholds(score: np.ndarray, uncertainty: np.ndarray, price: float) -> list[float]:
    """The thresholds at which the mean of loss + price * segments is smallest, found exit by exit.

    From the last exit but one to the first, each gets the threshold that is best given those behind it: what an input costs that stays is
    known then (dynamic programming; Bellman's principle). Where leaving early turns a wrong answer into a right one, by chance as a rule,
    a part of that counts: thresholds drawn around the few examples that gain hold for those alone.

    Args:
        score, uncertainty: [examples, exits].
        price: of a segment, in score.

    Returns:
        one threshold per exit, that of the last one 0.
    """
    examples, exits = score.shape
    loss = score[:, -1:] - score
    loss = np.where(loss < 0, GAIN * loss, loss)
    thresholds = [FULL_DEPTH] * exits
    for exit in range(exits - 2, -1, -1):
        later = exits_taken(uncertainty, thresholds)  # nobody leaves before this exit: the thresholds there are still 0
        stay = loss[np.arange(examples), later] + price * (later - exit)
        thresholds[exit] = best_threshold(uncertainty[:, exit], loss[:, exit] - stay)
    return thresholds


def best_threshold(uncertainty: np.ndarray, cost: np.ndarray) -> float:
    """The threshold below which the costs add up to least: half way between two uncertainties, `ALWAYS`, or 0 where leaving never pays.

    Args:
        uncertainty: [examples].
        cost: [examples], of leaving here instead of staying; negative where leaving is better.
    """
    order = np.argsort(uncertainty, kind="stable")
    values, sums = uncertainty[order].astype(np.float64), np.cumsum(cost[order])
    # No threshold can part two that are as unsure as each other.
    sums = np.where(np.append(values[1:] > values[:-1], True), sums, np.inf) if len(values) else sums
    if not len(sums) or sums.min() >= 0:
        return FULL_DEPTH
    last = int(sums.argmin())
    return ALWAYS if last == len(values) - 1 else round(float(values[last] + values[last + 1]) / 2, 4)


def stopping_path(score: np.ndarray, uncertainty: np.ndarray) -> list[list[float]]:
    """`stopping_thresholds` at every price, from the most careful to the boldest; score, uncertainty: [examples, exits]."""
    return [stopping_thresholds(score, uncertainty, price) for price in PRICES]
