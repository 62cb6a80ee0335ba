"""The ablation of a recipe: its training again without each term of its losses, and from random weights (DistilBERT, table 4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from rich.table import Table

from pipeline.recipe import Recipe, set_value
from pipeline.run.engine import Run
from pipeline.support import processes
from pipeline.support.progress import console
from pipeline.support.workspace import write_text

LAST = "exits"  # the stage that leaves the scores of every exit on dev, before anything is quantized
LEADING = ("accuracy", "f1", "pearson")  # what a delta is of, where the task has it
FULL = "full"
# Key of the recipe -> (name of the variant without it, what is said of it).
PRETRAINING_TERMS = {
    "pretrain.soft_weight": ("pretrain-without-soft", "pre-training without soft targets"),
    "pretrain.mlm_weight": ("pretrain-without-mlm", "pre-training without masked words"),
    "pretrain.hidden_weight": ("pretrain-without-hidden", "pre-training without the cosine of hidden states"),
}
TASK_TERMS = {
    "distill.soft_weight": ("without-soft", "without the teacher's soft targets"),
    "distill.hard_weight": ("without-hard", "without the labels"),
    "distill.hidden_weight": ("without-hidden", "without the cosine of hidden states"),
    "distill.attention_weight": ("without-attention", "without the teacher's attention"),
    "distill.training.exit_weight": ("without-exits", "without the early exits in the loss"),
}


@dataclass(frozen=True)
class Variant:
    """A recipe that differs in one thing; `name` is its folder, `change` says what differs."""

    name: str
    change: str
    recipe: Recipe


class Row(BaseModel):
    """What one variant scored on dev: at full depth, as `Predictions.metrics` has it, and its distance from the full loss; every exit's
    leading score.
    """

    name: str
    change: str
    metrics: dict[str, float]
    delta: float
    exits: list[float]


class Ablation(BaseModel):
    """All variants of a recipe, the full loss first; `metric` is what deltas and exits are of."""

    recipe: str
    task: str
    metric: str
    variants: list[Row]


def variants(recipe: Recipe) -> list[Variant]:
    """The full loss, it without each term of it that the recipe uses, without pre-training if there is some, and random first weights.

    A term that is alone in its loss is not taken away: nothing would be left to learn.
    """

    def changed(name: str, change: str, key: str, value) -> Variant:
        raw = recipe.model_dump()
        set_value(raw, key, value)
        return Variant(name, change, Recipe.model_validate(raw))

    found = [Variant(FULL, "the recipe as it is", recipe)]
    for terms, used in (
        (PRETRAINING_TERMS, recipe.pretrain.corpus is not None),
        (TASK_TERMS, recipe.distill.training.epochs > 0),
    ):
        weighted = [key for key in terms if used and weight(recipe, key) > 0]
        if len(weighted) > 1:
            found += [changed(*terms[key], key, 0.0) for key in weighted]
    if recipe.pretrain.corpus is not None:
        found.append(changed("without-pretraining", "without pre-training", "pretrain.corpus", None))
    if recipe.student.initialise != "random":
        found.append(changed("random", "from random weights", "student.initialise", "random"))
    return found


def weight(recipe: Recipe, key: str) -> float:
    """The value of a dotted key."""
    value = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def ablate(recipe: Recipe, out: str | Path) -> Ablation:
    """Trains and measures every variant, in OUT/ablation/NAME; what does not differ is taken from OUT. A killed ablation continues.

    Leaves the results in OUT/ablation/ablation.json.
    """
    base = Run(recipe, out)
    base.upto(LAST)
    folder = base.workspace.root / "ablation"
    measured = []
    with base.workspace.locked():
        for variant in variants(recipe):
            run = base
            if variant.name != FULL:
                console.print(f"ablation: {variant.change}")
                run = Run(variant.recipe, folder / variant.name, base)
                run.upto(LAST)
            measured.append((variant, run.metrics(LAST)))
        result = summarise(recipe, measured)
        if processes.is_main():
            folder.mkdir(exist_ok=True)
            write_text(folder / "ablation.json", json.dumps(result.model_dump(), indent=2) + "\n")
    return result


def summarise(recipe: Recipe, measured: Sequence[tuple[Variant, dict]]) -> Ablation:
    """The results from each variant's scores, the full loss's first; scores as the stage `exits` leaves them."""
    full = {name: value for name, value in measured[0][1].items() if name != "exits"}
    metric = next((name for name in LEADING if name in full), next(iter(full)))
    rows = [
        Row(
            name=variant.name,
            change=variant.change,
            metrics={name: scores[name] for name in full},
            delta=scores[metric] - full[metric],
            exits=[at[metric] for at in scores["exits"]],
        )
        for variant, scores in measured
    ]
    return Ablation(recipe=recipe.name, task=recipe.task, metric=metric, variants=rows)


def ablation_table(ablation: Ablation) -> Table:
    """The results for a terminal; deltas in points."""
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
