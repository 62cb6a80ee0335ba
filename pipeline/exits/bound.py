"""Whether losses seen on a sample show that the loss in truth is below a bound, without assumptions on the model or the data."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import stats

# Probabilities of a gain at which the paired test's level is computed, closer together towards 0, where the level changes fast. With
# 1,500 of them none of twelve levels that were tried moved by more than 0.0005.
NUISANCE_POINTS = 200


def shows_less(losses: np.ndarray, bound: float, delta: float, paired: bool) -> bool:
    """Whether the losses show, at the level `delta`, that their distribution's mean is below `bound`.

    Args:
        losses: independent draws in [-1, 1], in an order that does not depend on their values.
        paired: each is the difference of two answers that are right or wrong, so 1, 0 or -1: for those there is an exact test, which
            shows more than betting with as many examples.
    """
    if not paired:
        return mean_exceeds_p_value(losses, bound, delta) <= delta
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    return float(paired_score(lost, gained, len(losses), bound)) <= paired_limit(len(losses), bound, delta)


def paired_score(lost: np.ndarray | int, gained: np.ndarray | int, examples: int, bound: float) -> np.ndarray:
    """How many standard errors the share lost, less the share gained, lies above `bound` (Tango 1998, section 3).

    The standard error is that of the most likely distribution whose mean is the bound.
    """
    lost, gained = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    linear = lost * (1 - bound) + gained * (1 - 3 * bound) - 2 * (examples - lost - gained) * bound
    gain = (linear + np.sqrt(linear**2 + 8 * examples * gained * bound * (1 - bound))) / (4 * examples)
    return (lost - gained - examples * bound) / np.sqrt(examples * (2 * gain + bound * (1 - bound)))


def paired_level(limit: float, examples: int, bound: float) -> float:
    """The chance of a score of at most `limit` though the mean is `bound`: the largest over all chances of a gain (Hsueh, Liu and Chen 2001).

    It is a sum over all outcomes, not a limit for many examples. A mean above the bound makes such a score only less likely.
    """
    changed = np.arange(examples + 1)
    # For each number of examples that changed, the most that may be losses; the score rises with it. -1: not even none.
    most, beyond = np.full(examples + 1, -1), changed + 1
    while (beyond - most > 1).any():
        middle = (most + beyond) // 2
        passes = paired_score(middle, changed - middle, examples, bound) <= limit
        most, beyond = np.where(passes & (middle >= 0), middle, most), np.where(passes, beyond, middle)
    level = 0.0
    for gain in np.linspace(0, math.sqrt((1 - bound) / 2), NUISANCE_POINTS) ** 2:
        share = min(1.0, 2 * gain + bound)  # that changes, either way
        low, high = (int(edge) for edge in stats.binom.interval(1 - 1e-12, examples, share))
        seen = changed[low : high + 1]
        inside = stats.binom.pmf(seen, examples, share) * stats.binom.cdf(most[seen], seen, (gain + bound) / share)
        level = max(level, float(inside.sum()))
    return level


@lru_cache
def paired_limit(examples: int, bound: float, delta: float) -> float:
    """The score up to which the paired test shows a mean below `bound` at the level `delta`; -inf if no score does."""
    low, high = float(paired_score(0, 0, examples, bound)), 0.0
    if paired_level(low, examples, bound) > delta:
        return -math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if paired_level(middle, examples, bound) <= delta else (low, middle)
    return low


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


@lru_cache
def losses_needed(bound: float, delta: float, paired: bool) -> int:
    """The fewest losses that can show a mean below `bound` with confidence 1 - delta: so many that are all 0."""
    if paired:
        enough = math.ceil(math.log(delta) / math.log1p(-bound))  # if nothing were ever gained
        while paired_level(float(paired_score(0, 0, enough, bound)), enough, bound) > delta:
            enough += 1
        return enough
    enough = 1
    while mean_exceeds_p_value(np.zeros(enough), bound, delta) > delta:
        enough *= 2
    low, high = enough // 2, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mean_exceeds_p_value(np.zeros(middle), bound, delta) <= delta else (middle, high)
    return high
