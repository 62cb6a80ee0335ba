"""The ablation of a recipe: trains the student again without each term of its losses, and from random weights.

This is what table 4 of the DistilBERT paper (Sanh et al. 2019) does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, set_value
from pipeline.report.ablation import FULL, Ablation, AblationRow
from pipeline.run.engine import Run
from pipeline.support import processes
from pipeline.support.progress import console
from pipeline.support.workspace import write_text

LAST_STAGE = "exits"  # measures every exit on dev, before anything is quantized
PREFERRED_METRICS = ("accuracy", "f1", "pearson")  # deltas are in the first of these that the task has
# Key of the recipe -> (name of the variant without it, the same in words).
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
    """A recipe with one change. `name` is its folder, `change` says in words what differs."""

    name: str
    change: str
    recipe: Recipe


def make_variants(recipe: Recipe) -> list[Variant]:
    """Returns the recipe itself, and a variant for each part of its training that can be left out.

    These are the terms of the losses that the recipe uses, the pre-training, and the teacher's weights that the student
    starts from.
    A term that stands alone in its loss stays: without it there would be nothing to learn.
    """

    def changed(name: str, change: str, key: str, value: float | str | None) -> Variant:
        raw = recipe.model_dump()
        set_value(raw, key, value)
        return Variant(name, change, Recipe.model_validate(raw))

    found = [Variant(FULL, "the recipe as it is", recipe)]
    for terms, used in (
        (PRETRAINING_TERMS, recipe.pretrain.corpus is not None),
        (TASK_TERMS, recipe.distill.training.epochs > 0),
    ):
        weighted = [key for key in terms if used and read_key(recipe, key) > 0]
        if len(weighted) > 1:
            found += [changed(*terms[key], key, 0.0) for key in weighted]
    if recipe.pretrain.corpus is not None:
        found.append(changed("without-pretraining", "without pre-training", "pretrain.corpus", None))
    if recipe.student.initialise != "random":
        found.append(changed("random", "from random weights", "student.initialise", "random"))
    return found


def read_key(recipe: Recipe, key: str) -> Any:
    """Returns the value of a dotted key of a recipe."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def ablate(recipe: Recipe, out: str | Path) -> Ablation:
    """Trains and measures every variant in OUT/ablation/NAME, and writes the results to OUT/ablation/ablation.json.

    Stages that a change does not touch are taken from the run in OUT. An ablation that was killed continues.
    """
    base = Run(recipe, out)
    base.run_up_to(LAST_STAGE)
    folder = base.workspace.root / "ablation"
    measured = []
    with base.workspace.locked():
        for variant in make_variants(recipe):
            run = base
            if variant.name != FULL:
                console.print(f"ablation: {variant.change}")
                run = Run(variant.recipe, folder / variant.name, base)
                run.run_up_to(LAST_STAGE)
            measured.append((variant, run.results.metrics(LAST_STAGE)))
        result = summarise(recipe, measured)
        if processes.is_main():
            folder.mkdir(exist_ok=True)
            write_text(folder / "ablation.json", json.dumps(result.model_dump(), indent=2) + "\n")
    return result


def summarise(recipe: Recipe, measured: Sequence[tuple[Variant, Mapping[str, Any]]]) -> Ablation:
    """Returns the results of an ablation.

    Args:
        recipe: the recipe that all variants come from.
        measured: the variants, that of the full loss first, and their scores as the stage exits writes them.
    """
    full = {name: value for name, value in measured[0][1].items() if name != "exits"}
    metric = next((name for name in PREFERRED_METRICS if name in full), next(iter(full)))
    rows = [
        AblationRow(
            name=variant.name,
            change=variant.change,
            metrics={name: scores[name] for name in full},
            delta=scores[metric] - full[metric],
            exits=[exit_scores[metric] for exit_scores in scores["exits"]],
        )
        for variant, scores in measured
    ]
    return Ablation(recipe=recipe.name, task=recipe.task, metric=metric, variants=rows)
