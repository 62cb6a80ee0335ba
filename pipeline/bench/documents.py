"""The results of a benchmark on any device: the JSON of `pocketbert bench --json`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict, Field

from pipeline.support.document import Document


class Device(Document):
    """The device that was measured. A phone adds fields of its own (battery, temperature), and these are kept."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(description="host, android, ios or coreml")
    system: str
    processor: str
    cores: int
    threads: int = Field(description="threads of each system's runtime, the same number for all")


class Measurement(Document):
    """One system at one length and depth, batch size 1.

    A timed run covers the programs only, without tokenization and decoding. `load_ms` is the time from loading the
    program to its first answer, at the first measured length; the process has imported the runtime before.
    `peak_memory_bytes` is the peak of the whole process after all its runs. `baseline_memory_bytes` is what the process
    held before it loaded the program. They are null if the device cannot tell them.
    """

    system: str
    model: str
    precision: str
    variant: str = Field(
        "", description="tells two ways to run a system apart: fixed or any length, with or without fusions"
    )
    length: int = Field(description="tokens, including padding if the system pads")
    depth: int = Field(description="segments that ran; layers for a system without exits")
    median_ms: float
    p95_ms: float
    p5_ms: float | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    baseline_memory_bytes: int | None = None
    file_bytes: int
    runs: int = Field(description="timed runs, after the warm-up")
    difference: float | None = Field(
        None,
        description="largest difference from torch-eager's logits, as a share of the largest logit; null for another "
        "model, for less than full depth, or if torch-eager was not measured",
    )

    @property
    def used_memory_bytes(self) -> int | None:
        """The peak above the baseline, or None if the device cannot tell them."""
        if self.peak_memory_bytes is None or self.baseline_memory_bytes is None:
            return None
        return self.peak_memory_bytes - self.baseline_memory_bytes


LINEAR_UP_TO_TOKENS = 128  # attention grows with the square of the length, which shows at greater lengths
MIN_FITTED_LENGTHS = 3


@dataclass(frozen=True)
class Growth:
    """A system's median time as a linear function of the length, fitted by least squares.

    Attributes:
        fixed_ms: intercept in milliseconds.
        token_ms: slope in milliseconds per token.
        r_squared: share of the variance that the line explains.
        lengths: the fitted lengths, at most `LINEAR_UP_TO_TOKENS`.
        ratio: for every measured length, also the longer ones, the median divided by the line's value.
    """

    fixed_ms: float
    token_ms: float
    r_squared: float
    lengths: tuple[int, ...]
    ratio: dict[int, float]

    def sentence(self) -> str:
        """Returns the fit in words, and how far the times of longer inputs lie above the line."""
        largest_error = max(abs(self.ratio[length] - 1) for length in self.lengths)
        line = (
            f"From {self.lengths[0]} to {self.lengths[-1]} tokens the time at full depth grows linearly: "
            f"{self.fixed_ms:.2f} ms plus {self.token_ms:.3f} ms a token "
            f"(R² {self.r_squared:.4f}, no length off by more than {100 * largest_error:.0f} %)"
        )
        longer = [f"{ratio:.2f} times at {length}" for length, ratio in self.ratio.items() if length > self.lengths[-1]]
        if not longer:
            return f"{line}."
        return f"{line}. For longer inputs attention adds to it; measured over fitted time: {', '.join(longer)}."


class BenchReport(Document):
    """All measurements of one session, in which the systems took turns."""

    device: Device
    results: list[Measurement]
    left_out: dict[str, str] = Field(
        default_factory=dict, description="systems that could not be measured: why, and what to do about it"
    )

    def measurements_of(self, system: str) -> list[Measurement]:
        """Returns the measurements of one system, in their order."""
        return [result for result in self.results if result.system == system]

    def growth(self, system: str = "pocketbert") -> Growth | None:
        """Fits a system's time at full depth over the length.

        Returns:
            None if fewer than three lengths up to `LINEAR_UP_TO_TOKENS` were measured.
        """
        measurements = self.measurements_of(system)
        full_depth = max((measurement.depth for measurement in measurements), default=0)
        medians = {
            measurement.length: measurement.median_ms
            for measurement in sorted(measurements, key=lambda measurement: measurement.length)
            if measurement.depth == full_depth
        }
        fitted = tuple(length for length in medians if length <= LINEAR_UP_TO_TOKENS)
        if len(fitted) < MIN_FITTED_LENGTHS:
            return None
        times = np.array([medians[length] for length in fitted])
        slope, intercept = np.polyfit(fitted, times, 1)
        residuals = times - (intercept + slope * np.array(fitted))
        return Growth(
            fixed_ms=float(intercept),
            token_ms=float(slope),
            r_squared=float(1 - residuals @ residuals / np.sum((times - times.mean()) ** 2)),
            lengths=fitted,
            ratio={length: float(median / (intercept + slope * length)) for length, median in medians.items()},
        )
