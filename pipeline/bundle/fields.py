"""Reads the JSON files of a bundle: skips what a later version added, and refuses what a reader has to understand.

The rules are in docs/bundle-format.md, "Unknown fields".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Field, ValidationError

from pipeline.names import Backend
from pipeline.support.document import Document
from pipeline.support.errors import UserError

FORMAT_VERSION: Literal[1] = 1
# The newest minor version that this version writes. A bundle has that of the newest addition that it uses. Bundles
# without the field `format_minor` are minor version 0.
FORMAT_MINOR = 2
COMMON_MINOR = 1  # that of a bundle which uses no later addition


class BundleDocument(Document):
    """A JSON file of a bundle. `read_document` skips the fields that it does not know."""

    format_version: Literal[1] = FORMAT_VERSION
    must_understand: list[str] = Field(
        default_factory=list,
        description="Fields that a reader must know, as dotted paths without list indices and map keys.",
    )


DocumentT = TypeVar("DocumentT", bound=BundleDocument)


def read_document(path: Path, model: type[DocumentT]) -> DocumentT:
    """Reads a JSON file of a bundle.

    Args:
        path: the file.
        model: what the file holds.

    Raises:
        UserError: the file is missing or is not JSON, its format version is unknown, it asks for a field that this
        version does not
            know, or a known field is missing or wrong.
    """
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(
            "is missing; this folder is not a bundle, or the bundle is incomplete: export it again", file=path
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error}); the bundle was cut or altered: export it again", file=path) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"format {version!r} is not known to this version, which reads format {FORMAT_VERSION}; "
            "export the bundle again, or update pocketbert",
            file=path,
            field="format_version",
        )
    _require_understood(raw.get("must_understand"), model, path)
    try:
        return model.model_validate(_known_fields(_known_programs(raw), model))
    except ValidationError as error:
        raise _wrong_field(error, path) from None


def field_paths(annotation: Any, parent: str = "") -> Iterator[str]:
    """Lists the dotted path of every field in a type, in the notation of `must_understand`."""
    if _is_document(annotation):
        for name, field in annotation.model_fields.items():
            yield parent + name
            yield from field_paths(field.annotation, f"{parent}{name}.")
    else:
        for part in get_args(annotation):
            yield from field_paths(part, parent)


def _is_document(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "model_fields")


def _require_understood(names: Any, model: type[BundleDocument], path: Path) -> None:
    """Raises UserError for a name that the model has no field for; validation refuses what is no list of names."""
    known = set(field_paths(model))
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name not in known:
            raise UserError(
                f"a reader must understand the field {name!r}, and this version does not know it; update pocketbert",
                file=path,
                field="must_understand",
            )


def _known_programs(raw: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the programs of backends that this version does not know."""
    programs = raw.get("programs")
    if not isinstance(programs, list):
        return raw
    known = [program for program in programs if not _is_of_unknown_backend(program)]
    return {**raw, "programs": known}


def _is_of_unknown_backend(program: Any) -> bool:
    backend = program.get("backend") if isinstance(program, dict) else None
    return isinstance(backend, str) and backend not in get_args(Backend)


def _known_fields(value: Any, annotation: Any) -> Any:
    """Leaves out the fields that a type does not have, at every level. Keeps wrong values, which validation refuses."""
    if _is_document(annotation):
        if not isinstance(value, dict):
            return value
        fields = annotation.model_fields
        return {name: _known_fields(part, fields[name].annotation) for name, part in value.items() if name in fields}
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is list and isinstance(value, list):
        return [_known_fields(element, parts[0]) for element in value]
    if origin is dict and isinstance(value, dict):
        return {key: _known_fields(element, parts[1]) for key, element in value.items()}
    if origin in (Union, UnionType):
        for part in parts:  # a union here has one document at most, beside None
            value = _known_fields(value, part)
    return value


def _wrong_field(error: ValidationError, path: Path) -> UserError:
    """The first error of a validation, as one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "literal_error":
        message = f"{first['input']!r} is not known to this version, which knows {first['ctx']['expected']}"
        return UserError(f"{message}; update pocketbert, or export it again", file=path, field=field)
    return UserError(f"{first['msg']}; the bundle was altered: export it again", file=path, field=field)
