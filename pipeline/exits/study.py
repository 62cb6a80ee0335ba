"""Studies exits: what each is worth, what stopping early costs, whether uncertainty tells right from wrong answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bundle.exit_rule import exits_taken
from pipeline.bundle.manifest import Speed
from pipeline.data.regression_metrics import auroc, spearman
from pipeline.exits.stopping import ALWAYS, PRICES, stopping_thresholds
from pipeline.exits.study_document import (
    Bin,
    Curve,
    ExitStudy,
    Fitted,
    MeasureStudy,
    NamedSpeed,
    Ranking,
    Study,
    Third,
    WithinLoss,
)
from pipeline.tasks import get_task

if TYPE_CHECKING:  # predictions imports torch, which a page about a study does not need
    from pipeline.exits.predictions import Predictions

LOSSES = (0.005, 0.01, 0.02)  # of score against full depth, for which the study looks for the boldest thresholds
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 10
ROUNDING = 1e-9  # tolerance for floating point: a loss of one answer in a hundred counts as 0.01


@dataclass(frozen=True)
class Costs:
    """What the examples cost.

    Attributes:
        length: tokens, [examples].
        flops: floating-point operations up to each exit, [examples, exits].
    """

    length: np.ndarray
    flops: np.ndarray


def study(
    predictions: Predictions, costs: Costs, layers: Sequence[int], measure: str, speeds: Mapping[str, Speed]
) -> Study:
    """Computes everything that a study reports.

    Args:
        predictions: of labelled examples, at least one. `uncertainty` is by the bundle's own measure, `measures` has
            others.
        layers: the layer that each exit follows.
        measure: the name of the bundle's own measure; an entry of that name in `measures` is ignored.
        speeds: named thresholds for the bundle's own measure.
    """
    own = Sweep(predictions.score, predictions.exact, predictions.uncertainty, costs)
    sweeps = {measure: own} | {
        name: Sweep(predictions.score, predictions.exact, values, costs)
        for name, values in predictions.measures.items()
        if name != measure
    }
    task = get_task(predictions.task)
    exact = predictions.exact if "exact_match" in task.metrics else None
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
                exact_match=None if exact is None else short(exact[:, exit].mean()),
                flops=short(costs.flops[:, exit].mean() / own.full_flops),
                quantiles=[short(value) for value in np.quantile(predictions.uncertainty[:, exit], QUANTILES)],
                bins=make_bins(predictions.uncertainty[:, exit], predictions.score[:, exit]),
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
    """The outcomes of all thresholds for one measure of uncertainty.

    Args:
        score, uncertainty: [examples, exits].
        exact: [examples, exits], 1 where the answer is right; None for regression.
    """

    def __init__(self, score: np.ndarray, exact: np.ndarray | None, uncertainty: np.ndarray, costs: Costs):
        self.score, self.exact, self.uncertainty, self.costs = score, exact, uncertainty, costs
        self.full, self.full_flops = score[:, -1].mean(), costs.flops[:, -1].mean()
        self.thresholds = sweep_thresholds(uncertainty)
        self.rows = np.arange(len(score))
        taken = [exits_taken(uncertainty, [threshold] * score.shape[1]) for threshold in self.thresholds]
        self.scores = np.array([score[self.rows, exits].mean() for exits in taken])
        self.depths = np.array([(exits + 1).mean() for exits in taken])
        self.flops = np.array([costs.flops[self.rows, exits].mean() for exits in taken]) / self.full_flops
        order = np.argsort(costs.length, kind="stable")
        self.thirds = [third for third in np.array_split(order, 3) if len(third)]

    def curve(self) -> Curve:
        """Returns the whole sweep."""
        return Curve(
            thresholds=[float(threshold) for threshold in self.thresholds],
            score=[short(value) for value in self.scores],
            mean_depth=[short(value) for value in self.depths],
            flops=[short(value) for value in self.flops],
        )

    def within(self, max_loss: float) -> float:
        """Returns the threshold of `WithinLoss`."""
        # The loss has to stay small on the whole way from full depth: a bolder threshold may lose little by luck.
        over = np.flatnonzero(self.full - self.scores > max_loss + ROUNDING)
        return float(self.thresholds[max(0, over[0] - 1) if len(over) else -1])

    def fitted(self) -> list[Fitted]:
        """Returns an entry for each of `LOSSES`."""
        halves = np.array_split(np.random.default_rng(0).permutation(len(self.score)), 2)
        best = {loss: np.full(len(self.score), self.score.shape[1] - 1) for loss in LOSSES}
        safe = set(LOSSES)
        for price in PRICES:
            exits = np.zeros(len(self.score), int)
            for measured, fitted in (halves, halves[::-1]):
                thresholds = stopping_thresholds(self.score[fitted], self.uncertainty[fitted], price)
                exits[measured] = exits_taken(self.uncertainty[measured], thresholds)
            lost = self.full - self.score[self.rows, exits].mean()
            safe = {loss for loss in safe if lost <= loss + ROUNDING}
            best |= dict.fromkeys(safe, exits)
        return [Fitted(max_loss=loss, **self.outcome(best[loss])) for loss in LOSSES]

    def outcome(self, exits: np.ndarray) -> dict[str, Any]:
        """Returns the fields of `Outcome`, given the exit (from 0) that each example takes, [examples]."""
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

    def point(self, thresholds: Sequence[float]) -> dict[str, Any]:
        """Returns the fields of `OperatingPoint`."""
        exits = exits_taken(self.uncertainty, thresholds)
        losses = self.score[:, -1] - self.score[self.rows, exits]
        return {
            "thresholds": list(thresholds),
            **self.outcome(exits),
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
        """Returns a ranking for each exit."""
        return [
            Ranking(
                auroc=None if self.exact is None else short_or_none(auroc(uncertainty, self.exact[:, exit] == 1)),
                spearman=short_or_none(spearman(uncertainty, self.score[:, exit])),
            )
            for exit, uncertainty in enumerate(self.uncertainty.T)
        ]


def sweep_thresholds(uncertainty: np.ndarray) -> np.ndarray:
    """Returns ascending thresholds from 0 (full depth) to one above every uncertainty.

    They are steps of 0.01 and the half per cent quantiles of the uncertainty before the last exit. Steps alone would
    favour some measures: one that is 0.001 for most examples needs finer ones.

    Args:
        uncertainty: [examples, exits].
    """
    even = np.arange(101) / 100
    early = uncertainty[:, :-1].astype(np.float64)
    dense = np.quantile(early, np.arange(201) / 200) if early.size else even
    readable = [float(f"{value:.6g}") for value in (*even, *dense)]
    return np.unique([*(value for value in readable if 0 <= value <= 1), ALWAYS])


def make_bins(uncertainty: np.ndarray, score: np.ndarray) -> list[Bin]:
    """Cuts the examples into tenths by uncertainty. Equal values stay together, so there may be fewer than ten bins.

    Args:
        uncertainty, score: [examples].
    """
    edges = np.unique(np.quantile(uncertainty, np.arange(1, BINS) / BINS))
    bins = np.searchsorted(edges, uncertainty, side="left")
    members = [bins == index for index in range(len(edges) + 1)]
    return [
        Bin(
            examples=int(member.sum()), uncertainty=short(uncertainty[member].mean()), score=short(score[member].mean())
        )
        for member in members
        if member.any()
    ]


def short(value: float) -> float:
    """Rounds to six decimals, enough for a page of numbers and the same bytes on every machine."""
    return round(float(value), 6) + 0.0


def short_or_none(value: float | None) -> float | None:
    """Rounds as `short` does; None stays None."""
    return None if value is None else short(value)
