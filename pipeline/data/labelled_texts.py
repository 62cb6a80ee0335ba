"""Turns rows into examples for classification and regression."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline.data.columns import LABEL_COLUMNS, PAIR_COLUMNS, TEXT_COLUMNS, VALUE_COLUMNS
from pipeline.data.examples import ClassificationExample
from pipeline.data.guess import GuessedColumns, guess_columns
from pipeline.data.rows import ID_COLUMNS, Row, find_column, json_kind, list_columns, text_value
from pipeline.support.errors import Problems, UserError

SAMPLE_ROWS = 200  # that a column is guessed from, to suggest it


def labelled_texts(
    source: str | Path, rows: Iterator[Row], numbers: bool, text: str | None, text_pair: str | None, label: str | None
) -> Iterator[ClassificationExample]:
    """Yields an example for each row; its label is a class, or a number for regression.

    Args:
        source: the file or hub data set, for an error.
        rows: its rows.
        numbers: whether labels are numbers, for regression, and not classes.
        text, text_pair, label: the columns, see `pipeline.tasks.reading.read_examples`.

    Raises:
        UserError: the columns cannot be found, or a text or label is missing or of the wrong kind.
    """
    usual_names, read_label = (VALUE_COLUMNS, _number) if numbers else (LABEL_COLUMNS, _class)
    first = next(rows, None)
    if first is None:
        return
    columns, problems = list(first.values), Problems()
    text_column = find_column(source, columns, TEXT_COLUMNS, text, "data.text", "the text", problems)
    pair_column = find_column(source, columns, PAIR_COLUMNS, text_pair, "data.text_pair", "the second text", problems)
    label_column = find_column(source, columns, usual_names, label, "data.label", "the label", problems)
    # A file of nothing but texts is unlabelled. One with more columns has its label under an unusual name.
    known = {(text_column or "").casefold(), (pair_column or "").casefold(), "", *ID_COLUMNS}
    others = [column for column in columns if column.strip().casefold() not in known]
    lacks_text = text_column is None and text is None
    lacks_label = label_column is None and label is None and bool(others)
    if lacks_text or lacks_label:
        likely = likely_columns(source, first, rows, numbers)
        others = [column for column in others if not (lacks_text and likely and column == likely.text)]
        if lacks_text:
            problems.errors.append(
                UserError(
                    f"no column is known to hold the text; set data.text to one of: {list_columns(columns)} "
                    "(a TSV or CSV needs a header as its first line)",
                    file=source,
                    settings=[f"data.text={likely.text}"] if likely else [],
                )
            )
        if lacks_label and others:
            problems.errors.append(
                UserError(
                    "no column is known to hold the label; "
                    f'set data.label to one of: {list_columns(others)}, or to "" for none',
                    file=source,
                    settings=[f"data.label={likely.label}"] if likely and likely.label in others else [],
                )
            )
    problems.require_none(source)
    assert text_column is not None  # else it is among the problems
    for row in chain((first,), rows):
        yield ClassificationExample(
            text=text_value(source, row, text_column),
            text_pair=None if pair_column is None else text_value(source, row, pair_column),
            label=None if label_column is None else read_label(source, row, label_column),
        )


def likely_columns(source: str | Path, first: Row, rows: Iterator[Row], numbers: bool) -> GuessedColumns | None:
    """Returns the columns that look like text and label, to suggest them; None if nothing does."""
    try:
        return guess_columns(source, [first, *islice(rows, SAMPLE_ROWS)], numbers)
    except UserError:
        return None


def _label_value(source: str | Path, row: Row, column: str) -> Any:
    if column not in row.values:
        raise UserError(
            "the label is missing; give every row one, or remove the row", file=source, field=f"{row.place}, {column}"
        )
    return row.values[column]


def _class(source: str | Path, row: Row, column: str) -> str | None:
    """Returns the label as a string (1.0 as "1"), None for null."""
    value, field = _label_value(source, row, column), f"{row.place}, {column}"
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer()):
            raise UserError(
                f"{value} is a measurement, not a class; "
                'give whole numbers or names as labels, or set task to "regression"',
                file=source,
                field=field,
            )
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{json_kind(value)} where a label belongs; give a number or a name", file=source, field=field)
    if not value.strip():
        raise UserError("the label is empty; give every row one, or remove the row", file=source, field=field)
    return value.strip()


def _number(source: str | Path, row: Row, column: str) -> float | None:
    """Returns the label as a number, None for null."""
    value, field = _label_value(source, row, column), f"{row.place}, {column}"
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value) if isinstance(value, (str, float)) else json_kind(value)
        raise UserError(
            f"{shown} where a finite number belongs; regression needs one in every row, such as 3.8",
            file=source,
            field=field,
        )
    return number
