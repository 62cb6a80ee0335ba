"""How well an uncertainty ranks answers: two standard statistics, with ties counted half."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs; values: [examples]. Returns [examples]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def auroc(uncertainty: np.ndarray, right: np.ndarray) -> float | None:
    """The area under the ROC curve of uncertainty as a detector of wrong answers.

    It is the chance that a wrong answer is more uncertain than a right one, the Mann-Whitney statistic (Hanley and McNeil 1982): 1 where
    every wrong answer is less sure than every right one, 0.5 where uncertainty says nothing.

    Args:
        uncertainty: [examples].
        right: [examples], true or 1 where the answer is right.

    Returns:
        in [0, 1]; None where all answers are right, or none is.
    """
    wrong = ~np.asarray(right, dtype=bool)
    count = int(wrong.sum())
    if count in (0, len(wrong)):
        return None
    above = ranks(uncertainty)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))


def spearman(uncertainty: np.ndarray, score: np.ndarray) -> float | None:
    """Spearman's rank correlation of uncertainty and score, [examples] each: -1 where the score falls with every step of uncertainty.

    Returns:
        in [-1, 1]; None where either is the same for all examples.
    """
    first, second = ranks(uncertainty), ranks(score)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / scale) if scale else None
