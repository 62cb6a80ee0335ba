"""Checks of a recipe against its data and weights, made before a stage spends hours on them."""

from __future__ import annotations

from pipeline.recipe import Recipe
from pipeline.run.precision import coreml_has_int8_inputs, is_mixed
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

SPEEDS = ("exact", "balanced", "fast")  # the named speeds; the recipe has the greatest loss of each under `exits`


def check_calibration_size(recipe: Recipe, examples: int | None = None) -> None:
    """Checks that the calibration split is large enough for everything that the recipe uses it for.

    Args:
        recipe: says what it is used for.
        examples: how many there are; None: as many as the recipe takes out of train.

    Raises:
        UserError: it is too small to guarantee a named speed, to choose a mixed scheme, or to find the ranges of
            activations.
    """
    from pipeline.exits.calibrate import examples_needed  # imports torch

    if is_mixed(recipe):
        check_sensitivity_size(recipe, examples)
    check_range_size(recipe, examples)
    available, more = calibration_size(recipe, examples), way_to_more(recipe)
    for name in SPEEDS:
        max_loss = getattr(recipe.exits, name)
        needed = examples_needed(max_loss, recipe.exits.delta, get_task(recipe.task).speed_metric)
        if available < needed:
            raise UserError(
                f"{available} examples cannot show that the speed {name!r} loses at most {max_loss:g} "
                f"with confidence {1 - recipe.exits.delta:g}; {more} at least {needed} (better three times "
                f"as many), or raise exits.{name}",
                field="data.calibration",
            )


def calibration_size(recipe: Recipe, examples: int | None) -> int:
    """Returns how many calibration examples there are; `examples` is that number where they come from a file."""
    if examples is not None:
        return examples
    assert isinstance(recipe.data.calibration, int)  # of a file, the caller counts the examples
    return recipe.data.calibration


def way_to_more(recipe: Recipe) -> str:
    """Returns how a user gets more calibration examples, as the beginning of "... at least 100"."""
    return "set it to" if isinstance(recipe.data.calibration, int) else "give a file with"


def check_sensitivity_size(recipe: Recipe, examples: int | None = None) -> None:
    """Checks that the draft part of the calibration split is large enough to compare matrices on.

    Args:
        examples: see `check_calibration_size`.

    Raises:
        UserError: it is too small.
    """
    from quantize.sensitivity import MIN_EXAMPLES  # imports torch

    check_draft_size(recipe, MIN_EXAMPLES, "to compare matrices on", examples)


def check_range_size(recipe: Recipe, examples: int | None = None) -> None:
    """Checks that int8 inputs of Core ML programs, if the recipe has any, get enough examples for their ranges.

    Args:
        examples: see `check_calibration_size`.

    Raises:
        UserError: the draft part of the calibration split has too few.
    """
    from quantize.int8_inputs import MIN_TEXTS  # imports torch

    if coreml_has_int8_inputs(recipe):
        purpose = f"to find the activations' ranges on for export.coreml_precision={recipe.export.coreml_precision}"
        check_draft_size(recipe, MIN_TEXTS, purpose, examples)


def check_draft_size(recipe: Recipe, needed: int, purpose: str, examples: int | None = None) -> None:
    """Checks how many calibration examples fall into the draft part, the one that no threshold is tested on.

    Args:
        recipe: says how the calibration split comes about.
        needed: the least number of examples in the draft part.
        purpose: what they are for, to go into the message.
        examples: see `check_calibration_size`.

    Raises:
        UserError: there are fewer.
    """
    from pipeline.exits.calibrate import DRAFT_SHARE, split_rows  # imports torch

    total = calibration_size(recipe, examples)
    available = len(split_rows(total, recipe.seed)[0])
    if available < needed:
        raise UserError(
            f"{total} examples leave {available} {purpose}, at least {needed} are needed; "
            f"{way_to_more(recipe)} {round(needed / DRAFT_SHARE)} or more",
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
