"""Finds recipes, reads them and applies `--set key=value` to them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.sections import Section
from pipeline.support.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def built_in_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the project, by name and in the order of their names."""
    return {path.stem: path for path in sorted(Path(str(resources.files("pocketbert") / "recipes")).glob("*.toml"))}


def find_recipe(target: str | Path) -> Path:
    """Returns the file of a recipe: `target` itself if it is a file, else the built-in recipe of that name.

    Raises:
        UserError: there is neither; lists the built-in recipes, the nearest name first.
    """
    path, built_in = Path(target), built_in_recipes()
    if path.is_file():
        return path
    if str(target) in built_in:
        return built_in[str(target)]
    if path.is_dir():
        raise UserError("is a folder; give the recipe file in it", file=path)
    if path.exists():  # a pipe, for example
        return path
    name = path.name.removesuffix(".toml")
    names = sorted(built_in, key=lambda known: -difflib.SequenceMatcher(None, name, known).ratio())
    raise UserError(f"does not exist; the built-in recipes, the nearest name first: {', '.join(names)}", file=path)


def is_recipe(target: str | Path) -> bool:
    """Returns whether a target is a TOML file, or the name of a built-in recipe that no folder hides."""
    return Path(target).suffix == ".toml" or (str(target) in built_in_recipes() and not Path(target).is_dir())


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides to it.

    Args:
        path: a TOML file, or the name of a built-in recipe.
        overrides: `key=value`, with dotted keys and TOML values; a bare word is a string.

    Raises:
        UserError: the file cannot be read, or the recipe is wrong; names the file and the key, and for an unknown key
            the nearest known one.
    """
    path = find_recipe(path)
    return recipe_of_tables(read_tables(path), path, overrides)


def read_tables(path: Path) -> dict[str, Any]:
    """Returns the tables of a recipe file. Raises UserError if it cannot be read or is not TOML."""
    try:
        return parse_tables(path.read_bytes().decode("utf-8"), path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); check its permissions", file=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not TOML ({error}); correct it there", file=path) from None


def parse_tables(text: str, file: Path) -> dict[str, Any]:
    """Returns the tables of a recipe's text. Raises UserError, naming the file, if it is not TOML."""
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"is not TOML ({error}); correct it there", file=file) from None


def recipe_of_tables(tables: dict[str, Any], file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe that tables and overrides describe, see `load_recipe`; changes the tables."""
    apply_settings(tables, overrides)
    return check_recipe(tables, file)


def apply_settings(tables: dict[str, Any], settings: Sequence[str]) -> None:
    """Applies `key=value` settings to the tables of a recipe, see `load_recipe`.

    Raises:
        UserError: a setting does not have this form.
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting!r} is not key=value; write it like --set data.train=train.tsv")
        set_value(tables, key.strip(), parse_value(value.strip()))


def check_recipe(tables: dict[str, Any], file: Path) -> Recipe:
    """Returns the recipe that nested tables describe. Raises UserError with the file and the key if it is wrong."""
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(_first_problem(error), file=file) from None


def parse_value(text: str) -> Any:
    """Returns a TOML value, or the text itself if it is not TOML, such as a path or a name."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def set_value(tables: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested tables and creates missing tables.

    Raises:
        UserError: a part of the key before the last is not a table.
    """
    *names, last = key.split(".")
    for name in names:
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise UserError(f"{name!r} holds a value and has no keys below it; set {name!r} itself", field=key)
    tables[last] = value


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Returns all dotted keys of a section and the sections in it."""
    keys = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _first_problem(error: ValidationError) -> str:
    """Returns the first problem of a recipe in one line with its key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, known_keys(Recipe), n=1, cutoff=0.0)
        return f"{key}: unknown key; the nearest known one is {nearest[0]}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    return f"{key}: {message}" if key else message
