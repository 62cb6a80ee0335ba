"""Tests whether losses on a sample show that the expected loss is below a bound, for any model and any data."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import stats

# The paired test's level is computed at so many probabilities of a gain, denser towards 0, where the level changes
# fast. With 1,500 points, none of twelve levels that were tried changed by more than 0.0005.
NUISANCE_POINTS = 200


def shows_less(losses: np.ndarray, bound: float, delta: float, paired: bool) -> bool:
    """Returns whether the losses show, at level `delta`, that the mean of their distribution is below `bound`.

    Args:
        losses: independent draws in [-1, 1], [examples], in an order that does not depend on their values.
        bound: the mean to stay below.
        delta: the chance of a wrong "yes" that is allowed.
        paired: whether each loss is the difference of two right or wrong answers, so 1, 0 or -1. An exact test exists
            for them; it shows more than betting does with as many examples.
    """
    if not paired:
        return mean_exceeds_p_value(losses, bound, delta) <= delta
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    return float(paired_score(lost, gained, len(losses), bound)) <= paired_limit(len(losses), bound, delta)


def paired_score(lost: np.ndarray | int, gained: np.ndarray | int, examples: int, bound: float) -> np.ndarray:
    """Returns how many standard errors (share lost - share gained) lies above `bound` (Tango 1998, section 3).

    The standard error is that of the most likely distribution whose mean is the bound.

    Args:
        lost, gained: numbers of losses of 1 and of -1; scalars or arrays of one shape.
        examples: number of all losses.
    """
    lost, gained = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    linear = lost * (1 - bound) + gained * (1 - 3 * bound) - 2 * (examples - lost - gained) * bound
    gain = (linear + np.sqrt(linear**2 + 8 * examples * gained * bound * (1 - bound))) / (4 * examples)
    return (lost - gained - examples * bound) / np.sqrt(examples * (2 * gain + bound * (1 - bound)))


def paired_level(limit: float, examples: int, bound: float) -> float:
    """Returns the chance that the score is at most `limit` although the mean is `bound` (Hsueh, Liu and Chen 2001).

    It is the largest over all probabilities of a gain, and exact: a sum over all outcomes, not an approximation for
    many examples. A mean above the bound makes such a score only less likely.
    """
    changed = np.arange(examples + 1)
    # Finds, for each number of changed examples, the most losses whose score passes. The score rises with the losses.
    # -1 means that not even 0 losses pass.
    most, beyond = np.full(examples + 1, -1), changed + 1
    while (beyond - most > 1).any():
        middle = (most + beyond) // 2
        passes = paired_score(middle, changed - middle, examples, bound) <= limit
        most, beyond = np.where(passes & (middle >= 0), middle, most), np.where(passes, beyond, middle)
    level = 0.0
    for gain in np.linspace(0, math.sqrt((1 - bound) / 2), NUISANCE_POINTS) ** 2:
        share = min(1.0, 2 * gain + bound)  # probability that an answer changes, either way
        low, high = (int(edge) for edge in stats.binom.interval(1 - 1e-12, examples, share))
        likely = changed[low : high + 1]
        passing = stats.binom.pmf(likely, examples, share) * stats.binom.cdf(
            most[likely], likely, (gain + bound) / share
        )
        level = max(level, float(passing.sum()))
    return level


@lru_cache
def paired_limit(examples: int, bound: float, delta: float) -> float:
    """Returns the largest score that shows a mean below `bound` at level `delta`; -inf if no score does."""
    low, high = float(paired_score(0, 0, examples, bound)), 0.0
    if paired_level(low, examples, bound) > delta:
        return -math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if paired_level(middle, examples, bound) <= delta else (low, middle)
    return low


def mean_exceeds_p_value(losses: np.ndarray, bound: float, delta: float) -> float:
    """Returns a p-value for the hypothesis that the mean of the losses' distribution is at least `bound`.

    A gambler bets that losses are smaller. If the hypothesis holds, the gambler's capital is a supermartingale, so by
    Ville's inequality 1 / (its largest value) is a p-value (Waudby-Smith and Ramdas 2023, section 4). Bets adapt to
    the variance seen so far. An early exit rarely changes an answer, so that variance is far smaller than the worst
    case that Hoeffding's inequality assumes.

    Args:
        losses: independent draws in [-1, 1], [examples], in an order that does not depend on their values.
        bound: in (-1, 1).
        delta: the level that the bets are tuned for; the p-value is valid at any level.
    """
    count = np.arange(1, len(losses) + 1)
    mean = (0.0 + np.cumsum(losses)) / (count + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])  # a bet may only use earlier losses
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (len(losses) * before)), 0.75 / (1 - bound))
    wealth = np.cumsum(np.log1p(bets * (bound - losses)))
    return float(min(1.0, math.exp(-max(0.0, wealth.max()))))


@lru_cache
def losses_needed(bound: float, delta: float, paired: bool) -> int:
    """Returns the smallest number of losses that shows a mean below `bound` at level `delta` if all of them are 0."""
    if paired:
        count = math.ceil(math.log(delta) / math.log1p(-bound))  # exact if gains were impossible
        while paired_level(float(paired_score(0, 0, count, bound)), count, bound) > delta:
            count += 1
        return count
    count = 1
    while mean_exceeds_p_value(np.zeros(count), bound, delta) > delta:
        count *= 2
    low, high = count // 2, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mean_exceeds_p_value(np.zeros(middle), bound, delta) <= delta else (middle, high)
    return high
