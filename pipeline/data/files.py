"""Data files as examples: what a file holds is told from its content, and what is wrong with it in one line."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline.data.examples import Answer, ClassificationExample, Example, QAExample
from pipeline.names import Task
from pipeline.support.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "sentence1", "question1", "premise", "review", "content")
PAIR_COLUMNS = ("text_pair", "sentence2", "question2", "hypothesis")
LABEL_COLUMNS = ("label", "labels", "class", "category")
VALUE_COLUMNS = ("label", "labels", "score", "similarity", "value")
QUESTION_COLUMNS = ("question",)
PASSAGE_COLUMNS = ("context", "passage")
ID_COLUMNS = ("id", "idx", "index", "guid", "qid")

FORMS = "SQuAD JSON, TSV or CSV with a header, JSON lines, a JSON list, or Parquet"

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.%\[\]:+-]+))?")
_FILE_SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".tsv", ".csv", ".txt", ".parquet", ".pq", ".gz", ".zip", ".bz2", ".xz", ".zst",
)  # fmt: skip
BINARY = {
    b"\x1f\x8b": "gzip-compressed; decompress it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"BZh": "bzip2-compressed; decompress it first",
    b"\xfd7zXZ": "xz-compressed; decompress it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it first",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}


@dataclass(frozen=True)
class Row:
    """One row of a flat file; `place` is where it stands, as an error names it ("line 3", "row 3")."""

    place: str
    values: dict[str, Any]


def read_examples(
    source: str | Path,
    task: Task,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """The examples of a data file, or of a data set on the Hugging Face hub.

    Args:
        source: a file, recognised by its content: SQuAD JSON (v1.1, v2.0), TSV (no quoting, as SST-2) or CSV (standard
            quoting) with a header, JSON lines, a JSON list, Parquet. Or, where no such file exists, a hub name:
            `owner/name:split` or `owner/name/config:split`.
        task: what to read it as. QA reads SQuAD, or rows of question, context, answers {text: [], answer_start: []}.
        text: classification and regression: the column of the text; guessed from TEXT_COLUMNS when not given.
        text_pair: the column of the second text; guessed from PAIR_COLUMNS, "" for none.
        label: the column of the label; guessed from LABEL_COLUMNS, for regression from VALUE_COLUMNS, "" for none.
        limit: read only the first so many; what is wrong after them is not seen.

    Raises:
        UserError: naming file, line or field, and the way out.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} examples are none; set at least 1, or leave it out", field="limit")
    path = Path(source)
    hub = None if exists(path) else hub_name(str(source))
    if hub is not None:
        rows: Iterator[Row] = hub_rows(str(source), hub)
    else:
        content = _read(path)
        if content.startswith(b"PAR1"):
            rows = _parquet_rows(path, content)
        else:
            decoded = _decode(path, content)
            if decoded.lstrip().startswith(("{", "[")):
                document, rows = _json_content(path, decoded)
                if document is not None:
                    if task != "qa":
                        raise UserError(
                            'this is SQuAD, questions on passages; set task to "qa", or name a classification file',
                            file=path,
                        )
                    return _some(path, islice(_squad_examples(path, document), limit))
            else:
                rows = _delimited_rows(path, decoded)
    if task == "qa":
        return _some(source, islice(_qa_examples(source, rows), limit))
    return _some(source, islice(_text_examples(source, rows, task, text, text_pair, label), limit))


def _some(source: str | Path, examples: Iterator[Example]) -> list[Example]:
    found = list(examples)
    if not found:
        raise UserError("the file holds no examples; give one with at least one", file=source)
    return found


# --- bytes and text -------------------------------------------------------------------------------------------------


def exists(path: Path) -> bool:
    """Whether there is such a file, as far as can be told."""
    try:
        return path.exists()
    except PermissionError:
        return True  # it may; reading it says why not
    except (OSError, ValueError):
        return False  # too long for a name, or with a NUL in it


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UserError("this is a folder; name a file in it", file=path) from None
    except PermissionError as error:
        if path.is_dir():  # Windows says so of a folder
            raise UserError("this is a folder; name a file in it", file=path) from None
        raise UserError(f"the file cannot be read ({error.strerror}); check its permissions", file=path) from None
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or not exists(path):
            raise UserError(
                f'there is no such file; give {FORMS}, or a hub data set as "owner/name:split"', file=path
            ) from None
        raise UserError(f"the file cannot be read ({error}); give a readable one", file=path) from None
    if not content.strip():
        raise UserError(f"the file is empty; give {FORMS}", file=path)
    return content


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for start, what in BINARY.items():
            if content.startswith(start):
                raise UserError(f"this is not text but {what}", file=path) from None
        line = content.count(b"\n", 0, error.start) + 1
        # With a byte order mark, utf-8-sig counts from behind it.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        raise UserError(
            f"byte {offset} (0x{content[offset]:02x}) is not UTF-8; save the file as UTF-8",
            file=path,
            field=f"line {line}",
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line that is not blank with its number; only a newline ends one, not U+2028 as for splitlines()."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


# --- flat rows from each form ---------------------------------------------------------------------------------------


def _json_content(path: Path, text: str) -> tuple[list[Any] | None, Iterator[Row]]:
    """(the articles of a SQuAD document, nothing), or (None, the rows of a JSON list or of JSON lines)."""
    first, line = next(_lines(text))
    rest_of_file = text.split("\n", first)[first:] or [""]
    if line.lstrip().startswith("{") and rest_of_file[0].strip():
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            pass  # one document over many lines, or a broken first line; the whole says which
        else:
            return None, _json_lines(path, text)
    document = _json(path, text)
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        articles = document["data"]
        if not articles or any(isinstance(article, dict) and "paragraphs" in article for article in articles):
            return articles, iter(())
        document = articles
    if isinstance(document, dict):
        document = [document]
    return None, _listed_rows(path, document)


def _json(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason, place = f"{error.msg} at column {error.colno}", line or error.lineno
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        reason, place = str(error), line or 1
    raise UserError(f"broken JSON, {reason}; correct it there", file=path, field=f"line {place}")


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in _lines(text):
        yield _row(path, f"line {number}", _json(path, line, number))


def _listed_rows(path: Path, values: list[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield _row(path, f"row {number}", value)


def _row(path: Path, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError('not an object; write {"text": ..., "label": ...}', file=path, field=place)
    return Row(place, value)


def _delimited_rows(path: Path, text: str) -> Iterator[Row]:
    _, header = next(_lines(text))
    if "\t" in header:
        records = ((number, line.split("\t")) for number, line in _lines(text))
    else:
        records = _csv_records(path, text, ";" if ";" in header and "," not in header else ",")
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
    """Each record with the line it starts on; a quoted cell may go over several."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        # The limit is a global of the csv module, 128 KiB a cell; a passage may be longer. It is lent for one record,
        # since a generator must not leave it changed while its caller runs.
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


def _parquet_rows(path: Path, content: bytes) -> Iterator[Row]:
    pyarrow = _library("pyarrow", path)
    parquet = _library("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(pyarrow.BufferReader(content))
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"broken Parquet, {first_line(error)}; write the file anew", file=path) from None


def _library(name: str, source: str | Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(f"reading this needs {package}; run: pip install {package}", file=source) from None


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# --- the hub --------------------------------------------------------------------------------------------------------


def hub_name(source: str) -> re.Match[str] | None:
    """The source's parts if it reads as a hub name rather than as the path of a file that is missing."""
    found = _HUB_NAME.fullmatch(source)
    if found is None or source.startswith(".") or source.split(":")[0].lower().endswith(_FILE_SUFFIXES):
        return None
    return found


def hub_rows(source: str, hub: re.Match[str], streaming: bool = False) -> Iterator[Row]:
    """The rows of a hub set; `hub` is `hub_name`'s match of `source`. With `streaming` they come as they are read, nothing is kept."""
    datasets = _library("datasets", source)
    try:
        loaded = datasets.load_dataset(
            hub["name"], hub["config"], split=hub["split"], **({"streaming": True} if streaming else {})
        )
    except ValueError as error:  # a config or a split that the data set does not have
        raise UserError(f'{first_line(error)}; name it as "owner/name/config:split"', file=source) from None
    except Exception as error:  # noqa: BLE001 - the hub's client raises whatever its HTTP library does
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


# --- rows to examples -----------------------------------------------------------------------------------------------


def _text_examples(
    source: str | Path, rows: Iterator[Row], task: Task, text: str | None, text_pair: str | None, label: str | None
) -> Iterator[ClassificationExample]:
    """Examples of a class, or for regression of a number."""
    guesses, read = (VALUE_COLUMNS, _number) if task == "regression" else (LABEL_COLUMNS, _label)
    first = next(rows, None)
    if first is None:
        return
    columns = list(first.values)
    text_column = _column(source, columns, text, TEXT_COLUMNS, "data.text", "the text")
    if text_column is None:
        raise UserError(
            f"no column is known to hold the text; set data.text to one of: {_listed(columns)} "
            "(a TSV or CSV needs a header as its first line)",
            file=source,
        )
    pair_column = _column(source, columns, text_pair, PAIR_COLUMNS, "data.text_pair", "the second text")
    label_column = _column(source, columns, label, guesses, "data.label", "the label")
    if label_column is None and label is None:
        known = {text_column.casefold(), (pair_column or "").casefold(), "", *ID_COLUMNS}
        left = [column for column in columns if column.strip().casefold() not in known]
        if left:  # a file of nothing but text is unlabelled; one with more has its label under another name
            raise UserError(
                f'no column is known to hold the label; set data.label to one of: {_listed(left)}, or to "" for none',
                file=source,
            )
    for row in chain((first,), rows):
        yield ClassificationExample(
            text=_text(source, row, text_column),
            text_pair=None if pair_column is None else _text(source, row, pair_column),
            label=None if label_column is None else read(source, row, label_column),
        )


def _column(
    source: str | Path, columns: list[str], given: str | None, guesses: tuple[str, ...], field: str, what: str
) -> str | None:
    """The column given, or the first that its name tells; None when there is none to take ("" asks for none)."""
    if given == "":
        return None
    if given is not None:
        if given not in columns:
            raise UserError(
                f"the file has no column {given!r} for {what}; set {field} to one of: {_listed(columns)}", file=source
            )
        return given
    by_name = {column.strip().casefold(): column for column in reversed(columns)}
    return next((by_name[guess] for guess in guesses if guess in by_name), None)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column if len(column) <= 40 else column[:37] + "...") for column in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")


def _text(source: str | Path, row: Row, column: str) -> str:
    value = row.values.get(column)
    field = f"{row.place}, {column}"
    if value is None:
        raise UserError("the text is missing; give every row one, or remove the row", file=source, field=field)
    if not isinstance(value, str):
        raise UserError(f"{_json_kind(value)} where a text belongs; write it as a string", file=source, field=field)
    if not value.strip():
        raise UserError("the text is empty; give every row one, or remove the row", file=source, field=field)
    return value


def _json_kind(value: Any) -> str:
    """What a JSON value is, in words for an error."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else "an object"


def _label_value(source: str | Path, row: Row, column: str) -> Any:
    """What the row has for a label. UserError where it has nothing, not even null."""
    if column not in row.values:
        raise UserError(
            "the label is missing; give every row one, or remove the row", file=source, field=f"{row.place}, {column}"
        )
    return row.values[column]


def _label(source: str | Path, row: Row, column: str) -> str | None:
    """The label as a string, 1.0 as "1"; None for null."""
    value, field = _label_value(source, row, column), f"{row.place}, {column}"
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not (math.isfinite(value) and value.is_integer()):
            raise UserError(
                f'{value} is a measurement, not a class; give whole numbers or names as labels, or set task to "regression"',
                file=source,
                field=field,
            )
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{_json_kind(value)} where a label belongs; give a number or a name", file=source, field=field)
    if not value.strip():
        raise UserError("the label is empty; give every row one, or remove the row", file=source, field=field)
    return value.strip()


def _number(source: str | Path, row: Row, column: str) -> float | None:
    """The label as a number; None for null."""
    value, field = _label_value(source, row, column), f"{row.place}, {column}"
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value) if isinstance(value, (str, float)) else _json_kind(value)
        raise UserError(
            f"{shown} where a finite number belongs; regression needs one in every row, such as 3.8",
            file=source,
            field=field,
        )
    return number


def _qa_examples(source: str | Path, rows: Iterator[Row]) -> Iterator[QAExample]:
    first = next(rows, None)
    if first is None:
        return
    columns = list(first.values)
    question = _column(source, columns, None, QUESTION_COLUMNS, "", "")
    passage = _column(source, columns, None, PASSAGE_COLUMNS, "", "")
    answers = _column(source, columns, None, ("answers",), "", "")
    if question is None or passage is None or answers is None:
        missing = [
            name
            for name, column in (("question", question), ("context", passage), ("answers", answers))
            if column is None
        ]
        raise UserError(
            f"no column {' and no '.join(missing)}; question answering reads SQuAD JSON, or question, context and "
            f"answers, and this has: {_listed(columns)}",
            file=source,
        )
    identity = _column(source, columns, None, ID_COLUMNS, "", "")
    number = 0
    while True:
        number += 1
        row = first if number == 1 else next(rows, None)
        if row is None:
            return
        given = row.values.get(identity) if identity is not None else None
        row_id = str(number if given is None else given)
        if answers not in row.values:
            raise UserError(
                "the answers are missing; an empty list says that the passage holds none",
                file=source,
                field=f"{row.place}, {answers}",
            )
        passage_text = _text(source, row, passage)
        pairs = _flat_answers(source, row, answers)
        yield QAExample(
            id=row_id,
            question=_text(source, row, question),
            passage=passage_text,
            answers=tuple(_answer(source, row.place, row_id, passage_text, text, start) for text, start in pairs),
        )


def _flat_answers(source: str | Path, row: Row, column: str) -> list[tuple[Any, Any]]:
    """(text, start) of each answer, from {"text": [...], "answer_start": [...]} or a list of objects; null is none."""
    value, field = row.values[column], f"{row.place}, {column}"
    if isinstance(value, str):  # a TSV or CSV can only hold it as JSON
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            pass
    if value is None:
        return []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts))
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return [(entry.get("text"), entry.get("answer_start")) for entry in value]
    raise UserError(
        'answers that cannot be read; write {"text": [...], "answer_start": [...]}, the two equally long',
        file=source,
        field=field,
    )


def _squad_examples(path: Path, articles: list[Any]) -> Iterator[QAExample]:
    for article_index, article in enumerate(articles):
        place = f"data[{article_index}]"
        for paragraph_index, paragraph in enumerate(_part(path, place, article, "paragraphs", list)):
            place = f"data[{article_index}].paragraphs[{paragraph_index}]"
            passage = _part(path, place, paragraph, "context", str)
            for question_index, question in enumerate(_part(path, place, paragraph, "qas", list)):
                yield _squad_example(path, f"{place}.qas[{question_index}]", passage, question)


def _squad_example(path: Path, place: str, passage: str, question: Any) -> QAExample:
    text = _part(path, place, question, "question", str)
    question_id = str(question.get("id", place))
    answers = []
    # v2.0: the answers of an impossible question, if it has any, are plausible and wrong.
    if question.get("is_impossible") is not True:
        for index, answer in enumerate(_part(path, place, question, "answers", list)):
            answer_place = f"{place}.answers[{index}]"
            if not isinstance(answer, dict):
                raise UserError(
                    'not an object; write {"text": ..., "answer_start": ...}', file=path, field=answer_place
                )
            answers.append(
                _answer(path, answer_place, question_id, passage, answer.get("text"), answer.get("answer_start"))
            )
    return QAExample(question_id, text, passage, tuple(answers))


def _part(path: Path, place: str, value: Any, key: str, kind: type) -> Any:
    """`value[key]` of a SQuAD document, a list or a text that is not blank."""
    if not isinstance(value, dict) or key not in value:
        raise UserError(f'there is no "{key}"; SQuAD has one here', file=path, field=place)
    part = value[key]
    if not isinstance(part, kind):
        expected = "a list" if kind is list else "a string"
        raise UserError(f"{_json_kind(part)} where {expected} belongs", file=path, field=f"{place}.{key}")
    if kind is str and not part.strip():
        raise UserError("the text is empty; give one, or remove the entry", file=path, field=f"{place}.{key}")
    return part


def _answer(source: str | Path, place: str, question_id: str, passage: str, text: Any, start: Any) -> Answer:
    """The answer where it stands in the passage: at `start`, else at the occurrence nearest to it."""
    field = f"{place} (question {question_id})"
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "the answer has no text; give one, or an empty list for a question without an answer",
            file=source,
            field=field,
        )
    if isinstance(start, bool) or not isinstance(start, int):
        raise UserError(
            f"answer_start is {_json_kind(start)}; give the position of the answer's first character in the passage",
            file=source,
            field=field,
        )
    if start >= 0 and passage.startswith(text, start):
        return Answer(text, start)
    # Some published starts count bytes or guess; the text is what people marked.
    before = passage.rfind(text, 0, max(start, 0) + len(text))
    after = passage.find(text, max(start, 0))
    found = [position for position in (before, after) if position >= 0]
    if not found:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UserError(
            f"the answer {shown!r} does not occur in its passage; correct the answer, or remove the question",
            file=source,
            field=field,
        )
    return Answer(text, min(found, key=lambda position: abs(position - start)))
