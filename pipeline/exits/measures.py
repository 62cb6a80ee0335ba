"""Measures of uncertainty that compare an exit's answer with those of earlier exits, for many examples at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from pipeline.bundle.exit_rule import change_uncertainty, patience_uncertainty


def patience(answers: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Returns the uncertainty by patience, [examples, exits]; `answers` has one per exit for every example."""
    return np.array([[patience_uncertainty(row[: exit + 1]) for exit in range(len(row))] for row in answers])


def with_patience(measures: dict[str, np.ndarray], answers: Sequence[Sequence[Hashable]]) -> dict[str, np.ndarray]:
    """Adds patience and agreement to measures of the logits, [examples, exits] each. `answers` as in `patience`."""
    by_patience = patience(answers)
    return measures | {"patience": by_patience, "agreement": measures["entropy"] * by_patience}


def change(shares: np.ndarray) -> np.ndarray:
    """Returns the uncertainty by change, given the exits' predictions: [examples, exits] -> the same shape."""
    return np.array([[change_uncertainty(row[: exit + 1]) for exit in range(len(row))] for row in shares.tolist()])
