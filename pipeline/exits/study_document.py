"""The JSON document of a study: what each exit is worth, and what stopping early costs."""

from __future__ import annotations

from pydantic import Field

from pipeline.names import Metric, Task
from pipeline.support.document import Document


class Third(Document):
    """A third of the examples by length, at one operating point. `loss` is against full depth on the same examples."""

    examples: int
    shortest: int = Field(description="tokens; for question answering those of the passage")
    longest: int
    loss: float
    mean_depth: float


class Outcome(Document):
    """What leaving early gives on all examples: means, and how many leave at each exit."""

    score: float = Field(description="fraction of 1")
    loss: float = Field(description="of score against full depth, fraction of 1")
    mean_depth: float = Field(description="segments run")
    flops: float = Field(description="mean floating-point operations as a share of full depth's")
    speed_up: float = Field(description="1 / flops")
    exits: list[int] = Field(description="number of examples that left after each exit")


class OperatingPoint(Outcome):
    """The outcome at given thresholds."""

    thresholds: list[float] = Field(description="one per exit")
    thirds: list[Third] = Field(description="from the shortest to the longest inputs")


class NamedSpeed(OperatingPoint):
    """A speed of the manifest, with its promise.

    The loss is at most `max_loss` with probability 1 - `delta`; both are null for a speed that promises nothing.
    """

    speed: str
    max_loss: float | None = None
    delta: float | None = None


class WithinLoss(OperatingPoint):
    """The boldest threshold of a sweep such that it and all more careful ones lose at most `max_loss`."""

    max_loss: float


class Fitted(Outcome):
    """The outcome with a fitted threshold per exit (`pipeline.exits.stopping`).

    Thresholds are fitted to one half of the examples and measured on the other, so the outcome holds for new
    examples. They belong to the boldest price of a segment such that it and all lower prices lose at most `max_loss`.
    """

    max_loss: float


class Curve(Document):
    """A sweep of one threshold for all exits (FastBERT's speed, section 3.3), from full depth to the first exit.

    The lists are parallel; see `Outcome` for their units.
    """

    thresholds: list[float]
    score: list[float]
    mean_depth: list[float]
    flops: list[float]


class Ranking(Document):
    """Whether lower uncertainty goes with better answers at one exit. null where the statistic is not defined."""

    auroc: float | None = Field(
        description="area under the ROC curve of uncertainty against a wrong answer (QA: no exact match); "
        "regression has none"
    )
    spearman: float | None = Field(description="Spearman's rank correlation of uncertainty and score")


class MeasureStudy(Document):
    """One measure of uncertainty."""

    measure: str
    own: bool = Field(description="whether the bundle's programs compute it")
    curve: Curve
    within: list[WithinLoss]
    fitted: list[Fitted]
    rankings: list[Ranking] = Field(description="one per exit")

    @property
    def mean_auroc(self) -> float | None:
        """Mean AUROC over the exits where it is defined; None if it is defined at none."""
        defined = [ranking.auroc for ranking in self.rankings if ranking.auroc is not None]
        return sum(defined) / len(defined) if defined else None


class Bin(Document):
    """Examples of similar uncertainty at one exit, with their mean uncertainty and score."""

    examples: int
    uncertainty: float
    score: float


class ExitStudy(Document):
    """One exit, as if every example left there."""

    layer: int
    score: float
    exact_match: float | None = Field(None, description="question answering only")
    flops: float = Field(description="share of full depth's")
    quantiles: list[float] = Field(description="of the uncertainty, at 5, 25, 50, 75 and 95 %")
    bins: list[Bin] = Field(description="tenths of the examples by uncertainty, lowest first")


class Study(Document):
    """The output of `pocketbert study --json`. Scores are fractions of 1 in `metric`."""

    task: Task
    metric: Metric
    examples: int
    full_depth: float = Field(description="the score of the last exit")
    full_depth_flops: float = Field(description="mean floating-point operations of one example at full depth")
    exits: list[ExitStudy]
    speeds: list[NamedSpeed]
    measures: list[MeasureStudy] = Field(description="the bundle's own measure first")

    @property
    def own(self) -> MeasureStudy:
        """The measure that the bundle's programs compute."""
        return self.measures[0]
