"""Everything that the report of a run shows, as the stages measured it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.bench.documents import BenchReport
from pipeline.exits.study import Study
from pipeline.names import Task
from pipeline.runtime.evaluate import Evaluation
from pipeline.support.document import Document
from pipeline.verify.checks import Check, EngineWarning, MacReport
from quantize.size import SizeReport


class Score(Document):
    """`accuracy` for classification, `exact_match` and `f1` for question answering, fractions of 1; the others for regression, see
    `SpeedResult`.
    """

    accuracy: float | None = None
    exact_match: float | None = None
    f1: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    mean_absolute_error: float | None = None

    @property
    def headline(self) -> float | None:
        """The one number to plot: accuracy, F1, or Pearson's correlation; None without any."""
        return next((each for each in (self.accuracy, self.f1, self.pearson) if each is not None), None)


class RunResults(Document):
    """One run: what each model on the way scores on dev, and the bundle's speed, size and parity.

    `metrics` has an entry for each of "teacher", "student" (all its layers, float32) and "quantized" (in PyTorch); the bundle's own
    scores are in `evaluation`, one entry a speed, of the exported programs; `study` is of their exits, on the same examples.
    """

    name: str = Field(description="of the recipe")
    task: Task
    metrics: dict[Literal["teacher", "student", "quantized"], Score]
    evaluation: Evaluation
    study: Study
    bench: BenchReport
    size: SizeReport
    checks: list[Check]
    warnings: list[EngineWarning] = []
    mac: MacReport | None = None
    stage_seconds: dict[str, float]
    provenance: dict[str, str]
