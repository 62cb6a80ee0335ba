"""The named speeds of a recipe: which of them calibration data can show, and their thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.bundle.opening import CALIBRATED_SPEEDS, left_out_field
from pipeline.recipe import Recipe
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.bundle.manifest import Speed
    from pipeline.exits.predictions import Predictions


def named_speeds(recipe: Recipe, predictions: Predictions) -> dict[str, Speed]:
    """Returns the named speeds that the calibration examples can show; the loss of each is the recipe's `exits.NAME`.

    Args:
        recipe: has the losses.
        predictions: of the calibration examples, by the quantized programs.
    """
    from pipeline.exits.calibrate import calibrate_speeds  # imports torch

    left_out = left_out_speeds(recipe, len(predictions.score))
    max_losses = {name: getattr(recipe.exits, name) for name in CALIBRATED_SPEEDS if name not in left_out}
    metric = get_task(recipe.task).speed_metric
    return calibrate_speeds(predictions, max_losses, recipe.exits.delta, metric, recipe.seed)


def left_out_speeds(recipe: Recipe, examples: int) -> dict[str, str]:
    """Returns the named speeds whose promise so many calibration examples cannot show, each with the reason.

    The reason says how many more examples could show it, and what loss these ones could.
    """
    from pipeline.exits.calibrate import examples_needed, smallest_loss  # imports torch

    delta, metric = recipe.exits.delta, get_task(recipe.task).speed_metric
    reasons = {}
    for name in CALIBRATED_SPEEDS:
        max_loss = getattr(recipe.exits, name)
        missing = examples_needed(max_loss, delta, metric) - examples
        if missing > 0:
            reasons[name] = (
                f"{examples} calibration examples cannot show with confidence {1 - delta:g} that it loses at most "
                f"{max_loss:g}; {missing} more can (three times as many are better)"
            )
            if (smallest := smallest_loss(examples, delta, metric)) is not None:
                reasons[name] += f", and these can show {smallest:g} (--set exits.{name}={smallest:g})"
    return reasons


def left_out_warnings(reasons: Mapping[str, str]) -> list[str]:
    """Returns a line for each speed that the bundle will lack; `reasons` is from `left_out_speeds`."""
    return [f"warning: the bundle leaves out the speed {name}: {reason}" for name, reason in reasons.items()]


def left_out_provenance(reasons: Mapping[str, str]) -> dict[str, str]:
    """Returns what a manifest's provenance says of the speeds that the bundle lacks."""
    return {left_out_field(name): reason for name, reason in reasons.items()}
