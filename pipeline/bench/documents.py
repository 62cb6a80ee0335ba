"""What a benchmark on any device hands back: the JSON of `pocketbert bench --json`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Device(BaseModel):
    """What was measured on. A phone adds fields of its own (battery, temperature), which are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(description="host, android, ios or coreml")
    system: str
    processor: str
    cores: int
    threads: int = Field(description="of the runtime's thread pool, the same for every system")


class Measurement(BaseModel):
    """One system at one length and depth, batch 1.

    The time of a run is that of the programs alone, without tokenization and decoding. `load_ms` is from an open process that has
    imported the system's runtime to the first answer, at the first length measured. `peak_memory_bytes` is of the whole process, after all
    its runs; `baseline_memory_bytes` is what it held before it loaded the program, the bare runtime. None where a device cannot tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    model: str
    precision: str
    variant: str = Field(
        "", description="what tells two ways to run a system apart: fixed or any length, with or without fusions"
    )
    length: int = Field(description="tokens, padding included where the system pads")
    depth: int = Field(description="segments run; layers for a system without exits")
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
        description="from torch-eager's logits, as a share of their largest; None for another model, another depth, or without it",
    )

    @property
    def used_memory_bytes(self) -> int | None:
        """The peak above the bare runtime; None where a device cannot tell."""
        if self.peak_memory_bytes is None or self.baseline_memory_bytes is None:
            return None
        return self.peak_memory_bytes - self.baseline_memory_bytes


LINEAR_UP_TO = 128  # tokens; beyond them attention, which grows by the length's square, shows


@dataclass(frozen=True)
class Growth:
    """The least-squares line of a system's median milliseconds over its length.

    Attributes:
        fixed_ms, token_ms: its intercept and its slope.
        r_squared: share of the variance that it explains.
        lengths: that it was fitted to, at most `LINEAR_UP_TO` tokens.
        ratio: by length, also of those beyond, the median over what the line says.
    """

    fixed_ms: float
    token_ms: float
    r_squared: float
    lengths: tuple[int, ...]
    ratio: dict[int, float]

    def sentence(self) -> str:
        """The fit in words, and how far times beyond it lie above it."""
        said = (
            f"From {self.lengths[0]} to {self.lengths[-1]} tokens it is a line, {self.fixed_ms:.2f} ms and {self.token_ms:.3f} ms a token "
            f"(R² {self.r_squared:.4f}, no length off by more than {100 * max(abs(self.ratio[each] - 1) for each in self.lengths):.0f} %)"
        )
        beyond = [f"{ratio:.2f} times at {length}" for length, ratio in self.ratio.items() if length > self.lengths[-1]]
        return f"{said}; beyond, where attention shows, {', '.join(beyond)}." if beyond else f"{said}."


class BenchReport(BaseModel):
    """All measurements of one session, taken in alternation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Device
    results: list[Measurement]
    left_out: dict[str, str] = Field(
        default_factory=dict, description="systems that could not be measured: why, and the way out"
    )

    def of(self, system: str) -> list[Measurement]:
        """The measurements of one system, in their order."""
        return [result for result in self.results if result.system == system]

    def growth(self, system: str = "pocketbert") -> Growth | None:
        """How a system's time at full depth grows with the length; None of fewer than three lengths up to `LINEAR_UP_TO`."""
        measured = self.of(system)
        deepest = max((each.depth for each in measured), default=0)
        times = {
            each.length: each.median_ms
            for each in sorted(measured, key=lambda each: each.length)
            if each.depth == deepest
        }
        fitted = tuple(length for length in times if length <= LINEAR_UP_TO)
        if len(fitted) < 3:
            return None
        medians = np.array([times[length] for length in fitted])
        slope, intercept = np.polyfit(fitted, medians, 1)
        rest = medians - (intercept + slope * np.array(fitted))
        return Growth(
            fixed_ms=float(intercept),
            token_ms=float(slope),
            r_squared=float(1 - rest @ rest / np.sum((medians - medians.mean()) ** 2)),
            lengths=fitted,
            ratio={length: float(median / (intercept + slope * length)) for length, median in times.items()},
        )
