"""Fits one threshold per exit for a given price of a segment, that is, the score one would give up to save a segment.

This is optimal stopping, restricted to rules that thresholds can express. The price makes exits comparable: an exit
that saves five segments may lose more score than one that saves a single segment.
"""

from __future__ import annotations

import numpy as np

from pipeline.bundle.exit_rule import FULL_DEPTH, exits_taken

ALWAYS = 1.01  # a threshold above every uncertainty, so all inputs leave
# Score per segment, a fraction of 1. At the lowest a good model stops nowhere, at the highest everything leaves at
# the first exit.
PRICES = np.geomspace(1e-4, 1.0, 56)
GAIN_WEIGHT = 0.5  # see `stopping_thresholds`


def stopping_thresholds(score: np.ndarray, uncertainty: np.ndarray, price: float) -> list[float]:
    """Returns the thresholds with the smallest mean of loss + price * segments, found exit by exit.

    Exits are taken from the last but one to the first (dynamic programming). Each gets the best threshold given the
    later ones, since they fix the cost of an input that stays. Leaving early sometimes turns a wrong answer into a
    right one, mostly by chance. Such a gain counts by `GAIN_WEIGHT` only: thresholds fitted around a few lucky
    examples do not hold for others.

    Args:
        score, uncertainty: [examples, exits].
        price: of a segment, in score.

    Returns:
        one threshold per exit; 0 for the last.
    """
    examples, exits = score.shape
    loss = score[:, -1:] - score
    loss = np.where(loss < 0, GAIN_WEIGHT * loss, loss)
    thresholds = [FULL_DEPTH] * exits
    for exit in range(exits - 2, -1, -1):
        later = exits_taken(uncertainty, thresholds)  # thresholds up to this exit are still 0, so nothing leaves there
        stay = loss[np.arange(examples), later] + price * (later - exit)
        thresholds[exit] = best_threshold(uncertainty[:, exit], loss[:, exit] - stay)
    return thresholds


def best_threshold(uncertainty: np.ndarray, cost: np.ndarray) -> float:
    """Returns the threshold for which the costs of all examples below it have the smallest sum.

    It lies half way between two uncertainties. It is `ALWAYS` if all should leave, and 0 if leaving never pays.

    Args:
        uncertainty: [examples].
        cost: [examples], of leaving here instead of staying; negative where leaving is better.
    """
    order = np.argsort(uncertainty, kind="stable")
    values, sums = uncertainty[order].astype(np.float64), np.cumsum(cost[order])
    # No threshold can separate examples of equal uncertainty.
    sums = np.where(np.append(values[1:] > values[:-1], True), sums, np.inf) if len(values) else sums
    if not len(sums) or sums.min() >= 0:
        return FULL_DEPTH
    last = int(sums.argmin())
    return ALWAYS if last == len(values) - 1 else round(float(values[last] + values[last + 1]) / 2, 4)


def stopping_path(score: np.ndarray, uncertainty: np.ndarray) -> list[list[float]]:
    """Returns `stopping_thresholds` at every price, from the most careful to the boldest.

    Args:
        score, uncertainty: [examples, exits].
    """
    return [stopping_thresholds(score, uncertainty, price) for price in PRICES]
