"""Settings of a recipe as Python values, and as the text `key=value` that the command line takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from pipeline.support.errors import UserError

# {"export.coreml": True}, or ["export.coreml=true"] as after `--set`.
Settings = Union[Mapping[str, Any], Sequence[str]]


def as_texts(settings: Settings) -> list[str]:
    """Returns settings as the texts `key=value`, values in TOML.

    Raises:
        UserError: a value is of a type that a recipe cannot hold.
        TypeError: `settings` is one text and not a list of them.
    """
    if isinstance(settings, str):
        raise TypeError("settings is a mapping or a list of texts, not one text")
    if isinstance(settings, Mapping):
        return [f"{key}={_toml(key, value)}" for key, value in settings.items()]
    return list(settings)


def _toml(key: str, value: Any) -> str:
    """Returns a value in TOML. A text is quoted, so that "1" stays a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value}"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(key, part) for part in value)}]"
    raise UserError(f"{value!r} is nothing that a recipe can hold; give a text, a number, a bool or a list", field=key)
