"""Compares a program's outputs with the expected ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.bundle.manifest import Program
from pipeline.verify.checks import Check

# Stands for no noise at all, and -MAX_DB for nothing but noise, since JSON has no infinity.
MAX_DB = 300.0


def signal_to_noise_db(reference: np.ndarray, value: np.ndarray, level: float | None = None) -> float:
    """Returns 10 log10(sum of reference^2 / sum of (value - reference)^2), in decibels.

    A relative error of 0.1 is 20 dB.

    Args:
        reference, value: arrays of one shape.
        level: the root mean square to assume for `reference` instead of its own.

    Returns:
        a number from -300 to 300. It is 300 without noise, and -300 if either array has NaN or infinity.
    """
    reference, value = np.asarray(reference, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if reference.shape != value.shape:
        raise ValueError(f"shapes {reference.shape} and {value.shape} differ")
    if not (np.isfinite(value).all() and np.isfinite(reference).all()):
        return -MAX_DB
    signal = np.square(reference).sum() if level is None else level**2 * reference.size
    noise = np.square(value - reference).sum()
    if noise == 0.0:
        return MAX_DB
    if signal == 0.0:
        return -MAX_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -MAX_DB, MAX_DB))


def check_outputs(
    program: Program,
    metric: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    floor: float,
    level: float | None = None,
) -> Check:
    """Checks the worst signal-to-noise ratio among a program's outputs. `uncertainty` is left to `check_uncertainty`.

    Args:
        expected, actual: arrays by output. One that is missing in `actual` or has another shape counts as -300 dB.
        floor: in decibels.
        level: see `signal_to_noise_db`; for the output `logits`.
    """
    ratios = {}
    for name, reference in expected.items():
        if name == "uncertainty":
            continue
        if name in actual and actual[name].shape == reference.shape:
            ratios[name] = signal_to_noise_db(reference, actual[name], level if name == "logits" else None)
        else:
            ratios[name] = -MAX_DB
    worst = min(ratios, key=ratios.__getitem__)
    note = "" if ratios[worst] >= floor else f"output {worst}"
    return Check.at_least(program.name, program.backend, metric, ratios[worst], floor, note)


def check_uncertainty(
    program: Program,
    metric: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    floor: float,
) -> list[Check]:
    """Checks 1 - the greatest difference of `uncertainty`. Returns no check if no such output is expected."""
    if "uncertainty" not in expected:
        return []
    reference, value = expected["uncertainty"], actual.get("uncertainty")
    comparable = value is not None and value.shape == reference.shape
    agreement = 1.0 - float(np.abs(reference - value).max()) if comparable else -1.0
    return [Check.at_least(program.name, program.backend, metric, agreement, floor)]
