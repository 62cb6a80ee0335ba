"""Rows, the common form of TSV, CSV, JSON, Parquet and hub data, and how their columns are found and read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.support.errors import Problems, UserError

ID_COLUMNS = ("id", "idx", "index", "guid", "qid")

MAX_LISTED_COLUMNS, MAX_COLUMN_CHARACTERS = 12, 40  # in an error message


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: where the row stands in its file, as an error names it ("line 3", "row 3").
        values: the value of each column.
    """

    place: str
    values: dict[str, Any]


def find_column(
    source: str | Path,
    columns: Sequence[str],
    usual_names: tuple[str, ...],
    given: str | None = None,
    key: str = "",
    content: str = "",
    problems: Problems | None = None,
) -> str | None:
    """Returns the given column, or the first column with one of the usual names, or None.

    Args:
        source: the file, for an error.
        columns: the columns of the file.
        usual_names: names in lower case, in the order of preference.
        given: the column that the user named; "" asks for none.
        key: the recipe key that names the column, for an error.
        content: what the column holds, for an error.
        problems: gets the error, if given, in place of the caller.

    Raises:
        UserError: the given column does not exist.
    """
    if given == "":
        return None
    if given is not None:
        if given not in columns:
            nearest = difflib.get_close_matches(given, columns, n=1, cutoff=0.0)
            error = UserError(
                f"the file has no column {given!r} for {content}; set {key} to one of: {list_columns(columns)}",
                file=source,
                settings=[f"{key}={nearest[0]}"] if nearest else [],
            )
            if problems is None:
                raise error
            problems.errors.append(error)
            return None
        return given
    by_name = {column.strip().casefold(): column for column in reversed(columns)}
    return next((by_name[name] for name in usual_names if name in by_name), None)


def list_columns(columns: Sequence[str]) -> str:
    """Returns column names for an error message; long lists and long names are cut."""
    shown = ", ".join(
        repr(column if len(column) <= MAX_COLUMN_CHARACTERS else column[: MAX_COLUMN_CHARACTERS - 3] + "...")
        for column in columns[:MAX_LISTED_COLUMNS]
    )
    rest = len(columns) - MAX_LISTED_COLUMNS
    return shown + (f" and {rest} more" if rest > 0 else "")


def text_value(source: str | Path, row: Row, column: str) -> str:
    """Returns a text of a row. Raises UserError if it is missing, empty or not a string."""
    value = row.values.get(column)
    field = f"{row.place}, {column}"
    if value is None:
        raise UserError("the text is missing; give every row one, or remove the row", file=source, field=field)
    if not isinstance(value, str):
        raise UserError(f"{json_kind(value)} where a text belongs; write it as a string", file=source, field=field)
    if not value.strip():
        raise UserError("the text is empty; give every row one, or remove the row", file=source, field=field)
    return value


def json_kind(value: object) -> str:
    """Returns what kind of JSON value this is, in words for an error."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else "an object"
