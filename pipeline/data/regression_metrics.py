"""Measures how well one number follows another: a prediction its label, or an uncertainty the quality of answers."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks of values, [examples], counted from 1. Equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: np.ndarray = last - (counts - 1) / 2
    return shared[place]


def auroc(uncertainty: np.ndarray, right: np.ndarray) -> float | None:
    """Returns the area under the ROC curve of uncertainty as a detector of wrong answers.

    It is the probability that a wrong answer is more uncertain than a right one (the Mann-Whitney statistic, Hanley
    and McNeil 1982). It is 1 if every wrong answer is more uncertain than every right one, and 0.5 if uncertainty tells
    nothing. A tie counts half.

    Args:
        uncertainty: [examples].
        right: [examples], true or 1 where the answer is right.

    Returns:
        A number in [0, 1]; None if all answers are right, or none is.
    """
    wrong = ~np.asarray(right, dtype=bool)
    count = int(wrong.sum())
    if count in (0, len(wrong)):
        return None
    above = ranks(uncertainty)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns Pearson's correlation of two arrays, [examples], in [-1, 1]; None if either array is constant."""
    if not (np.ptp(first) and np.ptp(second)):
        return None
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation of two arrays, [examples], in [-1, 1]; None if either array is constant."""
    return pearson(ranks(first), ranks(second))


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Returns Pearson's and Spearman's correlation, which GLUE's STS-B reports, and the mean absolute error.

    Args:
        predictions, labels: [examples], in the unit of the data.
    """
    return {
        "pearson": pearson(predictions, labels),
        "spearman": spearman(predictions, labels),
        "mean_absolute_error": float(np.abs(predictions - labels).mean()),
    }
