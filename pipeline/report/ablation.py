"""The results of an ablation, and their table for a terminal."""

from __future__ import annotations

from rich.table import Table

from pipeline.support.document import Document

FULL = "full"  # the name of the variant that is the recipe as it stands


class AblationRow(Document):
    """What one variant scored on dev.

    Attributes:
        name: the variant's folder.
        change: what differs from the recipe, in words.
        metrics: its scores at full depth, see `Predictions.metrics`.
        delta: its score minus that of the full loss, in the ablation's metric.
        exits: the same metric at every exit.
    """

    name: str
    change: str
    metrics: dict[str, float]
    delta: float
    exits: list[float]


class Ablation(Document):
    """All variants of a recipe, the full loss first. `metric` is the one that deltas and exits are in."""

    recipe: str
    task: str
    metric: str
    variants: list[AblationRow]


def ablation_table(ablation: Ablation) -> Table:
    """Returns a table with one row per variant; deltas are in points."""
    table = Table(
        "variant",
        *(name.replace("_", " ") for name in ablation.variants[0].metrics),
        "delta, points",
        "exits, first to last",
    )
    for row in ablation.variants:
        delta = "" if row.name == FULL else f"{100 * row.delta:+.2f}"
        table.add_row(
            row.change,
            *(f"{value:.4f}" for value in row.metrics.values()),
            delta,
            " ".join(f"{value:.3f}" for value in row.exits),
        )
    return table
