"""Rows of TSV and CSV text with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.content import numbered_lines
from pipeline.data.rows import Row
from pipeline.support.errors import UserError


def delimited_rows(path: Path, text: str) -> Iterator[Row]:
    """Yields the rows below the header, as TSV if the header has a tab, else as CSV with commas, semicolons or bars.

    Raises:
        UserError: a column stands twice in the header, a row has more or fewer cells than the header, or the CSV is
            broken.
    """
    _, header = next(numbered_lines(text))
    records: Iterator[tuple[int, list[str]]]
    if "\t" in header:
        records = ((number, line.split("\t")) for number, line in numbered_lines(text))
    else:
        others = [delimiter for delimiter in ";|" if delimiter in header and "," not in header]
        records = _csv_records(path, text, others[0] if others else ",")
    _, header_cells = next(records)
    columns = [cell.strip() for cell in header_cells]
    for column in columns:
        if column and columns.count(column) > 1:
            raise UserError(
                f"column {column!r} stands in the header more than once; rename one", file=path, field="line 1"
            )
    for number, cells in records:
        if len(cells) != len(columns):
            raise UserError(
                f"{len(cells)} column{'s' if len(cells) != 1 else ''} where the header has {len(columns)}; "
                "give the line as many as the header (a TSV has no quoting, a CSV quotes a cell with a comma in it)",
                file=path,
                field=f"line {number}",
            )
        yield Row(f"line {number}", dict(zip(columns, cells)))


def _csv_records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record with the line it starts on; a quoted cell may span several lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        # The csv module limits a cell to 128 KiB, but a passage may be longer. The limit is global, so it is raised for
        # one record only: a generator must not leave it changed while its caller runs.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"broken CSV, {error}; close the quotation marks, and write one inside a cell twice",
                file=path,
                field=f"line {line}",
            ) from None
        finally:
            csv.field_size_limit(limit)
        if record is None:
            return
        if any(cell.strip() for cell in record):
            yield line, record
