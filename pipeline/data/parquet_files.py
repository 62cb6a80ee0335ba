"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.rows import Row
from pipeline.support.errors import UserError, first_line
from pipeline.support.libraries import import_library

MAGIC = b"PAR1"  # how every Parquet file begins
ROWS_AT_ONCE = 1024


def parquet_rows(path: Path, content: bytes) -> Iterator[Row]:
    """Yields the rows of a Parquet file. Raises UserError if it is broken or pyarrow is not installed."""
    pyarrow = import_library("pyarrow", path)
    parquet = import_library("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(content))
        number = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"broken Parquet, {first_line(error)}; write the file anew", file=path) from None
