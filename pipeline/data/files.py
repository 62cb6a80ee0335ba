"""Reads labelled examples from a data file of any supported form, or from a data set on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline.data.content import decode_text, exists, read_content
from pipeline.data.delimited import delimited_rows
from pipeline.data.examples import Example
from pipeline.data.hub import hub_name, hub_rows
from pipeline.data.json_files import read_json
from pipeline.data.labelled_texts import labelled_texts
from pipeline.data.parquet_files import MAGIC, parquet_rows
from pipeline.data.questions import questions_of_rows, questions_of_squad
from pipeline.data.rows import Row
from pipeline.names import Task
from pipeline.support.errors import UserError


def read_examples(
    source: str | Path,
    task: Task,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Returns the examples of a data file, or of a data set on the Hugging Face hub.

    Args:
        source: a file, recognised by its content: SQuAD JSON (v1.1, v2.0), TSV (no quoting, as in SST-2) or CSV
            (standard quoting) with a header, JSON lines, a JSON list, Parquet. If there is no such file, a hub name:
            `owner/name:split` or `owner/name/config:split`.
        task: what the examples are for. Question answering reads SQuAD, or rows with a question, a context and
            answers {text: [], answer_start: []}.
        text: classification and regression: the column of the text; found among TEXT_COLUMNS if not given.
        text_pair: the column of the second text; found among PAIR_COLUMNS if not given, "" for none.
        label: the column of the label; found among LABEL_COLUMNS, or VALUE_COLUMNS for regression, if not given, "" for
            none.
        limit: read only this many examples. Faults after them are not noticed.

    Raises:
        UserError: the source cannot be read, or an example in it is faulty; names the file, the line or field, and the
            way out.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} is no number of examples; set at least 1, or leave it out", field="limit")
    path = Path(source)
    hub = None if exists(path) else hub_name(str(source))
    if hub is not None:
        rows: Iterator[Row] = hub_rows(str(source), hub)
    else:
        content = read_content(path)
        if content.startswith(MAGIC):
            rows = parquet_rows(path, content)
        else:
            decoded = decode_text(path, content)
            if decoded.lstrip().startswith(("{", "[")):
                articles, rows = read_json(path, decoded)
                if articles is not None:
                    if task != "qa":
                        raise UserError(
                            'this is SQuAD, questions on passages; set task to "qa", or name a classification file',
                            file=path,
                        )
                    return _take(path, questions_of_squad(path, articles), limit)
            else:
                rows = delimited_rows(path, decoded)
    if task == "qa":
        return _take(source, questions_of_rows(source, rows), limit)
    return _take(source, labelled_texts(source, rows, task, text, text_pair, label), limit)


def _take(source: str | Path, examples: Iterator[Example], limit: int | None) -> list[Example]:
    taken = list(islice(examples, limit))
    if not taken:
        raise UserError("the file holds no examples; give one with at least one", file=source)
    return taken
