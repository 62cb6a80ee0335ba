"""How well one number follows another: an uncertainty the answers' quality, a prediction its label. In ranks, ties are counted half."""

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


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation, [examples] each.

    Returns:
        in [-1, 1]; None where either is the same for all examples.
    """
    if not (np.ptp(first) and np.ptp(second)):
        return None
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, [examples] each: -1 where one falls with every step of the other. See `pearson` for what it returns."""
    return pearson(ranks(first), ranks(second))


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """What GLUE's STS-B is measured by, Pearson's and Spearman's correlation, and the mean absolute error in the data's unit.

    Args:
        predictions, labels: [examples], in the data's unit.
    """
    return {
        "pearson": pearson(predictions, labels),
        "spearman": spearman(predictions, labels),
        "mean_absolute_error": float(np.abs(predictions - labels).mean()),
    }
