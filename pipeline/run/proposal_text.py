"""Writes a proposed recipe as TOML with a reason for each value."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.labels import order_labels
from pipeline.recipe import Exits
from pipeline.run.choices import Choices, Training
from pipeline.run.examples import SPLIT
from pipeline.run.survey import Survey

WIDTH = 110  # characters of a line of comments
SHOWN_CLASSES = 30
TomlValue = str | bool | int | float | list[str] | list[int]


def proposal_text(found: Survey, chosen: Choices) -> str:
    """Returns the recipe that fits the data."""
    sections = [_head(found), _data(found, chosen)]
    if found.definition.cuts_into_windows:
        sections.append(_questions(found, chosen))
    sections += [_trainings(found, chosen), _speeds(found, chosen), _export(chosen)]
    return "\n".join(sections)


def toml_value(value: TomlValue) -> str:
    """Returns a value as TOML writes it."""
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    # Strings of JSON are strings of TOML, but for the one control character that JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _head(found: Survey) -> str:
    file = Path(found.train_source).name
    return (
        comment(f"Made by `pocketbert init` for {file}. Change what you like; a run repeats only what that affects.")
        + comment("Paths are those of the folder in which the command ran. `pocketbert keys` explains every key.")
        + setting("name", found.name, "names the report, the bundle and the folder runs/NAME")
        + setting("task", found.task, "")
        + setting("seed", 0, "of the splits, the order of the examples, and new weights")
    )


def _data(found: Survey, chosen: Choices) -> str:
    task, columns = found.definition, found.columns
    text = "[data]\n" + setting("train", found.train_source, "")
    if found.dev_source is None:
        text += setting(
            "dev", SPLIT, "no file to measure on was given, so a part of train is held out and never trained on"
        )
        text += setting("dev_share", 0.15, f"{len(found.dev):,} examples; {kept_together(found)} stay on one side")
    else:
        text += setting("dev", found.dev_source, f"{len(found.dev):,} examples to measure on, never trained on")
    if columns.text:
        text += setting("text", columns.text, "the column of the text")
        pair = columns.text_pair or ""
        text += setting("text_pair", pair, "the column of a second text" if pair else "one text only")
        text += setting("label", columns.label or "", "the column of the label")
    if task.has_classes:
        text += comment(f"{len(found.classes)} classes with so many examples: {list_classes(found.classes)}.")
        text += comment("Names that an app shows, in the order of the labels, if not the labels themselves:")
        names = order_labels(found.classes)[:SHOWN_CLASSES]
        text += f"# label_names = {toml_value(names)}\n"
    text += setting(
        "calibration",
        chosen.calibration,
        "examples taken out of train to choose when an early exit may answer; more show stricter promises",
    )
    if not task.cuts_into_windows:
        text += setting("max_length", chosen.max_length, f"tokens at which a text is cut: {_cut(found, chosen)}")
    return text


def _questions(found: Survey, chosen: Choices) -> str:
    unanswered = sum(not example.answers for example in (*found.train, *found.dev))
    lengths = found.lengths
    no_answer = f"{unanswered:,} questions have no answer" if unanswered else "every question has an answer"
    return (
        "[qa]\n"
        + setting("window", chosen.max_length, f"tokens of question and passage at once: {_cut(found, chosen)}")
        + setting("stride", chosen.stride, "tokens that two windows of a longer passage share")
        + setting("max_question", chosen.max_question, f"99 of 100 questions have at most {lengths.question} tokens")
        + setting("max_answer", chosen.max_answer, f"99 of 100 answers have at most {lengths.answer} tokens")
        + setting("allow_no_answer", bool(unanswered), no_answer)
    )


def _trainings(found: Survey, chosen: Choices) -> str:
    task = found.definition
    few = len(found.train) < 10_000
    exit_weight = 0.5 if task.cuts_into_windows else 1.0
    why = (
        f"{len(found.train) - chosen.calibration:,} examples are few, so each is seen more often"
        if few
        else "so many examples need few passes"
    )
    pair = bool(found.columns.text_pair)
    text = "[teacher]\n"
    text += setting("weights", "minilm", "installs with the package; or a folder or a hub model")
    text += setting("token_types", pair, "tells the two texts apart" if pair else "not needed")
    text += comment(f"{why}; frozen word embeddings save a third of the time.")
    text += training(chosen.teacher, {"head_learning_rate": 1e-3, "freeze_embeddings": True})
    text += "\n[distill]\n"
    text += setting("keep_targets", True, "the teacher answers once, not in every pass")
    text += comment("exit_weight is how much the early exits count against the last one in training.")
    text += training(
        chosen.student, {"head_learning_rate": 1e-3, "exit_weight": exit_weight, "freeze_embeddings": True}
    )
    return text


def _speeds(found: Survey, chosen: Choices) -> str:
    text = "[exits]\n"
    measures = found.definition.uncertainties
    if Exits().uncertainty not in measures:
        text += setting("uncertainty", measures[0], f"what decides at an exit of a {found.task}")
    text += comment(
        f"Losses that the speeds promise to stay below: the smallest that {chosen.calibration:,} calibration examples "
        "can show. 0.01 is one point."
    )
    for name, loss in zip(("exact", "balanced", "fast"), chosen.promises):
        missing = chosen.missing.get(name)
        why = f"needs {missing:,} more calibration examples, so the bundle goes without" if missing else ""
        text += setting(name, loss, why)
    text += comment("Training of the exit heads alone, which is quick.")
    return text + training(chosen.exits, {"head_learning_rate": 1e-3})


def _export(chosen: Choices) -> str:
    return (
        "[export]\n"
        + setting("max_length", chosen.max_length, "the longest input; nothing longer was trained on")
        + setting("coreml_buckets", list(chosen.buckets), "Core ML pads to these: a median input, the longest")
    )


def _cut(found: Survey, chosen: Choices) -> str:
    lengths = found.lengths.inputs
    longer = float((lengths > chosen.max_length).mean())
    over = f", and {longer:.1%} are longer" if longer else ""
    return f"a median input has {found.lengths.at(0.5)}, the longest {int(lengths[-1])}{over}"


def kept_together(found: Survey) -> str:
    """Returns in words which examples a split keeps on one side."""
    return "questions on one passage" if found.definition.cuts_into_windows else "equal texts"


def list_classes(classes: Mapping[str, int]) -> str:
    """Returns classes with their counts in one line, the most frequent first."""
    shown = [f"{name} {count:,}" for name, count in list(classes.items())[:SHOWN_CLASSES]]
    rest = len(classes) - len(shown)
    return ", ".join(" ".join(entry.split()) for entry in shown) + (f" and {rest} more" if rest > 0 else "")


def setting(key: str, value: TomlValue, why: str) -> str:
    """Returns a line that sets a key, with the reason behind it, or above it if the line would be too long."""
    line = f"{key} = {toml_value(value)}"
    if not why:
        return line + "\n"
    behind = f"{line:<36}  # {why}"
    return behind + "\n" if len(behind) <= WIDTH else comment(why[0].upper() + why[1:] + ":") + line + "\n"


def comment(text: str) -> str:
    """Returns a text as lines of comments. A line break in it, as a label may have one, does not end the comment."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(f"# {line}\n" for line in textwrap.wrap(printable, WIDTH - 2))


def training(values: Training, others: Mapping[str, float | bool]) -> str:
    """Returns the line that sets a training."""
    settings = {
        "epochs": values.epochs,
        "batch_size": values.batch_size,
        "learning_rate": values.learning_rate,
    } | dict(others)
    return "training = { " + ", ".join(f"{key} = {_number(value)}" for key, value in settings.items()) + " }\n"


def _number(value: float | bool) -> str:
    return toml_value(value) if isinstance(value, bool) else f"{value:g}"
