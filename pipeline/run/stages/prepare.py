"""The stage prepare: reads and checks the data, cuts the calibration split off, and keeps all examples in one form."""

from __future__ import annotations

import json

from pipeline.data.jsonl import save_examples
from pipeline.data.labels import LabelRange
from pipeline.data.splits import split_off
from pipeline.run.digests import data_digests
from pipeline.run.examples import data_warnings, read_train_and_dev, read_unlabelled
from pipeline.run.preconditions import check_calibration_size
from pipeline.run.results import LABELS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, console
from pipeline.support.workspace import StageFolder, write_text
from pipeline.tasks import get_task


def prepare(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the examples of train, calibration and dev, and the labels.

    Raises:
        UserError: the data are malformed, do not fit each other, or are too few for what the recipe asks of them.
    """
    recipe = results.recipe
    on_step("reading the data", 0, 1)
    train, dev = read_train_and_dev(recipe)
    on_step("reading the data", 1, 1)
    read_unlabelled(recipe)  # so that an error in it shows now and not after hours of training
    task = get_task(recipe.task)
    for warning in data_warnings(task, train, dev):
        console.print(f"warning: {warning}")
    labels = task.labels_of(train, dev, recipe.data.dev, recipe.data.label_names, recipe.input_options)
    if len(train) < 2 * recipe.data.calibration:
        raise UserError(
            f"{recipe.data.calibration} of {len(train)} training examples would go to calibration, more than half; "
            "give more data or set it lower",
            file=recipe.data.train,
            field="data.calibration",
        )
    check_calibration_size(recipe)
    train, calibration = split_off(train, task.group(train), recipe.data.calibration, recipe.seed)
    for name, part in (("train", train), ("calibration", calibration), ("dev", dev)):
        save_examples(part, place.out / f"{name}.jsonl")
    content = labels.model_dump() if isinstance(labels, LabelRange) else labels
    write_text(place.out / LABELS_FILE, json.dumps(content))


STAGE = Stage("prepare", "data", (), ("task", "seed", "data", "qa"), prepare, version=2, inputs=data_digests)
