"""Tasks turn examples into training items: labels become indices or shares, questions become windows."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.items import Item, collate
from pipeline.data.labels import LabelRange
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "river", "is", "long", "and", "wide", "who", "knows", "?"]
ID = {word: index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(WORDS)


def test_a_label_is_its_place_among_the_labels(tokenizer):
    examples = [
        ClassificationExample("the river", None, "wet"),
        ClassificationExample("long", "wide ?", "dry"),
        ClassificationExample("is"),
    ]
    items = get_task("classification").items(examples, tokenizer, ("dry", "wet"), InputOptions(16))
    assert [item.target for item in items] == [(1,), (0,), None]
    assert items[0].ids.tolist() == [ID["[CLS]"], ID["the"], ID["river"], ID["[SEP]"]]
    assert items[1].type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(item.answer_mask is None for item in items)


def test_an_unknown_label_is_named(tokenizer):
    with pytest.raises(UserError, match="data.label: label 'damp' is not one of the training data's: dry, wet"):
        get_task("classification").items(
            [ClassificationExample("the", None, "damp")], tokenizer, ("dry", "wet"), InputOptions(16)
        )


def test_a_number_is_its_share_of_the_label_range(tokenizer):
    examples = [
        ClassificationExample("the river", "is long", 4.2),
        ClassificationExample("long", None, 9.0),
        ClassificationExample("is"),
    ]
    items = get_task("regression").items(examples, tokenizer, LabelRange(minimum=-1, maximum=7), InputOptions(128))
    assert [item.target for item in items] == [(pytest.approx(0.65),), (pytest.approx(1.25),), None]
    targets = collate(items[:2]).targets
    assert targets.dtype == np.float32 and targets.shape == (2, 1) and targets[0, 0] == np.float32(0.65)


PASSAGE = "the river is long and the river is wide " * 8


def question_items(example: QAExample, tokenizer: WordPieceTokenizer, allow_no_answer: bool) -> list[Item]:
    options = InputOptions(128, QuestionOptions(32, 4, 8, 30, allow_no_answer))
    return get_task("qa").items([example], tokenizer, ("start", "end"), options)


@pytest.fixture(scope="module")
def question() -> QAExample:
    return QAExample("1", "who knows ?", PASSAGE, (Answer("wide", PASSAGE.index("wide")),))


def test_windows_that_miss_the_answer_teach_only_where_no_answer_is_one(tokenizer, question):
    without = question_items(question, tokenizer, False)
    allowed = question_items(question, tokenizer, True)
    assert len(without) == 1 and len(allowed) > 2
    start, end = without[0].target
    assert start == end and without[0].ids[start] == ID["wide"] and without[0].answer_mask[start]
    assert allowed[0].target == (start, end)
    assert {item.target for item in allowed[1:]} == {(0, 0)} and all(item.answer_mask[0] for item in allowed)
    assert not without[0].answer_mask[0]


def test_questions_without_an_answer(tokenizer):
    example = QAExample("1", "who knows ?", "the river is long", ())
    assert question_items(example, tokenizer, False) == []
    assert [item.target for item in question_items(example, tokenizer, True)] == [(0, 0)]


def test_texts_are_cut_and_questions_have_a_mask(tokenizer, question):
    assert question_items(question, tokenizer, False)[0].answer_mask is not None
    (item,) = get_task("classification").items(
        [ClassificationExample(PASSAGE, None, "a")], tokenizer, ("a",), InputOptions(8)
    )
    assert len(item.ids) == 8 and item.answer_mask is None
