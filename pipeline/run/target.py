"""Finds the recipe that a command's target stands for: a recipe file, a built-in recipe, or a data file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pipeline.data.content import exists
from pipeline.data.hub import hub_name
from pipeline.data.labels import label_values
from pipeline.names import Task
from pipeline.recipe import Recipe, apply_settings, built_in_recipes, find_recipe
from pipeline.recipe.files import parse_tables, read_tables, recipe_of_tables
from pipeline.run.digests import file_digest
from pipeline.run.examples import DEMO, read_source
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import console
from pipeline.support.workspace import digest_of, write_text
from pipeline.tasks import get_task
from pipeline.tasks.types import Columns

RECIPE_FILE = "recipe.toml"  # in the folder of a run that was started with a data file
NOTE_FILE = ".proposal.json"  # beside it: what the recipe was proposed for, and whether it was edited since
DATA_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
COLUMN_KEYS = ("data.text", "data.text_pair", "data.label")


def is_data(target: str | Path) -> bool:
    """Returns whether a target is a data file, a hub data set or "demo", and not a recipe."""
    path = Path(target)
    if path.suffix.casefold() == ".toml" or str(target) in built_in_recipes() or path.is_dir():
        return False
    if str(target) == DEMO or path.is_file() or path.suffix.casefold() in DATA_SUFFIXES:
        return True
    # A hub set without its split reads like a path, and a mistyped path of a recipe is likelier.
    return not exists(path) and ":" in str(target) and hub_name(str(target)) is not None


def recipe_of(
    target: str | Path,
    settings: Sequence[str] = (),
    out: Path | None = None,
    dev: str | None = None,
    task: str | None = None,
) -> tuple[Recipe, Path]:
    """Returns the recipe of a target, and the folder of its run.

    The recipe for a data file is proposed once and kept in that folder. It is proposed again if the data change, unless
    it was edited.

    Args:
        target: a recipe file, the name of a built-in recipe, or a data file.
        settings: `key=value`, which override the recipe.
        out: the folder; None for runs/NAME.
        dev: the examples to measure on.
        task: what a data file is for.

    Raises:
        UserError: there is no such target, or something is wrong with it.
    """
    if is_data(target):
        return _recipe_of_data(str(target), settings, out, dev, as_task(task))
    given = [*settings, *(f"{key}={toml}" for key, toml in (("data.dev", dev), ("task", task)) if toml is not None)]
    path = find_recipe(target)
    tables = read_tables(path)
    own_train = _value(tables, "data.train")
    recipe = recipe_of_tables(tables, path, given)
    set_keys = {setting.partition("=")[0].strip() for setting in given}
    if "data.train" in set_keys and recipe.data.train != own_train:
        recipe = _of_other_data(recipe, set_keys)
    return recipe, out or Path("runs") / recipe.name


def as_task(task: str | None) -> Task | None:
    """Returns the task of this name. UserError if there is none."""
    if task is not None and task not in get_args(Task):
        raise UserError(f"{task!r} is no task; give {', '.join(get_args(Task))}", field="--task")
    return cast("Task | None", task)


def given_columns(settings: Sequence[str], others_allowed: bool = True) -> Columns:
    """Returns the columns that settings name. UserError for a setting of another key, unless others are allowed."""
    tables: dict[str, Any] = {}
    for setting in settings:
        if (key := setting.partition("=")[0].strip()) in COLUMN_KEYS:
            apply_settings(tables, [setting])
        elif not others_allowed:
            raise UserError(f"{key} is not a column; change it in the recipe that this command writes", field="--set")
    values = [_value(tables, key) for key in COLUMN_KEYS]
    return Columns(*(None if value is None else str(value) for value in values))


def _value(tables: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    inner = tables.get(section)
    return inner.get(name) if isinstance(inner, dict) else None


def _of_other_data(recipe: Recipe, set_keys: set[str]) -> Recipe:
    """Returns a recipe whose training data was replaced, without the names that belong to its own data."""
    from pipeline.run.survey import name_of_data

    changed: dict[str, Any] = {}
    if "name" not in set_keys:
        changed["name"] = name_of_data(recipe.data.train, recipe.task)
    names = recipe.data.label_names
    if names and "data.label_names" not in set_keys and get_task(recipe.task).has_classes:
        labels = label_values(read_source(recipe, "train"))
        if len(labels) == len(names) and all(label.lstrip("+-").isdigit() for label in labels):
            shown = ", ".join(f"{label} as {name}" for label, name in zip(labels, names))
            end = "--set data.label_names=[...] names them otherwise"
        else:
            shown = ", ".join(labels)
            end = f"the recipe's names ({', '.join(names)}) are those of other data"
            changed["data"] = recipe.data.model_copy(update={"label_names": []})
        if processes.is_main():
            console.print(f"labels shown: {shown}; {end}")
    return recipe.model_copy(update=changed)


def _recipe_of_data(
    train: str, settings: Sequence[str], out: Path | None, dev: str | None, task: Task | None
) -> tuple[Recipe, Path]:
    from pipeline.run.survey import name_of_data

    tables: dict[str, Any] = {}
    apply_settings(tables, settings)
    dev, task = dev or _value(tables, "data.dev"), task or as_task(tables.get("task"))
    name = tables.get("name") or name_of_data(train, task or "classification")
    folder = out or Path("runs") / str(name)
    text = processes.from_main(lambda: _kept_or_proposed(train, settings, folder, dev, task, out is None))
    file = folder / RECIPE_FILE
    return recipe_of_tables(parse_tables(text, file), file, settings), folder


def _kept_or_proposed(
    train: str, settings: Sequence[str], folder: Path, dev: str | None, task: Task | None, by_name: bool
) -> str:
    """Returns the text of the recipe in a run's folder, which is written if there is none that fits.

    Args:
        by_name: whether the folder is called after the data, and was not named by the user.
    """
    from pipeline.run.propose import propose

    file, columns = folder / RECIPE_FILE, given_columns(settings)
    digests = [file_digest(train), None if dev is None else file_digest(dev)]
    inputs = digest_of(train, dev, task, digests, [columns.text, columns.text_pair, columns.label])
    kept = _read_kept(file)
    if kept is not None:
        text, note = kept
        own_train = _value(parse_tables(text, file), "data.train")
        edited = note.get("text") != digest_of(text)
        if own_train != train and (edited or by_name):
            raise UserError(
                f"is for the data {own_train}; give another folder with --out, or remove the file", file=file
            )
        if note.get("inputs") == inputs:
            console.print(f"recipe: {file}")
            return text
        if edited:
            console.print(f"recipe: {file} was edited and is kept; remove it to have one proposed for what has changed")
            return text
    proposal = propose(train, dev, task, columns)
    for line in proposal.findings:
        console.print(line)
    for line in proposal.warnings[len(proposal.data_warnings) :]:
        console.print(f"warning: {line}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, proposal.text)
        note_text = json.dumps({"inputs": inputs, "text": digest_of(proposal.text)})
        write_text(folder / NOTE_FILE, note_text)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror}); give another folder with --out", file=file) from None
    console.print(f"recipe: {file}")
    return proposal.text


def _read_kept(file: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns the recipe in a run's folder and the note beside it; an empty note if there is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error}); remove it, or give another folder with --out", file=file) from None
    try:
        note = json.loads((file.parent / NOTE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    return text, note if isinstance(note, dict) else {}
