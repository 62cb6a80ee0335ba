"""Describes the columns of a table by their content: which of them may hold texts, and which labels."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.rows import ID_COLUMNS, Row

Kind = Literal["text", "class", "number", "id", "date", "address", "constant", "empty", "other"]

# Usual names of columns, in lower case, in the order of preference.
TEXT_COLUMNS = ("text", "sentence", "sentence1", "question1", "premise", "review", "content")
PAIR_COLUMNS = ("text_pair", "sentence2", "question2", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "class", "category")
VALUE_COLUMNS = ("label", "labels", "score", "similarity", "value")

# A value that is no sentence, whatever its column is called.
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?|\d{1,2}:\d{2}(:\d{2})?")
ADDRESS = re.compile(r"(https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.]+", re.IGNORECASE)

MOST_CLASSES = 1000  # more labels than any intent classifier has
EXAMPLES_PER_CLASS = 3  # fewer rows for each value: names or ids, not classes
LONGEST_CLASS_NAME = 60  # characters
MOST_NUMBERED_CLASSES = 20  # whole numbers with more different values are measurements
LEAST_TEXT_WORDS = 1.5  # mean; fewer are names or codes
LEAST_TEXT_CHARACTERS = 8  # mean, of texts in a script without spaces
MOST = 0.9  # share of the values that must look alike to decide what a column is


@dataclass(frozen=True)
class Column:
    """A column and what its values are.

    Attributes:
        name: as the file writes it.
        kind: what it may serve for; "class" and "number" may be labels.
        length: mean number of characters times the share of different values; texts have the most.
        words: mean number of words.
        distinct: how many different values it has.
    """

    name: str
    kind: Kind
    length: float = 0.0
    words: float = 0.0
    distinct: int = 0


def describe_columns(rows: Sequence[Row]) -> list[Column]:
    """Returns a description of every column of the first row, in the order of the file."""
    return [_describe(name, [row.values.get(name) for row in rows]) for name in rows[0].values]


def as_number(value: Any) -> float | None:
    """Returns a number, or a text that is one, as a float; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _describe(name: str, values: list[Any]) -> Column:
    present = [value for value in values if value is not None and str(value).strip()]
    if len(present) < len(values) / 2:
        return Column(name, "empty")
    if any(isinstance(value, (list, dict)) for value in present):
        return Column(name, "other")
    texts = [str(value).strip() for value in present]
    counts = Counter(texts)
    length = statistics.fmean(map(len, texts)) * len(counts) / len(texts)
    words = statistics.fmean(len(text.split()) for text in texts)
    return Column(name, _kind(name, present, texts, counts, words), length, words, len(counts))


def _kind(name: str, values: list[Any], texts: list[str], counts: Counter[str], mean_words: float) -> Kind:
    if len(counts) == 1:
        return "constant"
    if name.strip().casefold() in ("", *ID_COLUMNS) or name.strip().casefold().startswith("unnamed"):
        return "id"  # pandas writes its index as a column without a name
    for pattern, kind in ((DATE, "date"), (ADDRESS, "address")):
        if sum(pattern.fullmatch(text) is not None for text in texts) >= MOST * len(texts):
            return kind  # type: ignore[return-value]  # mypy widens the literals of a tuple
    numbers = [number for number in map(as_number, values) if number is not None]
    if len(numbers) == len(texts):
        return _kind_of_numbers(numbers)
    few = len(counts) <= min(MOST_CLASSES, max(2, len(texts) // EXAMPLES_PER_CLASS))
    mean_characters = statistics.fmean(map(len, texts))
    # Classes have short names that come again and again. A text may come again too, but hardly in a third of the rows.
    if few and max(map(len, counts)) <= LONGEST_CLASS_NAME and (mean_words < 4 or len(counts) <= len(texts) / 20):
        return "class"
    if mean_words >= LEAST_TEXT_WORDS:
        return "text"
    without_spaces = any(ord(letter) > 0x2E80 for text in texts[:100] for letter in text)
    return "text" if without_spaces and mean_characters >= LEAST_TEXT_CHARACTERS else "id"


def _kind_of_numbers(numbers: list[float]) -> Kind:
    whole = all(number.is_integer() for number in numbers)
    distinct = len(set(numbers))
    if not whole or distinct > MOST_NUMBERED_CLASSES:
        # Whole numbers that hardly ever come again count the rows, or name them.
        return "id" if whole and distinct > MOST * len(numbers) else "number"
    return "class" if distinct * EXAMPLES_PER_CLASS <= len(numbers) else "number"
