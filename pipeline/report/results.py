"""Everything that the report of a run shows: the document `results.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.bench.documents import BenchReport
from pipeline.exits.study_document import Study
from pipeline.names import Task
from pipeline.runtime.evaluate import Evaluation
from pipeline.support.document import Document
from pipeline.tasks.scores import Scores
from pipeline.verify.checks import Check, EngineWarning, MacReport
from quantize.size import SizeReport


class Score(Scores):
    """The scores of one model on the dev examples."""

    @property
    def headline(self) -> float | None:
        """The score to plot: accuracy, F1 or Pearson's correlation, or None if there is none of them."""
        return next((score for score in (self.accuracy, self.f1, self.pearson) if score is not None), None)


class RunResults(Document):
    """The scores of a run's models on the dev examples, and the bundle's speed, size and parity.

    `metrics` are the scores in PyTorch of the teacher, of the student at full depth in float32, and of the quantized
    student. `evaluation` has the scores of the bundle's exported programs at every speed. `study` studies their exits
    on the same examples.
    """

    name: str = Field(description="name of the recipe")
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
