"""Opens a data file or a data set on the Hugging Face hub. The form of a file is told from its content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.content import decode_text, exists, read_content
from pipeline.data.delimited import delimited_rows
from pipeline.data.hub import hub_name, hub_rows
from pipeline.data.json_files import read_json
from pipeline.data.parquet_files import MAGIC, parquet_rows
from pipeline.data.rows import Row


@dataclass(frozen=True)
class DataContent:
    """What a data file holds.

    Attributes:
        rows: the rows of a table; empty where there are articles.
        articles: the articles of a SQuAD document; None for a table.
    """

    rows: Iterator[Row]
    articles: list[Any] | None = None


def open_data(source: str | Path) -> DataContent:
    """Opens a data file or a data set on the Hugging Face hub.

    Args:
        source: a file, recognised by its content: SQuAD JSON (v1.1, v2.0), TSV (no quoting, as in SST-2) or CSV
            (standard quoting) with a header, JSON lines, a JSON list, Parquet. If there is no such file, a hub name:
            `owner/name:split` or `owner/name/config:split`.

    Raises:
        UserError: the source cannot be read; names the file, the line or field, and the way out. Faults of a row are
            raised when it is its turn.
    """
    path = Path(source)
    hub = None if exists(path) else hub_name(str(source))
    if hub is not None:
        return DataContent(hub_rows(str(source), hub))
    content = read_content(path)
    if content.startswith(MAGIC):
        return DataContent(parquet_rows(path, content))
    decoded = decode_text(path, content)
    if not decoded.lstrip().startswith(("{", "[")):
        return DataContent(delimited_rows(path, decoded))
    articles, rows = read_json(path, decoded)
    return DataContent(rows, articles)
