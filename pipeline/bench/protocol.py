"""The timing protocol: all cases take turns, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.support.progress import OnStep, silent

WARM_UP_ROUNDS = 2  # the first run of a program allocates its memory, and the second finds it


class Timeable(Protocol):
    """Something to time."""

    @property
    def name(self) -> str:
        """Tells it from the others."""

    def run(self) -> float:
        """Does the work once and returns its milliseconds, measured by a clock close to the work."""


@dataclass(frozen=True)
class Timing:
    """The timed runs of one case.

    Attributes:
        median_ms, p5_ms, p95_ms: percentiles in milliseconds, interpolated linearly between neighbours.
        samples: milliseconds of every run.
    """

    median_ms: float
    p5_ms: float
    p95_ms: float
    samples: tuple[float, ...]

    @classmethod
    def from_samples(cls, samples: Sequence[float]) -> Timing:
        """Returns the percentiles of at least one sample."""
        low, middle, high = (float(value) for value in np.percentile(samples, (5, 50, 95)))
        return cls(middle, low, high, tuple(samples))


def alternate(
    cases: Sequence[Timeable], repeats: int, warm_up_rounds: int = WARM_UP_ROUNDS, on_step: OnStep = silent
) -> dict[str, Timing]:
    """Times all cases in rounds; a round runs each case once: A B C A B C ...

    Args:
        cases: with distinct names.
        repeats: number of timed rounds, at least 1.
        warm_up_rounds: number of rounds before them that are not counted.
        on_step: called after each round.

    Returns:
        the timings by name, in the order of `cases`.

    Raises:
        ValueError: two cases have the same name, or `repeats` is less than 1.
    """
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"two cases have the same name: {names}")
    if repeats < 1:
        raise ValueError(f"{repeats} repeats measure nothing; give at least 1")
    samples: dict[str, list[float]] = {name: [] for name in names}
    rounds = warm_up_rounds + repeats
    for index in range(rounds):
        for case in cases:
            milliseconds = case.run()
            if index >= warm_up_rounds:
                samples[case.name].append(milliseconds)
        on_step("timing in turns", index + 1, rounds)
    return {name: Timing.from_samples(case_samples) for name, case_samples in samples.items()}
