"""The stage prepare: reads and checks the data, cuts the calibration split off, and keeps all examples in one form."""

from __future__ import annotations

import json

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.labels import LabelRange
from pipeline.data.splits import label_range, label_values, split_off
from pipeline.recipe import Recipe
from pipeline.run.digests import data_digests
from pipeline.run.examples import read_source, read_unlabelled, save_examples
from pipeline.run.preconditions import check_calibration_size
from pipeline.run.results import LABELS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep
from pipeline.support.workspace import Place, write_text


def prepare(results: Results, place: Place, on_step: OnStep) -> None:
    """Writes the examples of train, calibration and dev, and the labels.

    Raises:
        UserError: the data are malformed, do not fit each other, or are too few for what the recipe asks of them.
    """
    recipe = results.recipe
    on_step("reading the data", 0, 2)
    train = read_source(recipe, "train")
    on_step("reading the data", 1, 2)
    dev = read_source(recipe, "dev")
    on_step("reading the data", 2, 2)
    read_unlabelled(recipe)  # so that an error in it shows now and not after hours of training
    labels = check_labels(recipe, train, dev)
    if len(train) < 2 * recipe.data.calibration:
        raise UserError(
            f"{recipe.data.calibration} of {len(train)} training examples would go to calibration, more than half; "
            "give more data or set it lower",
            file=recipe.data.train,
            field="data.calibration",
        )
    check_calibration_size(recipe)
    train, calibration = split_off(train, recipe.data.calibration, recipe.seed)
    for name, part in (("train", train), ("calibration", calibration), ("dev", dev)):
        save_examples(part, place.out / f"{name}.jsonl")
    content = labels.model_dump() if isinstance(labels, LabelRange) else labels
    write_text(place.out / LABELS_FILE, json.dumps(content))


def check_labels(recipe: Recipe, train: list[Example], dev: list[Example]) -> tuple[str, ...] | list[str] | LabelRange:
    """Checks that the labels of both parts fit each other and the recipe, and returns them as `Results.labels` does."""
    if recipe.task == "classification":
        labels = label_values(train)
        dev_labels = {example.label for example in dev if isinstance(example, ClassificationExample)}
        unknown = sorted(dev_labels - set(labels), key=str)
        if unknown:
            raise UserError(
                f"label {unknown[0]!r} does not occur in the training data ({', '.join(labels)})",
                file=recipe.data.dev,
                field="data.label",
            )
        if recipe.data.label_names and len(recipe.data.label_names) != len(labels):
            raise UserError(
                f"has {len(recipe.data.label_names)} names for {len(labels)} labels ({', '.join(labels)})",
                field="data.label_names",
            )
        return labels
    if recipe.task == "regression":
        label_range(dev)  # refuses labels that are all alike: no correlation could be measured
        return label_range(train)
    unanswered = sum(isinstance(example, QAExample) and not example.answers for example in (*train, *dev))
    if unanswered and not recipe.qa.allow_no_answer:
        raise UserError(
            f"{unanswered} questions have no answer in their passage; set it to true for SQuAD v2.0 data",
            field="qa.allow_no_answer",
        )
    return ("start", "end")


STAGE = Stage("prepare", "data", (), ("task", "seed", "data", "qa"), prepare, version=2, inputs=data_digests)
