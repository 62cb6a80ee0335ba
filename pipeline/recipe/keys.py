"""The keys of a recipe: what each one means, what it takes, and what it is if nothing sets it."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.sections import OneOf, Section

TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """A key of a recipe, in words for a table.

    Attributes:
        key: the dotted name, as in a file's tables and in `--set key=value`.
        type: for example "whole number", "list of text", or "one of auto, fp32, bf16".
        default: as a recipe file writes it; "required" or "not set" where there is none.
        limits: for example "at least 8, at most 512"; empty where any value of the type will do.
        description: what the key means.
    """

    key: str
    type: str
    default: str
    limits: str
    description: str


def list_keys(word: str = "") -> list[Key]:
    """Returns the keys whose name or description has the word in it, whatever its case; all keys for ""."""
    wanted = word.strip().casefold()
    return [key for key in all_keys() if wanted in key.key.casefold() or wanted in key.description.casefold()]


def all_keys() -> Iterator[Key]:
    """Yields every key, in the order of the sections."""
    for name, (field, default) in fields_by_key().items():
        yield Key(name, type_name(field), shown_default(default), limits_of(field), field.description or "")


def nearest_keys(word: str, count: int = 3) -> list[str]:
    """Returns the known keys that look most like a word: like a whole key, or like its last part."""
    names = list(fields_by_key())
    near = difflib.get_close_matches(word, names, n=count, cutoff=0.0)
    last_parts = {name.rsplit(".", 1)[-1]: name for name in names}
    alike = [last_parts[part] for part in difflib.get_close_matches(word, last_parts, n=count, cutoff=0.7)]
    return list(dict.fromkeys([*alike, *near]))[:count]


@lru_cache
def fields_by_key() -> dict[str, tuple[FieldInfo, Any]]:
    """Returns the pydantic field and the default of every dotted key of a recipe."""
    return _fields_of(Recipe)


def _fields_of(section: type[BaseModel], prefix: str = "", defaults: Any = None) -> dict[str, tuple[FieldInfo, Any]]:
    """Returns the fields of a section and the sections in it.

    Args:
        section: a recipe, or a table of one.
        prefix: of its keys, with a dot at its end.
        defaults: the table as it is if nothing is set. It differs from the class's own: `exits.training.epochs` is 2.
    """
    found: dict[str, tuple[FieldInfo, Any]] = {}
    for name, field in section.model_fields.items():
        default = field.get_default() if defaults is None else getattr(defaults, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= _fields_of(field.annotation, f"{prefix}{name}.", default)
        else:
            found[prefix + name] = (field, default)
    return found


def known_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Returns all dotted keys of a section and the sections in it."""
    return list(_fields_of(section, prefix))


def value_types(field: FieldInfo) -> tuple[Any, ...]:
    """Returns the types that a field takes beside None: (int,) of `int | None`."""
    if get_origin(field.annotation) in (Union, types.UnionType):
        return tuple(bare_type(kind) for kind in get_args(field.annotation) if kind is not type(None))
    return (field.annotation,)


def bare_type(kind: Any) -> Any:
    """Returns a type without what is annotated to it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Returns the names of which a field takes one; none where it takes any value of its type."""
    for kind in value_types(field):
        if get_origin(kind) is Literal:
            return tuple(str(name) for name in get_args(kind))
    validators = (getattr(part, "func", None) for part in field.metadata)
    return next((check.names for check in validators if isinstance(check, OneOf)), ())


def type_name(field: FieldInfo) -> str:
    """Returns a field's type in words."""
    if choices := choices_of(field):
        return f"one of {', '.join(choices)}"
    return " or ".join(
        f"list of {TYPE_NAMES[get_args(kind)[0]]}s".replace("texts", "text")
        if get_origin(kind) is list
        else TYPE_NAMES[kind]
        for kind in value_types(field)
    )


def limits_of(field: FieldInfo) -> str:
    """Returns the limits of a field's value in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{words[name]} {getattr(part, name):g}" for part in field.metadata for name in words if hasattr(part, name)
    ]
    if any(getattr(part, "min_length", None) for part in field.metadata):
        limits.append("at least one")
    if any(getattr(part, "pattern", None) for part in field.metadata):
        limits.append("letters, digits and . _ -")
    return ", ".join(limits)


def shown_default(default: Any) -> str:
    """Returns a default as a recipe file writes it."""
    if default is PydanticUndefined:
        return "required"
    return "not set" if default is None else toml_value(default)


def toml_value(value: Any) -> str:
    """Returns a value as TOML: a number, true or false, a quoted text, or a list of these."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(part) for part in value)}]"
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else json.dumps(value, ensure_ascii=False)
