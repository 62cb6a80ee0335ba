"""JSON text as rows, or as the articles of a SQuAD document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.content import numbered_lines
from pipeline.data.rows import Row
from pipeline.support.errors import UserError


def read_json(path: Path, text: str) -> tuple[list[Any] | None, Iterator[Row]]:
    """Returns (the articles, no rows) of a SQuAD document, and (None, the rows) of a JSON list or of JSON lines.

    Raises:
        UserError: broken JSON, or a row that is not an object; a row's error is raised when the row is read.
    """
    first, line = next(numbered_lines(text))
    following = text.split("\n", first)[first:] or [""]
    if line.lstrip().startswith("{") and following[0].strip():
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            pass  # a document over many lines, or a broken first line: parsing the whole tells which
        else:
            return None, _rows_of_lines(path, text)
    document = _parse(path, text)
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        articles = document["data"]
        if not articles or any(isinstance(article, dict) and "paragraphs" in article for article in articles):
            return articles, iter(())
        document = articles
    if isinstance(document, dict):
        document = [document]
    return None, _rows_of_list(path, document)


def _parse(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason, place = f"{error.msg} at column {error.colno}", line or error.lineno
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        reason, place = str(error), line or 1
    raise UserError(f"broken JSON, {reason}; correct it there", file=path, field=f"line {place}")


def _rows_of_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in numbered_lines(text):
        yield _row(path, f"line {number}", _parse(path, line, number))


def _rows_of_list(path: Path, values: list[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield _row(path, f"row {number}", value)


def _row(path: Path, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError('not an object; write {"text": ..., "label": ...}', file=path, field=place)
    return Row(place, value)
