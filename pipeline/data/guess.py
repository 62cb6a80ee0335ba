"""Guesses from a table's names and content which columns hold the texts and the label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.columns import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    TEXT_COLUMNS,
    VALUE_COLUMNS,
    Column,
    as_number,
    describe_columns,
)
from pipeline.data.rows import Row, find_column, list_columns
from pipeline.support.errors import UserError

# Words in a column's name that tell of its content. They decide only where content alone leaves a choice.
LABEL_WORDS = (
    "label", "class", "category", "intent", "sentiment", "topic", "target", "tag", "rating", "stars", "score",
    "similarity", "grade", "kategorie", "klasse", "absicht", "thema", "polarity", "emotion", "verdict",
)  # fmt: skip
ASIDE_WORDS = (
    "lang", "language", "sprache", "locale", "country", "region", "channel", "kanal", "source", "split", "user",
    "author", "agent", "name", "status", "device", "version", "year", "month", "date", "genre", "file", "filename",
    "count", "length", "confidence", "id",
)  # fmt: skip
# Beside the longest column of texts another one counts if it has sentences, or is about as long.
SENTENCE_WORDS = 4.0  # mean
LIKE_LONG = 0.5
LEAST_SHORT_TEXTS = 20  # different values of a column that may hold texts though they are as short as classes
LONGEST_HEADER_WORDS = 6  # a cell with more of them is no name of a column


@dataclass(frozen=True)
class GuessedColumns:
    """The columns that a table was found to hold.

    Attributes:
        text, text_pair: names of the columns of texts; `text_pair` is None for single texts.
        label: the name of the column of the label.
        numbers: whether the labels are numbers to predict, and not classes.
        unused: the other columns and what they hold.
    """

    text: str
    text_pair: str | None
    label: str
    numbers: bool
    unused: tuple[Column, ...]


def guess_columns(
    source: str | Path,
    rows: Sequence[Row],
    numbers: bool | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
) -> GuessedColumns:
    """Returns which columns hold the texts and the label.

    The usual names come first, if what such a column holds fits. Then content decides: a text column holds long strings
    that differ, a label column few different values, or numbers.

    Args:
        source: the file, for an error.
        rows: its rows, at least one.
        numbers: whether labels are numbers to predict (true) or classes (false); None to guess.
        text, text_pair, label: columns that the user names; `text_pair` may be "" for none.

    Raises:
        UserError: there is no header, or no such column, or several that may be meant; names the candidates and the
            settings that choose one.
    """
    check_header(source, rows)
    columns = describe_columns(rows)
    by_name = {column.name: column for column in columns}
    for name, key in ((text, "data.text"), (text_pair, "data.text_pair"), (label, "data.label")):
        if name:
            find_column(source, list(by_name), (), name, key, "its content")
    if text:
        texts = [by_name[text], *([by_name[text_pair]] if text_pair else [])]
    else:
        texts = _text_columns(source, [column for column in columns if column.name != label], text_pair == "")
        if text_pair:
            texts = [next(column for column in texts if column.name != text_pair), by_name[text_pair]]
    found = by_name[label] if label else _label_column(source, columns, texts, numbers)
    chosen = (*(column.name for column in texts), found.name)
    return GuessedColumns(
        text=texts[0].name,
        text_pair=texts[1].name if len(texts) > 1 else None,
        label=found.name,
        numbers=found.kind == "number" if numbers is None else numbers,
        unused=tuple(column for column in columns if column.name not in chosen),
    )


def check_header(source: str | Path, rows: Sequence[Row]) -> None:
    """Checks that the first line of a table names its columns. UserError if it is a row like the others."""
    names = list(rows[0].values)
    values = [{str(row.values.get(name)).strip() for row in rows} for name in names]
    repeated = [name for name, found in zip(names, values) if name.strip() and name.strip() in found and len(found) > 1]
    numbers = [name for name in names if as_number(name) is not None]
    sentences = [name for name in names if len(name.split()) > LONGEST_HEADER_WORDS]
    if repeated or numbers or sentences:
        raise UserError(
            f"the first line looks like a row and not like the names of the columns: {list_columns(names)}; "
            "write a line above it, such as text,label",
            file=source,
            field="line 1",
        )


def _text_columns(source: str | Path, columns: Sequence[Column], single: bool) -> list[Column]:
    """Returns the column of the texts, or the two of a pair in the order of the file.

    Args:
        single: whether the user has said that there is no second text.
    """
    by_name = {column.name: column for column in columns}
    texts = _candidates(columns)
    if not texts:
        raise UserError(
            f"no column holds texts; if one does, name it with --set data.text=NAME: {list_columns(list(by_name))}",
            file=source,
        )
    names = [column.name for column in texts]
    usual = find_column(source, names, TEXT_COLUMNS)
    if usual is not None:
        pair = None if single else find_column(source, names, PAIR_COLUMNS)
        return [by_name[usual]] if pair is None else [by_name[usual], by_name[pair]]
    if single:
        return texts[:1]
    long = [
        column
        for column in texts
        if column.words >= SENTENCE_WORDS or column.length >= LIKE_LONG * texts[0].length or column is texts[0]
    ]
    if len(long) > 2:
        raise UserError(
            f"{len(long)} columns hold texts: {list_columns([column.name for column in long])}; "
            f"choose one with --set data.text={_shell(long[0].name)} --set data.text_pair=, or two by naming both",
            file=source,
        )
    return [column for column in columns if column in long]


def _candidates(columns: Sequence[Column]) -> list[Column]:
    """Returns the columns that may hold texts, the longest first."""
    texts = sorted((column for column in columns if column.kind == "text"), key=lambda column: -column.length)
    plain = [column for column in texts if not _has_word(column.name, ASIDE_WORDS)]
    if texts:
        return plain or texts
    # Messages of a few words that come again look like classes. There are more of them than of the classes beside.
    short = sorted((column for column in columns if column.kind == "class"), key=lambda column: -column.distinct)
    return short[:1] if len(short) > 1 and short[0].distinct >= LEAST_SHORT_TEXTS and short[0].words > 1 else []


def _label_column(
    source: str | Path, columns: Sequence[Column], texts: Sequence[Column], numbers: bool | None
) -> Column:
    """Returns the column of the label."""
    kinds = {None: ("class", "number"), True: ("number", "class"), False: ("class",)}[numbers]
    fitting = [column for column in columns if column not in texts and column.kind in kinds]
    by_name = {column.name: column for column in fitting}
    usual = find_column(source, list(by_name), (*LABEL_COLUMNS, *VALUE_COLUMNS))
    if usual is not None:
        return by_name[usual]
    hinted = [column for column in fitting if _has_word(column.name, LABEL_WORDS)]
    plain = [column for column in fitting if not _has_word(column.name, ASIDE_WORDS)]
    classes = [column for column in plain if column.kind == "class"]
    for found in (hinted, plain, classes if numbers is None else [], fitting):
        if len(found) == 1:
            return found[0]
    if not fitting:
        raise UserError(
            "no column holds labels, which are a few values that come again, or numbers; "
            f"name it with --set data.label=NAME: {list_columns([column.name for column in columns])}",
            file=source,
        )
    names = [column.name for column in (hinted or plain or fitting)]
    raise UserError(
        f"{len(names)} columns may hold the label: {list_columns(names)}; choose one with "
        f"--set data.text={_shell(texts[0].name)} --set data.label={_shell(names[0])}",
        file=source,
    )


def _has_word(name: str, words: Sequence[str]) -> bool:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)  # camelCase
    return any(part in words for part in re.split(r"[\W_\d]+", spaced.casefold()))


def _shell(name: str) -> str:
    """Returns a column's name as one writes it in a shell."""
    return name if re.fullmatch(r"[\w.-]+", name) else "'" + name.replace("'", "'\\''") + "'"
