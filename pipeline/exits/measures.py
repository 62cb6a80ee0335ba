"""The measures of uncertainty that compare an exit's answer with those of the exits before it, for many examples at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.bundle.exit_rule import change_uncertainty, patience_uncertainty


def patience(answers: Sequence[Sequence]) -> np.ndarray:
    """Uncertainty by patience at every exit; answers: of each example, one per exit. Returns [examples, exits]."""
    return np.array([[patience_uncertainty(row[: exit + 1]) for exit in range(len(row))] for row in answers])


def with_patience(measures: dict[str, np.ndarray], answers: Sequence[Sequence]) -> dict[str, np.ndarray]:
    """The measures of the exits' logits, [examples, exits] each, and the two that count answers; `answers` as of `patience`."""
    counted = patience(answers)
    return measures | {"patience": counted, "agreement": measures["entropy"] * counted}


def change(shares: np.ndarray) -> np.ndarray:
    """Uncertainty by change at every exit; shares: every exit's prediction, [examples, exits]. Returns [examples, exits]."""
    return np.array([[change_uncertainty(row[: exit + 1]) for exit in range(len(row))] for row in shares.tolist()])
