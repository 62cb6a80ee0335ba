"""Finds recipes and reads them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.recipe.problems import find_problems
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import apply_settings
from pipeline.support.errors import Problems, UserError

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
        overrides: `key=value` with dotted keys, see `pipeline.recipe.settings`.

    Raises:
        UserError: the file cannot be read, or the recipe is wrong; has every problem, with its key and with settings
            that mend it.
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
    return check_recipe(tables, file, overrides)


def check_recipe(tables: dict[str, Any], file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe that nested tables describe.

    Args:
        tables: with the overrides applied.
        file: for messages.
        overrides: those that the tables have from `--set`. A key that is wrong there is named as one to replace.

    Raises:
        UserError: the recipe is wrong; has every problem with its key.
    """
    problems = Problems()
    problems.errors += find_problems(tables, file, overrides)
    problems.require_none(file)
    return Recipe.model_validate(tables)
