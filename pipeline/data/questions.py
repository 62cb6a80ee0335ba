"""Turns rows and SQuAD documents into questions with their passages and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.data.examples import Answer, QAExample
from pipeline.data.rows import ID_COLUMNS, Row, find_column, json_kind, list_columns, text_value
from pipeline.support.errors import UserError

QUESTION_COLUMNS = ("question",)
PASSAGE_COLUMNS = ("context", "passage")
ANSWER_COLUMNS = ("answers",)

MAX_SHOWN_CHARACTERS = 60  # of an answer in an error message


def questions_of_rows(source: str | Path, rows: Iterator[Row]) -> Iterator[QAExample]:
    """Yields the question of each row.

    Raises:
        UserError: a column is missing, or a row lacks a text, has unreadable answers, or an answer that its passage
            does not contain.
    """
    first = next(rows, None)
    if first is None:
        return
    columns = list(first.values)
    question = find_column(source, columns, QUESTION_COLUMNS)
    passage = find_column(source, columns, PASSAGE_COLUMNS)
    answers = find_column(source, columns, ANSWER_COLUMNS)
    if question is None or passage is None or answers is None:
        missing = [
            name
            for name, column in (("question", question), ("context", passage), ("answers", answers))
            if column is None
        ]
        raise UserError(
            f"no column {' and no '.join(missing)}; question answering reads SQuAD JSON, or question, context and "
            f"answers, and this has: {list_columns(columns)}",
            file=source,
        )
    id_column = find_column(source, columns, ID_COLUMNS)
    for number, row in enumerate(chain((first,), rows), start=1):
        given_id = None if id_column is None else row.values.get(id_column)
        row_id = str(number if given_id is None else given_id)
        if answers not in row.values:
            raise UserError(
                "the answers are missing; an empty list says that the passage holds none",
                file=source,
                field=f"{row.place}, {answers}",
            )
        passage_text = text_value(source, row, passage)
        pairs = _answer_pairs(source, row, answers)
        yield QAExample(
            id=row_id,
            question=text_value(source, row, question),
            passage=passage_text,
            answers=tuple(_answer(source, row.place, row_id, passage_text, text, start) for text, start in pairs),
        )


def questions_of_squad(path: Path, articles: list[Any]) -> Iterator[QAExample]:
    """Yields the questions of a SQuAD document (v1.1 or v2.0), whose articles are given.

    Raises:
        UserError: an entry is missing, empty or of the wrong kind, or a passage does not contain an answer.
    """
    for article_index, article in enumerate(articles):
        place = f"data[{article_index}]"
        for paragraph_index, paragraph in enumerate(_part(path, place, article, "paragraphs", list)):
            place = f"data[{article_index}].paragraphs[{paragraph_index}]"
            passage = _part(path, place, paragraph, "context", str)
            for question_index, question in enumerate(_part(path, place, paragraph, "qas", list)):
                yield _squad_question(path, f"{place}.qas[{question_index}]", passage, question)


def _answer_pairs(source: str | Path, row: Row, column: str) -> list[tuple[Any, Any]]:
    """Returns (text, start) of each answer of a row.

    Answers are {"text": [...], "answer_start": [...]} or a list of objects. Null means that there are none.
    """
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


def _squad_question(path: Path, place: str, passage: str, question: Any) -> QAExample:
    text = _part(path, place, question, "question", str)
    question_id = str(question.get("id", place))
    answers = []
    # v2.0 gives impossible questions no answers, or plausible ones, which are wrong.
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


def _part(path: Path, place: str, value: Any, key: str, kind: type[str] | type[list[Any]]) -> Any:
    """Returns `value[key]` of a SQuAD document, a list or a text that is not blank."""
    if not isinstance(value, dict) or key not in value:
        raise UserError(f'there is no "{key}"; SQuAD has one here', file=path, field=place)
    part = value[key]
    if not isinstance(part, kind):
        expected = "a list" if kind is list else "a string"
        raise UserError(
            f"{json_kind(part)} where {expected} belongs; correct it there", file=path, field=f"{place}.{key}"
        )
    if isinstance(part, str) and not part.strip():
        raise UserError("the text is empty; give one, or remove the entry", file=path, field=f"{place}.{key}")
    return part


def _answer(source: str | Path, place: str, question_id: str, passage: str, text: Any, start: Any) -> Answer:
    """Returns the answer with its position in the passage: `start`, or else the nearest position of its text."""
    field = f"{place} (question {question_id})"
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "the answer has no text; give one, or an empty list for a question without an answer",
            file=source,
            field=field,
        )
    if isinstance(start, bool) or not isinstance(start, int):
        raise UserError(
            f"answer_start is {json_kind(start)}; give the position of the answer's first character in the passage",
            file=source,
            field=field,
        )
    if start >= 0 and passage.startswith(text, start):
        return Answer(text, start)
    # Some published starts count bytes, or are guesses. The text is what people marked.
    before = passage.rfind(text, 0, max(start, 0) + len(text))
    after = passage.find(text, max(start, 0))
    positions = [position for position in (before, after) if position >= 0]
    if not positions:
        shown = text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
        raise UserError(
            f"the answer {shown!r} does not occur in its passage; correct the answer, or remove the question",
            file=source,
            field=field,
        )
    return Answer(text, min(positions, key=lambda position: abs(position - start)))
