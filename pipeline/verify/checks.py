"""One check of a program: a number, the least it may be, and how the number for "the same up to rounding" is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.names import Backend

if TYPE_CHECKING:
    from pipeline.verify.neural_engine import EngineWarning
    from pipeline.verify.on_mac import MacReport

# No noise at all, or nothing but noise: finite, since JSON has no infinity.
MOST_DB = 300.0


@dataclass(frozen=True)
class Check:
    """`value` of `metric`, of which more is better; `passed` when it is at least `floor`, which NaN never is. `note` says where it failed."""

    program: str
    backend: Backend
    metric: str
    value: float
    floor: float
    passed: bool
    note: str = ""

    def to_json(self) -> dict:
        """All fields, the note where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "note" or value}

    def __str__(self) -> str:
        said = f" ({self.note})" if self.note else ""
        return f"{self.backend} {self.program}: {self.metric} is {self.value:.4g}, at least {self.floor:.4g} is needed{said}"


def to_json(checks: Sequence[Check], warnings: Sequence[EngineWarning] = (), mac: MacReport | None = None) -> dict:
    """What `pocketbert verify --json` prints. No checks at all have not passed; warnings fail nothing.

    `mac` says whether Core ML itself ran; its checks are among the others.
    """
    return {
        "passed": bool(checks) and all(check.passed for check in checks),
        "checks": [check.to_json() for check in checks],
        "warnings": [warning.to_json() for warning in warnings],
        **({} if mac is None else {"mac": mac.to_json()}),
    }


def signal_to_noise_db(reference: np.ndarray, value: np.ndarray, level: float | None = None) -> float:
    """10 log10(sum of reference^2 / sum of (value - reference)^2), in decibels; 20 dB is a relative error of 0.1.

    Args:
        reference, value: arrays of one shape.
        level: the root mean square to take for the reference's.

    Returns:
        From -300 (also where either has NaN or infinity) to 300 (also where there is no noise).
    """
    reference, value = np.asarray(reference, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if reference.shape != value.shape:
        raise ValueError(f"shapes {reference.shape} and {value.shape} differ")
    if not (np.isfinite(value).all() and np.isfinite(reference).all()):
        return -MOST_DB
    signal = np.square(reference).sum() if level is None else level**2 * reference.size
    noise = np.square(value - reference).sum()
    if noise == 0.0:
        return MOST_DB
    if signal == 0.0:
        return -MOST_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -MOST_DB, MOST_DB))
