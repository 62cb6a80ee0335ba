"""The stage prepare: reads and checks the data, cuts the calibration split off, and keeps all examples in one form."""

from __future__ import annotations

import json

from pipeline.data.examples import Example
from pipeline.data.jsonl import save_examples
from pipeline.data.labels import LabelRange
from pipeline.data.splits import leave_out, split_off
from pipeline.recipe import Recipe
from pipeline.run.digests import data_digests
from pipeline.run.examples import SPLIT, data_warnings, read_calibration, read_train_and_dev, read_unlabelled
from pipeline.run.named_speeds import left_out_speeds, left_out_warnings
from pipeline.run.preconditions import (
    calibration_count,
    check_calibration_size,
    check_known_positions,
    check_split,
)
from pipeline.run.results import LABELS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.errors import Problems
from pipeline.support.progress import OnStep, console
from pipeline.support.workspace import StageFolder, write_text
from pipeline.tasks import get_task


def prepare(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the examples of train, calibration and dev, and the labels.

    Raises:
        UserError: the data are malformed, do not fit each other, or are too few for what the recipe asks of them. It
            has all that could be found at once.
    """
    recipe, problems = results.recipe, Problems()
    on_step("reading the data", 0, 1)
    examples = read_train_and_dev(recipe, problems)
    on_step("reading the data", 1, 1)
    # Read here too, so that an error in it shows now and not after hours of training.
    problems.attempt(lambda: read_unlabelled(recipe))
    problems.attempt(lambda: check_known_positions(recipe))
    source = recipe.data.calibration
    given = problems.attempt(lambda: read_calibration(recipe, source)) if isinstance(source, str) else None
    if examples is None:
        problems.require_none(recipe.name)
    assert examples is not None
    (train, dev), task = examples, get_task(recipe.task)
    for warning in data_warnings(task, train, dev, recipe.data.dev == SPLIT):
        console.print(f"warning: {warning}")
    labels = problems.attempt(
        lambda: task.labels_of(train, dev, recipe.data.dev, recipe.data.label_names, recipe.input_options)
    )
    split = problems.attempt(lambda: calibration_of(recipe, train, given))
    problems.require_none(recipe.name)
    assert labels is not None and split is not None
    rest, calibration = split
    for line in calibration_lines(recipe, len(train), len(calibration)):
        console.print(line)
    for name, part in (("train", rest), ("calibration", calibration), ("dev", dev)):
        save_examples(part, place.out / f"{name}.jsonl")
    content = labels.model_dump() if isinstance(labels, LabelRange) else labels
    write_text(place.out / LABELS_FILE, json.dumps(content))


def calibration_of(
    recipe: Recipe, train: list[Example], given: list[Example] | None
) -> tuple[list[Example], list[Example]]:
    """Returns the training examples that are left, and those that calibrate: a part of train, or those of a file.

    Args:
        recipe: says how many, or which file.
        train: all training examples.
        given: the examples of the file; None where there is no file, or it could not be read.

    Raises:
        UserError: the calibration examples do not fit the labels, or are too few; or too few are left to train on.
    """
    task, source = get_task(recipe.task), recipe.data.calibration
    if isinstance(source, str):
        if given is None:
            return train, []
        task.labels_of(train, given, source, recipe.data.label_names, recipe.input_options)
        check_calibration_size(recipe, len(given))
        return leave_out(train, given, task.group, source), given
    check_split(recipe, len(train))
    return split_off(train, task.group(train), calibration_count(recipe, len(train)), recipe.seed)


def calibration_lines(recipe: Recipe, train_examples: int, examples: int) -> list[str]:
    """Returns what a user should know of the calibration split: a size that the data decided, and what it is short of.

    Args:
        recipe: the recipe of the run.
        train_examples: how many there were before the split.
        examples: how many calibrate.
    """
    lines = []
    if isinstance(recipe.data.calibration, int) and examples < recipe.data.calibration:
        lines.append(
            f"calibration: {examples} of {train_examples} training examples, a quarter, since there are fewer than "
            f"{2 * recipe.data.calibration:,}; data.calibration sets another number"
        )
    return lines + left_out_warnings(left_out_speeds(recipe, examples))


STAGE = Stage("prepare", "data", (), ("task", "seed", "data", "qa"), prepare, version=2, inputs=data_digests)
