"""What a benchmark on any device hands back: the JSON of `pocketbert bench --json`."""

from __future__ import annotations

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
    variant: str = Field("", description="what tells two ways to run a system apart: fixed or any length, with or without fusions")
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
        None, description="from torch-eager's logits, as a share of their largest; None for another model, another depth, or without it"
    )

    @property
    def used_memory_bytes(self) -> int | None:
        """The peak above the bare runtime; None where a device cannot tell."""
        if self.peak_memory_bytes is None or self.baseline_memory_bytes is None:
            return None
        return self.peak_memory_bytes - self.baseline_memory_bytes


class BenchReport(BaseModel):
    """All measurements of one session, taken in alternation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Device
    results: list[Measurement]
    left_out: dict[str, str] = Field(default_factory=dict, description="systems that could not be measured: why, and the way out")

    def of(self, system: str) -> list[Measurement]:
        """The measurements of one system, in their order."""
        return [result for result in self.results if result.system == system]
