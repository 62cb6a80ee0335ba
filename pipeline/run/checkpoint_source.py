"""Reads a fine-tuned Hugging Face checkpoint, and the texts to quantize it with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.examples import ClassificationExample, Example
from pipeline.data.splits import leave_out, split_off
from pipeline.exits.calibrate import split_rows
from pipeline.model.exit_model import ExitModel
from pipeline.model.locate import locate
from pipeline.model.pretrained import Pretrained, encoder_config, load_pretrained
from pipeline.model.weights import read_json
from pipeline.names import Task
from pipeline.recipe import MIN_ROUNDING_TEXTS, Recipe, apply_settings, check_recipe
from pipeline.run.examples import DEMO, read_calibration, read_source, sample_examples
from pipeline.support.errors import UserError
from pipeline.tasks import TASKS, get_task

MAX_TOKENS = 512  # the longest input that a recipe may ask a program to take
COMPARED_TEXTS = 256  # unless the settings have data.dev_limit
# What the other classes of Hugging Face do, by the end of their names, for the message that refuses them.
OTHER_CLASSES = {
    "ForTokenClassification": "which gives a label to every token",
    "ForMultipleChoice": "which chooses among several texts",
    "ForMaskedLM": "which fills in masked words",
    "ForPreTraining": "which is pre-trained only",
    "Model": "which is an encoder without a head",
}
# Values of `problem_type` in a classifier's config.json that no bundle of a checkpoint answers.
PROBLEMS = {
    "multi_label_classification": "gives several labels at once, and a bundle's classifier gives one",
    "regression": "has one output, a regression, and does not say its range of labels",
}
# The parts of a recipe that have no say in quantizing a checkpoint.
UNUSED_SECTIONS = ("teacher", "pretrain", "distill", "bench")


@dataclass(frozen=True)
class CalibrationData:
    """The examples of `data.calibration` for a checkpoint, and what its exit heads learn from.

    Attributes:
        lessons: the heads learn from these, without labels.
        examples: with labels; thresholds are chosen and tested on these, and nothing else is trained on them.
    """

    lessons: list[Example]
    examples: list[Example]

    def draft(self, seed: int, limit: int | None = None) -> list[Example]:
        """Returns the part that proposes thresholds; all else that is fitted to calibration examples uses it too."""
        return [self.examples[row] for row in split_rows(len(self.examples), seed)[0][:limit]]


def check_class(raw: Mapping[str, Any], file: Path) -> Task | None:
    """Returns the task of a checkpoint's class; None for an old config.json that names no class.

    Args:
        raw: the content of config.json.
        file: its path, for messages.

    Raises:
        UserError: models of this class do not answer what a bundle answers.
    """
    names = raw.get("architectures")
    if not isinstance(names, list) or not names:
        return None
    name = str(names[0])
    tasks = [task for task in TASKS.values() if task.answers_from_checkpoint]
    for task in tasks:
        if name.endswith(task.checkpoint_class):
            if task.has_classes:
                check_classifier(raw, file)
            return task.name
    does = next((text for end, text in OTHER_CLASSES.items() if name.endswith(end)), "which is not supported")
    raise UserError(
        f"is {name}, {does}, so it has no head for classification or question answering; "
        f"give a {' or '.join(f'...{task.checkpoint_class}' for task in tasks)}, or a recipe",
        file=file,
        field="architectures",
    )


def check_classifier(raw: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for a classifier whose config.json says that it predicts a number, or several labels at once."""
    labels = raw.get("id2label")
    count = len(labels) if isinstance(labels, dict) else raw.get("num_labels", 2)
    problem = PROBLEMS.get(str(raw.get("problem_type")))
    if problem is not None:
        raise UserError(f"{problem}; give a recipe, or a checkpoint with one label for a text", file=file)
    if count == 1:
        refuse_regression(file)


def refuse_regression(file: str | Path) -> None:
    """Raises UserError."""
    raise UserError(
        "has one output, a regression, and does not say its range of labels; give a recipe of that task", file=file
    )


def load_with_head(weights: str) -> tuple[Pretrained, Task]:
    """Loads a checkpoint and finds the task that its head is for. Type and class are checked before all else.

    Raises:
        UserError: it is no BERT or DistilBERT, has no head, or one for regression.
    """
    config_file = locate(weights) / "config.json"
    raw = read_json(config_file)
    encoder_config(raw, config_file)
    stated = check_class(raw, config_file)
    tasks = [definition.name for definition in TASKS.values() if definition.answers_from_checkpoint]
    for task in tasks if stated is None else [stated]:
        pretrained = load_pretrained(weights, task)
        if pretrained.head is not None:
            break
    else:
        raise UserError(
            "has no head for classification or question answering, so there is nothing it answers; "
            "give a fine-tuned checkpoint, or a recipe",
            file=weights,
        )
    if get_task(task).has_classes and len(pretrained.labels) == 1:
        refuse_regression(weights)
    return pretrained, task


def build_recipe(pretrained: Pretrained, task: Task, settings: Sequence[str]) -> Recipe:
    """Returns the recipe that writes the checkpoint's bundle.

    It has the settings, and where they name no lengths, the longest that the model takes. Core ML programs are written
    only where the settings ask for them.

    Raises:
        UserError: a setting is wrong, or has no effect on a checkpoint.
    """
    raw: dict[str, Any] = {}
    apply_settings(raw, settings)
    check_settings(raw)
    raw |= {"name": re.sub("[^A-Za-z0-9._-]+", "-", Path(pretrained.source).resolve().name), "task": task}
    raw["teacher"] = {"weights": pretrained.source}
    export, data = raw.setdefault("export", {}), raw.setdefault("data", {})
    if isinstance(export, dict):
        longest = export.setdefault("max_length", min(MAX_TOKENS, pretrained.config.max_positions))
        export.setdefault("coreml", False)
        if isinstance(longest, int):
            get_task(task).set_lengths(raw, longest)
    if get_task(task).has_classes and isinstance(data, dict):
        data.setdefault("label_names", list(pretrained.labels))
    return check_recipe(raw, Path(pretrained.source))


def check_settings(raw: Mapping[str, Any]) -> None:
    """Raises UserError for a setting that would have no effect on a checkpoint."""
    for section in UNUSED_SECTIONS:
        if section in raw:
            raise UserError("a checkpoint is not trained further, so this has no effect; leave it out", field=section)
    student, data = raw.get("student", {}), raw.get("data", {})
    if isinstance(student, dict) and set(student) - {"exit_layers"}:
        key = min(set(student) - {"exit_layers"})
        raise UserError("a checkpoint keeps its layers, so this has no effect; leave it out", field=f"student.{key}")
    calibration = data.get("calibration") if isinstance(data, dict) else None
    if calibration is not None and not isinstance(calibration, str):
        raise UserError(
            f"is {calibration!r}; for a checkpoint name a file of labelled examples", field="data.calibration"
        )
    for section in ("student", "exits"):
        if section in raw and calibration is None:
            raise UserError(
                "without calibration examples there is one exit, after the last layer; "
                "set data.calibration to a file of labelled examples, or leave this out",
                field=section,
            )


def build_model(pretrained: Pretrained, task: Task, separator: int) -> ExitModel:
    """Returns the checkpoint as a model with one exit, after its last layer.

    A BERT keeps its token types: its programs find the second text by the separator before it.

    Args:
        pretrained: a checkpoint with a head for the task.
        task: what the head is for.
        separator: the id of [SEP].

    Raises:
        UserError: the head does not fit the checkpoint's config.
    """
    config = pretrained.config
    model = ExitModel(task, config, len(pretrained.labels) or 2, pretrained.head_kind, [config.layers])
    model.encoder.load_state_dict(pretrained.encoder)
    try:
        assert pretrained.head is not None  # see `load_with_head`
        model.heads[-1].load_state_dict(pretrained.head)
    except RuntimeError as error:  # torch writes a line for every tensor that does not fit
        last_line = str(error).splitlines()[-1].strip()
        raise UserError(f"has a head that does not fit its config ({last_line})", file=pretrained.source) from None
    if config.token_types > 1:
        model.separator = separator
    return model.eval()


def read_calibration_data(recipe: Recipe) -> CalibrationData | None:
    """Returns the examples that `data.calibration` names, and what the exit heads learn from; None without the key.

    The heads learn from `data.train` where that is named, else from one half of the calibration file.

    Raises:
        UserError: a file cannot be read, has no labels, or leaves no example.
    """
    source, task = recipe.data.calibration, get_task(recipe.task)
    if not isinstance(source, str):
        return None
    examples = read_calibration(recipe, source)
    task.labels_of(examples, examples, source, [], recipe.input_options)
    if recipe.data.train == DEMO:
        lessons, examples = split_off(examples, task.group(examples), max(1, len(examples) // 2), recipe.seed)
    else:
        lessons = leave_out(read_source(recipe, "train"), examples, task.group, source)
    return CalibrationData([task.without_label(lesson) for lesson in lessons], examples)


def read_texts(
    recipe: Recipe, pretrained: Pretrained, calibration: CalibrationData | None = None
) -> tuple[list[Example], tuple[str, ...]]:
    """Returns the texts on which the quantized model is compared, and what the data write for each class.

    They are those of `data.dev`; without that key calibration examples if there are any, else the embedded texts. Files
    may write a label as the checkpoint names it, or as its number. The embedded texts have other labels, which are
    removed. For question answering there are no classes.
    """
    task, limit = get_task(recipe.task), recipe.data.dev_limit or COMPARED_TEXTS
    given = calibration is not None and recipe.data.dev == DEMO
    source = list(calibration.examples) if calibration is not None and given else read_source(recipe, "dev")
    examples = sample_examples(source, limit, recipe.seed)
    if not task.has_classes:
        return examples, ()
    labelled = [*(calibration.examples if calibration else ()), *(examples if recipe.data.dev != DEMO else ())]
    if recipe.data.dev == DEMO and not given:
        examples = [task.without_label(example) for example in examples]
    if not labelled:
        return examples, pretrained.labels
    numbers = tuple(str(number) for number in range(len(pretrained.labels)))
    written = {example.label for example in labelled if isinstance(example, ClassificationExample)}
    return examples, numbers if written <= {*numbers, None} else pretrained.labels


def read_rounding_texts(
    recipe: Recipe, compared: Sequence[Example], calibration: CalibrationData | None = None
) -> list[Example]:
    """Returns texts to round int4 by, without labels; none where there are too few to say anything.

    They are training texts, or the dev texts that are not compared. A model looks better than it is on the texts that
    it was rounded by.
    """
    if calibration is not None:
        texts = calibration.lessons
    elif recipe.data.train != DEMO or recipe.data.dev == DEMO:
        texts = read_source(recipe, "train")
    else:
        without_limit = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dev_limit": None})})
        texts = read_source(without_limit, "dev")
    without_label = get_task(recipe.task).without_label
    held_out = {without_label(text) for text in compared}
    left = [text for text in map(without_label, texts) if text not in held_out]
    chosen = sample_examples(left, recipe.quantize.rounding_texts, recipe.seed)
    return chosen if len(chosen) >= MIN_ROUNDING_TEXTS else []
