"""Checks of a recipe against its data and weights, made before a stage spends hours on them."""

from __future__ import annotations

from pipeline.recipe import Recipe
from pipeline.run.precision import coreml_has_int8_inputs, is_mixed
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

SPEEDS = ("exact", "balanced", "fast")  # the named speeds; the recipe has the greatest loss of each under `exits`


def check_calibration_size(recipe: Recipe) -> None:
    """Checks that the calibration split is large enough for everything that the recipe uses it for.

    Raises:
        UserError: it is too small to guarantee a named speed, to choose a mixed scheme, or to find the ranges of
            activations.
    """
    from pipeline.exits.calibrate import examples_needed  # imports torch

    if is_mixed(recipe):
        check_sensitivity_size(recipe)
    check_range_size(recipe)
    for name in SPEEDS:
        max_loss = getattr(recipe.exits, name)
        needed = examples_needed(max_loss, recipe.exits.delta, get_task(recipe.task).speed_metric)
        if recipe.data.calibration < needed:
            raise UserError(
                f"{recipe.data.calibration} examples cannot show that the speed {name!r} loses at most {max_loss:g} "
                f"with confidence {1 - recipe.exits.delta:g}; set it to at least {needed} (better three times "
                f"as many), or raise exits.{name}",
                field="data.calibration",
            )


def check_sensitivity_size(recipe: Recipe) -> None:
    """Checks that the draft part of the calibration split is large enough to compare matrices on.

    Raises:
        UserError: it is too small.
    """
    from quantize.sensitivity import MIN_EXAMPLES  # imports torch

    check_draft_size(recipe, MIN_EXAMPLES, "to compare matrices on")


def check_range_size(recipe: Recipe) -> None:
    """Checks that int8 inputs of Core ML programs, if the recipe has any, get enough examples for their ranges.

    Raises:
        UserError: the draft part of the calibration split has too few.
    """
    from quantize.int8_inputs import MIN_TEXTS  # imports torch

    if coreml_has_int8_inputs(recipe):
        purpose = f"to find the activations' ranges on for export.coreml_precision={recipe.export.coreml_precision}"
        check_draft_size(recipe, MIN_TEXTS, purpose)


def check_draft_size(recipe: Recipe, needed: int, purpose: str) -> None:
    """Checks how many calibration examples fall into the draft part, the one that no threshold is tested on.

    Args:
        recipe: has the size of the whole calibration split.
        needed: the least number of examples in the draft part.
        purpose: what they are for, to go into the message.

    Raises:
        UserError: there are fewer.
    """
    from pipeline.exits.calibrate import DRAFT_SHARE, split_rows  # imports torch

    available = len(split_rows(recipe.data.calibration, recipe.seed)[0])
    if available < needed:
        raise UserError(
            f"{recipe.data.calibration} examples leave {available} {purpose}, at least {needed} are needed; "
            f"set it to {round(needed / DRAFT_SHARE)} or more",
            field="data.calibration",
        )


def check_positions(recipe: Recipe, positions: int) -> None:
    """Checks that no input of the recipe is longer than the weights have positions.

    Args:
        recipe: has the lengths of inputs, in tokens.
        positions: how many tokens the model can take.

    Raises:
        UserError: a length is greater.
    """
    longest = get_task(recipe.task).longest_input(recipe.input_options)
    for field, length in (longest, ("export.max_length", recipe.export.max_length)):
        if length > positions:
            raise UserError(f"{length} is more than the {positions} positions of {recipe.teacher.weights}", field=field)
