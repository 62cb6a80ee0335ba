"""Checks of a recipe against its data and weights, made before a stage spends hours on them."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.recipe import MIN_CALIBRATION_EXAMPLES, Recipe
from pipeline.run.precision import coreml_has_int8_inputs, is_mixed
from pipeline.support.errors import Problems, UserError
from pipeline.tasks import get_task


def check_calibration_size(recipe: Recipe, examples: int | None = None) -> None:
    """Checks that the calibration split is large enough for what a bundle cannot do without.

    Args:
        recipe: says what it is used for.
        examples: how many there are; None: as many as the recipe takes out of train.

    Raises:
        UserError: it is too small to choose a mixed scheme, or to find the ranges of activations.
    """
    if is_mixed(recipe):
        check_sensitivity_size(recipe, examples)
    check_range_size(recipe, examples)


def calibration_count(recipe: Recipe, train_examples: int) -> int:
    """Returns how many of the training examples calibrate.

    A recipe that does not say takes a quarter of train where the default would be more than half.
    """
    count = recipe.data.calibration
    assert isinstance(count, int)  # no file
    if "calibration" in recipe.data.model_fields_set or train_examples >= 2 * count:
        return count
    return max(1, train_examples // 4)


def check_split(recipe: Recipe, train_examples: int) -> None:
    """Checks that calibration leaves enough to train on, and is large enough, see `check_calibration_size`.

    Raises:
        UserError: more than half of the training examples would calibrate, or too few.
    """
    count = calibration_count(recipe, train_examples)
    if train_examples < 2 * count:
        quarter = train_examples // 4
        raise UserError(
            f"{count} of {train_examples} training examples would go to calibration, more than half; "
            "give more data or set it lower",
            file=recipe.data.train,
            field="data.calibration",
            settings=[f"data.calibration={quarter if quarter >= MIN_CALIBRATION_EXAMPLES else 'unset'}"]
            if quarter
            else [],
        )
    check_calibration_size(recipe, count)


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
            settings=[f"data.calibration={round(needed / DRAFT_SHARE)}"] if way_to_more(recipe) == "set it to" else [],
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
    problems = Problems()
    problems.errors += [
        UserError(
            f"{length} is more than the {positions} positions of {recipe.teacher.weights}",
            field=field,
            settings=[f"{field}={positions}"],
        )
        for field, length in dict((longest, ("export.max_length", recipe.export.max_length))).items()
        if length > positions
    ]
    problems.require_none()


def check_known_positions(recipe: Recipe) -> None:
    """Checks lengths like `check_positions` if the weights are a local folder, whose config is read at once.

    Anything else that is wrong with the weights shows when they are loaded.
    """
    try:
        config = json.loads((Path(recipe.teacher.weights) / "config.json").read_text(encoding="utf-8"))
        positions = config["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if isinstance(positions, int) and positions > 0:
        check_positions(recipe, positions)
