"""The study of a model's exits: what each is worth, what stopping early costs, and whether uncertainty tells right from wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipeline.bundle.exit_rule import exits_taken
from pipeline.bundle.manifest import Speed
from pipeline.data.regression_metrics import auroc, spearman
from pipeline.exits.stopping import ALWAYS, PRICES, stopping_thresholds
from pipeline.names import Metric, Task
from pipeline.support.document import Document
from pipeline.tasks import get_task

if TYPE_CHECKING:  # predictions brings torch, which a page about a study has no use for
    from pipeline.exits.predictions import Predictions

LOSSES = (0.005, 0.01, 0.02)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 10
ROUNDING = 1e-9  # a loss of one answer in a hundred is 0.01, whatever floating point makes of it


class Third(Document):
    """A third of the examples by length at one operating point; `loss` is against full depth on the same third."""

    examples: int
    shortest: int = Field(description="tokens; for question answering those of the passage")
    longest: int
    loss: float
    mean_depth: float


class Means(Document):
    """What leaving early gives, over all examples.

    `score` and `loss` (of score, against full depth) are fractions of 1, `mean_depth` is in segments run, `exits` counts the examples that
    left after each. `flops` is the mean of floating-point operations as a share of full depth's, and `speed_up` one over it.
    """

    score: float
    loss: float
    mean_depth: float
    flops: float
    speed_up: float
    exits: list[int]


class Point(Means):
    """What thresholds give."""

    thresholds: list[float]
    thirds: list[Third] = Field(description="from the shortest to the longest inputs")


class NamedSpeed(Point):
    """A speed of the manifest, with what it promises there: `max_loss` with probability 1 - `delta`, null where it promises nothing."""

    speed: str
    max_loss: float | None = None
    delta: float | None = None


class WithinLoss(Point):
    """The boldest threshold whose loss, like that of every more careful one in the sweep, is at most `max_loss`."""

    max_loss: float


class Fitted(Means):
    """What a threshold of its own for each exit gives (`pipeline.exits.stopping`): each half of the examples at those fitted to the other.

    The boldest price of a segment whose loss, like that of every lower price, is at most `max_loss`. Nothing is measured on what it was fitted
    to, so it is what such thresholds would give on new examples.
    """

    max_loss: float


class Curve(Document):
    """A sweep over thresholds, one for all exits (FastBERT's speed, section 3.3), from full depth to the first exit; see `Point`."""

    thresholds: list[float]
    score: list[float]
    mean_depth: list[float]
    flops: list[float]


class Ranking(Document):
    """Whether lower uncertainty means higher accuracy at one exit; see `pipeline.data.regression_metrics`. null where it is not defined."""

    auroc: float | None = Field(
        description="area under the ROC curve of uncertainty against a wrong answer (QA: no exact match); regression has none"
    )
    spearman: float | None = Field(description="Spearman's rank correlation of uncertainty and score")


class MeasureStudy(Document):
    """One measure of uncertainty; `own` where the bundle's programs compute it. `rankings` has an entry for each exit."""

    measure: str
    own: bool
    curve: Curve
    within: list[WithinLoss]
    fitted: list[Fitted]
    rankings: list[Ranking]

    @property
    def mean_auroc(self) -> float | None:
        """Mean over the exits where it is defined; None where it is at none."""
        defined = [ranking.auroc for ranking in self.rankings if ranking.auroc is not None]
        return sum(defined) / len(defined) if defined else None


class Bin(Document):
    """Examples of like uncertainty at one exit: means of uncertainty and score."""

    examples: int
    uncertainty: float
    score: float


class ExitStudy(Document):
    """One exit, as if every example left there.

    `quantiles` are of the uncertainty, at 5, 25, 50, 75 and 95 %; `bins` are tenths of the examples by uncertainty, from the surest on.
    """

    layer: int
    score: float
    exact_match: float | None = Field(None, description="question answering only")
    flops: float = Field(description="share of full depth's")
    quantiles: list[float]
    bins: list[Bin]


class Study(Document):
    """What `pocketbert study --json` prints. Scores are fractions of 1 in `metric`; `measures` begins with the bundle's own."""

    task: Task
    metric: Metric
    examples: int
    full_depth: float = Field(description="the score of the last exit")
    full_depth_flops: float = Field(description="mean floating-point operations of one example at full depth")
    exits: list[ExitStudy]
    speeds: list[NamedSpeed]
    measures: list[MeasureStudy]

    @property
    def own(self) -> MeasureStudy:
        """The measure that the bundle's programs compute."""
        return self.measures[0]


@dataclass(frozen=True)
class Costs:
    """What the examples are to a runner: `length` in tokens, [examples]; `flops` until each exit, [examples, exits]."""

    length: np.ndarray
    flops: np.ndarray


def study(
    predictions: Predictions, costs: Costs, layers: Sequence[int], measure: str, speeds: Mapping[str, Speed]
) -> Study:
    """Everything that the exits' answers to labelled examples tell.

    Args:
        predictions: of at least one example, at every exit; `measures` are the alternatives, `uncertainty` the bundle's own.
        layers: after which layer each exit stands.
        measure: what the bundle's own is called; an alternative of that name is left out.
        speeds: thresholds for the bundle's own measure.
    """
    own = Sweep(predictions.score, predictions.exact, predictions.uncertainty, costs)
    sweeps = {measure: own} | {
        name: Sweep(predictions.score, predictions.exact, values, costs)
        for name, values in predictions.measures.items()
        if name != measure
    }
    task = get_task(predictions.task)
    return Study(
        task=predictions.task,
        metric=task.speed_metric,
        examples=len(predictions.score),
        full_depth=short(own.full),
        full_depth_flops=float(own.full_flops),
        exits=[
            ExitStudy(
                layer=layer,
                score=short(predictions.score[:, exit].mean()),
                exact_match=short(predictions.exact[:, exit].mean()) if "exact_match" in task.metrics else None,
                flops=short(costs.flops[:, exit].mean() / own.full_flops),
                quantiles=[short(value) for value in np.quantile(predictions.uncertainty[:, exit], QUANTILES)],
                bins=bins_of(predictions.uncertainty[:, exit], predictions.score[:, exit]),
            )
            for exit, layer in enumerate(layers)
        ],
        speeds=[
            NamedSpeed(speed=name, max_loss=speed.max_loss, delta=speed.delta, **own.point(speed.thresholds))
            for name, speed in speeds.items()
        ],
        measures=[
            MeasureStudy(
                measure=name,
                own=name == measure,
                curve=sweep.curve(),
                within=[
                    WithinLoss(max_loss=loss, **sweep.point([sweep.within(loss)] * len(layers))) for loss in LOSSES
                ],
                fitted=sweep.fitted(),
                rankings=sweep.rankings(),
            )
            for name, sweep in sweeps.items()
        ],
    )


class Sweep:
    """One measure of uncertainty over all thresholds; arrays are [examples, exits]."""

    def __init__(self, score: np.ndarray, exact: np.ndarray | None, uncertainty: np.ndarray, costs: Costs):
        self.score, self.exact, self.uncertainty, self.costs = score, exact, uncertainty, costs
        self.full, self.full_flops = score[:, -1].mean(), costs.flops[:, -1].mean()
        self.thresholds = thresholds_of(uncertainty)
        self.rows = np.arange(len(score))
        taken = [exits_taken(uncertainty, [threshold] * score.shape[1]) for threshold in self.thresholds]
        self.scores = np.array([score[self.rows, exits].mean() for exits in taken])
        self.depths = np.array([(exits + 1).mean() for exits in taken])
        self.flops = np.array([costs.flops[self.rows, exits].mean() for exits in taken]) / self.full_flops
        order = np.argsort(costs.length, kind="stable")
        self.thirds = [third for third in np.array_split(order, 3) if len(third)]

    def curve(self) -> Curve:
        """The whole sweep."""
        return Curve(
            thresholds=[float(threshold) for threshold in self.thresholds],
            score=[short(value) for value in self.scores],
            mean_depth=[short(value) for value in self.depths],
            flops=[short(value) for value in self.flops],
        )

    def within(self, max_loss: float) -> float:
        """The threshold of `WithinLoss`."""
        # Not the least depth at which the loss is small by luck: from full depth on it has to stay small.
        over = np.flatnonzero(self.full - self.scores > max_loss + ROUNDING)
        return float(self.thresholds[max(0, over[0] - 1) if len(over) else -1])

    def fitted(self) -> list[Fitted]:
        """An entry for each of `LOSSES`."""
        halves = np.array_split(np.random.default_rng(0).permutation(len(self.score)), 2)
        best = {loss: np.full(len(self.score), self.score.shape[1] - 1) for loss in LOSSES}
        safe = set(LOSSES)
        for price in PRICES:
            exits = np.zeros(len(self.score), int)
            for here, there in (halves, halves[::-1]):
                exits[here] = exits_taken(
                    self.uncertainty[here], stopping_thresholds(self.score[there], self.uncertainty[there], price)
                )
            lost = self.full - self.score[self.rows, exits].mean()
            safe = {loss for loss in safe if lost <= loss + ROUNDING}
            best |= dict.fromkeys(safe, exits)
        return [Fitted(max_loss=loss, **self.means(best[loss])) for loss in LOSSES]

    def means(self, exits: np.ndarray) -> dict:
        """The fields of `Means`, given the exit (from 0) that each takes, [examples]."""
        score = self.score[self.rows, exits].mean()
        flops = self.costs.flops[self.rows, exits].mean() / self.full_flops
        return {
            "score": short(score),
            "loss": short(self.full - score),
            "mean_depth": short((exits + 1).mean()),
            "flops": short(flops),
            "speed_up": short(1 / flops),
            "exits": np.bincount(exits, minlength=self.score.shape[1]).tolist(),
        }

    def point(self, thresholds: Sequence[float]) -> dict:
        """The fields of `Point`."""
        exits = exits_taken(self.uncertainty, thresholds)
        losses = self.score[:, -1] - self.score[self.rows, exits]
        return {
            "thresholds": list(thresholds),
            **self.means(exits),
            "thirds": [
                Third(
                    examples=len(third),
                    shortest=int(self.costs.length[third].min()),
                    longest=int(self.costs.length[third].max()),
                    loss=short(losses[third].mean()),
                    mean_depth=short((exits[third] + 1).mean()),
                )
                for third in self.thirds
            ],
        }

    def rankings(self) -> list[Ranking]:
        """One for each exit."""
        return [
            Ranking(
                auroc=None if self.exact is None else short(auroc(unsure, self.exact[:, exit] == 1)),
                spearman=short(spearman(unsure, self.score[:, exit])),
            )
            for exit, unsure in enumerate(self.uncertainty.T)
        ]


def thresholds_of(uncertainty: np.ndarray) -> np.ndarray:
    """Ascending thresholds from 0 (full depth) to one above all, in steps of 0.01 and wherever examples are.

    A measure that says 0.001 for most examples has little use for steps of 0.01; half per cent quantiles of what it says before the last
    exit make the comparison of measures one of measures, not of grids.
    """
    even = np.arange(101) / 100
    early = uncertainty[:, :-1].astype(np.float64)
    dense = np.quantile(early, np.arange(201) / 200) if early.size else even
    readable = [float(f"{value:.6g}") for value in (*even, *dense)]
    return np.unique([*(value for value in readable if 0 <= value <= 1), ALWAYS])


def bins_of(uncertainty: np.ndarray, score: np.ndarray) -> list[Bin]:
    """Tenths of the examples by uncertainty; equal values stay together, so there may be fewer than ten."""
    edges = np.unique(np.quantile(uncertainty, np.arange(1, BINS) / BINS))
    place = np.searchsorted(edges, uncertainty, side="left")
    return [
        Bin(
            examples=int(chosen.sum()), uncertainty=short(uncertainty[chosen].mean()), score=short(score[chosen].mean())
        )
        for chosen in (place == at for at in range(len(edges) + 1))
        if chosen.any()
    ]


def short(value: float | None) -> float | None:
    """Six decimals: what a page of numbers needs, and the same bytes on every machine."""
    return None if value is None else round(float(value), 6) + 0.0
