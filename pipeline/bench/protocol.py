"""The timing protocol: systems take turns, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.support.progress import OnStep, silent

WARM_UP = 2  # rounds: the first run of a program allocates, the second finds its memory


class System(Protocol):
    """Something to time. `run` does the work once and returns its milliseconds, by a clock that is close to the work."""

    name: str

    def run(self) -> float: ...


@dataclass(frozen=True)
class Timing:
    """The timed runs of one system, in milliseconds."""

    median_ms: float
    p5_ms: float
    p95_ms: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Median, 5th and 95th percentile (linear between neighbours) of at least one sample."""
        low, middle, high = (float(value) for value in np.percentile(samples, (5, 50, 95)))
        return cls(middle, low, high, tuple(samples))


def alternate(
    systems: Sequence[System], repeats: int, warmup: int = WARM_UP, on_step: OnStep = silent
) -> dict[str, Timing]:
    """Times systems in rounds, each once a round: A B C A B C ...

    Args:
        systems: with names that differ.
        repeats: timed rounds, at least 1.
        warmup: rounds before them that are not counted.
        on_step: told after each round.

    Returns:
        the timing of each system by its name, in the order given.

    Raises:
        ValueError: two systems of one name, or no repeats.
    """
    names = [system.name for system in systems]
    if len(set(names)) != len(names):
        raise ValueError(f"two systems have one name: {names}")
    if repeats < 1:
        raise ValueError(f"{repeats} repeats measure nothing")
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        for system in systems:
            milliseconds = system.run()
            if turn >= warmup:
                samples[system.name].append(milliseconds)
        on_step("timing in turns", turn + 1, warmup + repeats)
    return {name: Timing.of(taken) for name, taken in samples.items()}
