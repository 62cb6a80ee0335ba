"""Rows of data sets on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.data.rows import Row
from pipeline.support.errors import UserError, first_line
from pipeline.support.libraries import import_library

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.%\[\]:+-]+))?")
_FILE_SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".tsv", ".csv", ".txt", ".parquet", ".pq", ".gz", ".zip", ".bz2", ".xz", ".zst",
)  # fmt: skip


def hub_name(source: str) -> re.Match[str] | None:
    """Returns the parts `name`, `config` and `split` of a hub name; None if it reads like the path of a file."""
    match = _HUB_NAME.fullmatch(source)
    if match is None or source.startswith(".") or source.split(":")[0].lower().endswith(_FILE_SUFFIXES):
        return None
    return match


def hub_rows(source: str, hub: re.Match[str], streaming: bool = False) -> Iterator[Row]:
    """Returns the rows of a data set on the hub.

    Args:
        source: the name as the user gave it, for an error.
        hub: its parts, see `hub_name`.
        streaming: download rows while they are read, and keep none.

    Raises:
        UserError: the data set, its configuration or its split cannot be found, or the name lacks a split.
    """
    datasets = import_library("datasets", source)
    options = {"streaming": True} if streaming else {}
    try:
        loaded = datasets.load_dataset(hub["name"], hub["config"], split=hub["split"], **options)
    except ValueError as error:  # the data set has no such configuration or split
        raise UserError(f'{first_line(error)}; name it as "owner/name/config:split"', file=source) from None
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        raise UserError(
            f"there is no such file, and the hub was not reachable or has no such data set "
            f"({type(error).__name__}: {first_line(error)}); correct the path, or download the data set "
            "and name its file",
            file=source,
        ) from None
    if hub["split"] is None:
        if len(loaded) != 1:
            raise UserError(
                f'the data set has the splits {", ".join(loaded)}; name one, as in "{source}:{next(iter(loaded))}"',
                file=source,
            )
        loaded = next(iter(loaded.values()))
    return (Row(f"row {number}", dict(values)) for number, values in enumerate(loaded, start=1))
