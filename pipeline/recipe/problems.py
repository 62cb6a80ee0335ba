"""Finds all that is wrong with a recipe, and settings that mend it."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from pipeline.recipe.keys import choices_of, fields_by_key, known_keys
from pipeline.recipe.recipe import Inconsistent, Recipe
from pipeline.recipe.settings import UNSET, apply_setting, get_value, write_setting
from pipeline.support.errors import UserError

MAX_ROUNDS = 8  # of mending; rules can only be checked where every value by itself is right


def find_problems(tables: dict[str, Any], file: Path, overrides: Sequence[str] = ()) -> list[UserError]:
    """Returns everything that is wrong with nested tables as a recipe; nothing if they are a recipe.

    The rules between keys can only be checked once each value is right by itself. So the settings that mend a problem
    are applied to a copy, which is checked again. Thereby all settings together are known to mend the recipe.

    Args:
        tables: a recipe's, with the overrides applied.
        file: where the recipe is, for messages.
        overrides: see `check_recipe`.
    """
    tables = copy.deepcopy(tables)
    found: dict[tuple[str | None, str], UserError] = {}
    given = {setting.partition("=")[0].strip() for setting in overrides}
    for _ in range(MAX_ROUNDS):
        new = {(error.field, error.message): error for error in problems_now(tables, file, given)}
        new = {identity: error for identity, error in new.items() if identity not in found}
        if not new:
            break
        found |= new
        for error in new.values():
            apply_mend(tables, error)
    return list(found.values())


def problems_now(tables: dict[str, Any], file: Path, given: set[str]) -> Iterator[UserError]:
    """Yields the problems that pydantic finds at one go, in the order of the sections; see `find_problems`."""
    try:
        Recipe.model_validate(tables)
    except ValidationError as error:
        named = set()
        for details in error.errors():
            if isinstance(rules := details.get("ctx", {}).get("error"), Inconsistent):
                for broken in rules.errors:
                    yield UserError(broken.message, file=file, field=broken.field, settings=broken.settings)
                continue
            key = key_of(details)
            if key not in named:  # a value that may be of several types has an error for each of them
                named.add(key)
                yield problem_of(key, details, tables, file, given)


def key_of(details: ErrorDetails) -> str:
    """Returns the key that an error is about, with the number of an entry in a list."""
    key = ""
    for part in details["loc"]:
        if key in fields_by_key() and not isinstance(part, int):
            break  # the name of a type that the value may have
        key = f"{key}.{part}" if key else str(part)
    return key


def problem_of(key: str, details: ErrorDetails, tables: dict[str, Any], file: Path, given: set[str]) -> UserError:
    """Returns an error for one key."""
    if details["type"] == "extra_forbidden":
        return unknown_key(key, tables, file, given)
    message = "is required" if details["type"] == "missing" else details["msg"].removeprefix("Value error, ")
    for settings in candidates(key, details, file):
        if is_mended(tables, key, settings):
            return UserError(message, file=file, field=key, settings=settings)
    return UserError(message, file=file, field=key)


def unknown_key(key: str, tables: dict[str, Any], file: Path, given: set[str]) -> UserError:
    """Returns an error that names the nearest known key, and gives it the value of the unknown one if that fits."""
    value, nearest = get_value(tables, key), difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)[0]
    message = f"unknown key; the nearest known one is {nearest}"
    away = () if key in given else (f"{key}={UNSET}",)  # a wrong setting is replaced by the right one
    if get_value(tables, nearest) is None and not isinstance(value, dict):
        settings = (*away, write_setting(nearest, value))
        if is_mended(tables, key, (f"{key}={UNSET}", *settings)) and is_mended(tables, nearest, settings):
            return UserError(message, file=file, field=key, settings=settings)
    return UserError(message, file=file, field=key, settings=away)


def candidates(key: str, details: ErrorDetails, file: Path) -> Iterator[tuple[str, ...]]:
    """Yields settings that may mend the value of a key, the most likely one first."""
    whole = key if key in fields_by_key() else key.rpartition(".")[0]  # of an entry, the list
    if whole not in fields_by_key():
        yield (f"{key}={UNSET}",)  # a value where a section belongs
        return
    field, default = fields_by_key()[whole]
    for value in values_near(whole, field, details, file):
        yield (write_setting(whole, value),)
    if default is not None and default is not PydanticUndefined:
        yield (write_setting(whole, default),)
    yield (f"{whole}={UNSET}",)


def values_near(key: str, field: FieldInfo, details: ErrorDetails, file: Path) -> Iterator[Any]:
    """Yields values that a key may have in place of the one that an error is about."""
    given = details["input"]
    for limit in ("ge", "le"):
        if limit in details.get("ctx", {}):
            yield details["ctx"][limit]
    if choices := choices_of(field):
        yield from difflib.get_close_matches(str(given), choices, n=1)
        if field.is_required():
            yield choices[0]
    if key == "name":
        yield re.sub("[^A-Za-z0-9._-]+", "-", str(given if details["type"] != "missing" else file.stem))


def is_mended(tables: dict[str, Any], key: str, settings: Sequence[str]) -> bool:
    """Returns whether settings leave nothing wrong with the value of a key by itself."""
    tables = copy.deepcopy(tables)
    try:
        for setting in settings:
            apply_setting(tables, setting)
        Recipe.model_validate(tables)
    except UserError:
        return False
    except ValidationError as error:
        return not any(key_of(details).split(".")[: key.count(".") + 1] == key.split(".") for details in error.errors())
    return True


def apply_mend(tables: dict[str, Any], error: UserError) -> None:
    """Applies the settings of an error, and takes an unknown key out."""
    if error.message.startswith("unknown key"):
        apply_setting(tables, f"{error.field}={UNSET}")
    for setting in error.settings:
        apply_setting(tables, setting)
    # Where nothing mends a value, it must not hide what else is wrong.
    if not error.settings and error.field:
        apply_setting(tables, f"{error.field}={UNSET}")
