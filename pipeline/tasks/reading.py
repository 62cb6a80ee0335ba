"""Reads a data file as the examples of a task."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.files import open_data
from pipeline.support.errors import UserError
from pipeline.tasks import get_task
from pipeline.tasks.types import Columns


def read_examples(
    source: str | Path,
    task: str,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    limit: int | None = None,
) -> list[Any]:
    """Returns the examples of a data file, or of a data set on the Hugging Face hub.

    Args:
        source: see `pipeline.data.files.open_data`.
        task: what the examples are for. Question answering reads SQuAD, or rows with a question, a context and
            answers {text: [], answer_start: []}; the others read tables.
        text: the column of the text; found among the usual names if not given.
        text_pair: the column of the second text; found among the usual names if not given, "" for none.
        label: the column of the label; found among the usual names if not given, "" for none.
        limit: read only this many examples. Faults after them are not noticed.

    Raises:
        UserError: the source cannot be read, or an example in it is faulty; names the file, the line or field, and the
            way out.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} is no number of examples; set at least 1, or leave it out", field="limit")
    content, definition = open_data(source), get_task(task)
    if content.articles is not None:
        examples = definition.examples_of_articles(Path(source), content.articles)
    else:
        examples = definition.examples_of_rows(source, content.rows, Columns(text, text_pair, label))
    found = list(islice(examples, limit))
    if not found:
        raise UserError("the file holds no examples; give one with at least one", file=source)
    return found
