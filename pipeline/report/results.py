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


class ShownAnswer(Document):
    """A dev example with the bundle's answer, for people.

    Attributes:
        text: the text or the question, perhaps shortened.
        before, after: the passage around the answer, perhaps shortened; empty where there is no passage.
        label: what the example's label says.
        wrong: whether the answer differs from the label. A number is never called wrong.
        depth: how many segments ran, of `segments`.
        latency_ms: tokenization, programs and decoding.
    """

    text: str
    before: str = ""
    answer: str
    after: str = ""
    label: str
    wrong: bool
    depth: int
    segments: int
    latency_ms: float

    @property
    def note(self) -> str:
        """What the label says where it says something else; empty where answer and label agree."""
        if self.wrong:
            return f"WRONG, the label says: {self.label}"
        return "" if self.answer == self.label or self.has_passage else f"the label says: {self.label}"

    @property
    def has_passage(self) -> bool:
        """Whether the answer is a part of a passage. Such an answer may be right in other words than the label's."""
        return bool(self.before or self.after)


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
    showcase: list[ShownAnswer] = Field([], description="a few dev examples with the bundle's answers")
    stage_seconds: dict[str, float]
    provenance: dict[str, str]
