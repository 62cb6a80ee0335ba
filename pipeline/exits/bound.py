"""Whether losses seen on a sample show that the loss in truth is below a bound, without assumptions on the model or the data."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


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
def losses_needed(bound: float, delta: float) -> int:
    """The fewest losses that can show a mean below `bound` with confidence 1 - delta: so many that are all 0."""
    enough = 1
    while mean_exceeds_p_value(np.zeros(enough), bound, delta) > delta:
        enough *= 2
    low, high = enough // 2, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mean_exceeds_p_value(np.zeros(middle), bound, delta) <= delta else (middle, high)
    return high
