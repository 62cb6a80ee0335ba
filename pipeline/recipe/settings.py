"""Settings, the `key=value` of `--set`: how they are read, applied and written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.recipe.keys import fields_by_key, toml_value, value_types
from pipeline.support.errors import Problems, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNSET = "unset"  # the value that takes a key out, so that its default holds; a text of that name is written in quotes


def apply_settings(tables: dict[str, Any], settings: Sequence[str]) -> None:
    """Applies `key=value` settings to the tables of a recipe, see `load_recipe`.

    Raises:
        UserError: a setting does not have this form. The others are applied all the same.
    """
    problems = Problems()
    for setting in settings:
        problems.attempt(lambda setting=setting: apply_setting(tables, setting))  # type: ignore[misc]
    problems.require_none("--set")


def apply_setting(tables: dict[str, Any], setting: str) -> None:
    """Applies one setting. Raises UserError if it does not have the form `key=value`."""
    key, equals, value = setting.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise UserError(f"--set {setting!r} is not key=value; write it like --set data.train=train.tsv")
    if value == UNSET:
        remove_value(tables, key)
    else:
        set_value(tables, key, parse_setting(key, value))


def parse_setting(key: str, text: str) -> Any:
    """Returns the value of a setting, read as the type of its key asks for.

    - A list is TOML, or its entries with commas between them: `16,32`, `negative,positive`. One entry is a list too.
    - A text is taken as it stands, commas included, or without the quotes around it.
    - Anything else is TOML. Under an unknown key, what is not TOML is a text.
    """
    field, _ = fields_by_key().get(key, (None, None))
    if field is None:
        return parse_value(text)
    kinds = value_types(field)
    if any(get_origin(kind) is list for kind in kinds):
        return parse_list(text, entry_type(field))
    value = parse_value(text)
    is_text = all(kind is str or get_origin(kind) is not None for kind in kinds)  # a name of some is a text, too
    return text if is_text and not isinstance(value, str) else value


def entry_type(field: FieldInfo) -> Any:
    """Returns the type of the entries of a list."""
    return next(get_args(kind)[0] for kind in value_types(field) if get_origin(kind) is list)


def parse_list(text: str, kind: Any) -> Any:
    """Returns a list of texts or numbers from TOML, with or without brackets, or from entries between commas.

    Shells take quotes away: of `["a", "b"]` may be left `[a, b]`, which is read in the same way.
    """
    for form in (text, f"[{text}]"):
        value = parse_value(form)
        if isinstance(value, list) and (kind is not str or all(isinstance(entry, str) for entry in value)):
            return value
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    entries = [entry.strip() for entry in next(csv.reader([inner], skipinitialspace=True), [])]
    if entries and not entries[-1]:
        entries.pop()  # after a last comma
    unquoted = [entry[1:-1] if len(entry) > 1 and entry[0] == entry[-1] in "'\"" else entry for entry in entries]
    return unquoted if kind is str else [parse_value(entry) for entry in unquoted]


def parse_value(text: str) -> Any:
    """Returns a TOML value, or the text itself if it is not TOML, such as a path or a name."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def write_setting(key: str, value: Any) -> str:
    """Returns the shortest setting that is read as this value."""
    forms = [toml_value(value)]
    if isinstance(value, str):
        forms.insert(0, value)
    elif isinstance(value, list):
        forms.insert(0, ",".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in value))
    fitting = [form for form in forms if form not in ("", UNSET) and parse_setting(key, form) == value]
    return f"{key}={fitting[0] if fitting else forms[-1]}"


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


def get_value(tables: dict[str, Any], key: str) -> Any:
    """Returns what nested tables say under a dotted key; None if they say nothing."""
    value: Any = tables
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def remove_value(tables: dict[str, Any], key: str) -> None:
    """Takes a dotted key out of nested tables, if it is there."""
    *names, last = key.split(".")
    for name in names:
        tables = tables.get(name, {})
        if not isinstance(tables, dict):
            return
    tables.pop(last, None)
