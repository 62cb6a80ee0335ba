"""Examples become arrays and batches: each exactly once, with little padding, in the same order for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.items import (
    UNLABELLED,
    Item,
    classification_items,
    collate,
    make_items,
    plan_batches,
    qa_items,
    sorted_batches,
)
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "river", "is", "long", "and", "wide", "who", "knows", "?"]
ID = {word: index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(WORDS)


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    return np.random.default_rng(0).integers(3, 128, 1003).tolist()


def padding(batches, lengths) -> int:
    """Returns the number of padding tokens."""
    return sum(max(lengths[index] for index in batch) * len(batch) for batch in batches) - sum(lengths)


# Plans of batches.


@pytest.mark.parametrize(("count", "size"), [(1003, 8), (1, 8), (8, 8), (9, 8), (50, 1), (2000, 3)])
def test_a_plan_has_every_index_once(count, size):
    plan = plan_batches(list(range(1, count + 1)), size, seed=0, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(count))
    assert len(plan) == -(-count // size)  # the trainer relies on this number
    assert all(1 <= len(batch) <= size for batch in plan)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another_plan(lengths):
    def plan(seed, epoch):
        return [batch.tolist() for batch in plan_batches(lengths, 8, seed, epoch)]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3) and plan(1, 2) != plan(2, 2)
    # The batches themselves differ, not only their order.
    assert {tuple(sorted(batch)) for batch in plan(1, 2)} != {tuple(sorted(batch)) for batch in plan(1, 3)}


def test_batches_of_similar_lengths_need_little_padding(lengths):
    planned = padding(plan_batches(lengths, 8, seed=0, epoch=0), lengths)
    order = np.random.default_rng(1).permutation(len(lengths))
    random = padding([order[start : start + 8] for start in range(0, len(order), 8)], lengths)
    assert planned < random / 5


def test_batches_are_not_ordered_by_length(lengths):
    """Training would drift if a plan went from short to long texts."""
    means = [np.mean([lengths[index] for index in batch]) for batch in plan_batches(lengths, 8, seed=0, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("tokens", [50, 1000, 8192])
def test_sorted_batches_cover_all_within_the_limit(lengths, tokens):
    batches = list(sorted_batches(lengths, tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(batch) == 1 or len(batch) * top <= tokens for batch, top in zip(batches, longest))
    full = [len(batch) == max(1, tokens // top) for batch, top in zip(batches, longest)]
    assert all(full[:-1])
    assert padding(batches, lengths) < 0.05 * sum(lengths) or tokens == 8192


def test_without_inputs_there_are_no_batches():
    assert list(sorted_batches([])) == [] and plan_batches([], 4, 0, 0) == []


# Collating.


def item(*ids: int, target=(1,), answers=None) -> Item:
    mask = None if answers is None else np.array(answers, bool)
    return Item(np.array(ids), np.array([position % 2 for position in range(len(ids))]), target, mask)


def test_padding_is_0():
    batch = collate([item(5, 6), item(7, 8, 9, 10, target=(0,)), item(3)])
    assert batch.ids.tolist() == [[5, 6, 0, 0], [7, 8, 9, 10], [3, 0, 0, 0]]
    assert batch.type_ids.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.targets.tolist() == [[1], [0], [1]] and batch.answer_mask is None
    assert (batch.ids.dtype, batch.type_ids.dtype, batch.mask.dtype, batch.targets.dtype) == (
        np.int64,
        np.int64,
        np.float32,
        np.int64,
    )


def test_a_batch_keeps_answer_masks_and_marks_unlabelled_rows():
    batch = collate([item(5, 6, 7, target=(1, 2), answers=[0, 1, 1]), item(8, 9, target=(1, 1), answers=[0, 1])])
    assert batch.answer_mask.dtype == bool and batch.answer_mask.tolist() == [[False, True, True], [False, True, False]]
    assert batch.targets.tolist() == [[1, 2], [1, 1]]
    assert collate([item(5, target=None), item(6, target=(1,))]).targets.tolist() == [[UNLABELLED], [1]]
    assert np.isnan(collate([item(5, target=None), item(6, target=(np.float32(0.5),))]).targets[0, 0])
    assert collate([item(5, target=None), item(6, target=None)]).targets is None
    with pytest.raises(ValueError, match="answer mask"):
        collate([item(5, target=(0, 0), answers=[1]), item(6, target=(0, 0))])


# Items.


def test_the_target_of_a_class_is_its_position_among_the_labels(tokenizer):
    examples = [
        ClassificationExample("the river", None, "wet"),
        ClassificationExample("long", "wide ?", "dry"),
        ClassificationExample("is"),
    ]
    items = classification_items(examples, tokenizer, ["dry", "wet"], max_length=16)
    assert [item.target for item in items] == [(1,), (0,), None]
    assert items[0].ids.tolist() == [ID["[CLS]"], ID["the"], ID["river"], ID["[SEP]"]]
    assert items[1].type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(item.answer_mask is None for item in items)


def test_an_unknown_label_is_named(tokenizer):
    with pytest.raises(UserError, match="data.label: label 'damp' is not one of the training data's: dry, wet"):
        classification_items([ClassificationExample("the", None, "damp")], tokenizer, ["dry", "wet"], 16)


def test_the_target_of_a_number_is_its_share_of_the_label_range(tokenizer):
    recipe = Recipe.model_validate({"name": "test", "task": "regression", "exits": {"uncertainty": "change"}})
    examples = [
        ClassificationExample("the river", "is long", 4.2),
        ClassificationExample("long", None, 9.0),
        ClassificationExample("is"),
    ]
    items = make_items(examples, tokenizer, LabelRange(minimum=-1, maximum=7), recipe)
    assert [item.target for item in items] == [(pytest.approx(0.65),), (pytest.approx(1.25),), None]
    targets = collate(items[:2]).targets
    assert targets.dtype == np.float32 and targets.shape == (2, 1) and targets[0, 0] == np.float32(0.65)


PASSAGE = "the river is long and the river is wide " * 8


def qa_recipe(allow_no_answer: bool) -> Recipe:
    qa = {"window": 32, "stride": 4, "max_question": 8, "allow_no_answer": allow_no_answer}
    return Recipe.model_validate({"name": "test", "task": "qa", "qa": qa})


@pytest.fixture(scope="module")
def question() -> QAExample:
    return QAExample("1", "who knows ?", PASSAGE, (Answer("wide", PASSAGE.index("wide")),))


def test_windows_without_the_answer_are_items_only_if_no_answer_is_allowed(tokenizer, question):
    without = qa_items([question], tokenizer, qa_recipe(False))
    allowed = qa_items([question], tokenizer, qa_recipe(True))
    assert len(without) == 1 and len(allowed) > 2
    start, end = without[0].target
    assert start == end and without[0].ids[start] == ID["wide"] and without[0].answer_mask[start]
    assert allowed[0].target == (start, end)
    assert {item.target for item in allowed[1:]} == {(0, 0)} and all(item.answer_mask[0] for item in allowed)
    assert not without[0].answer_mask[0]


def test_questions_without_an_answer_are_items_only_if_no_answer_is_allowed(tokenizer):
    example = QAExample("1", "who knows ?", "the river is long", ())
    assert qa_items([example], tokenizer, qa_recipe(False)) == []
    assert [item.target for item in qa_items([example], tokenizer, qa_recipe(True))] == [(0, 0)]


def test_make_items_follows_the_task_of_the_recipe(tokenizer, question):
    assert make_items([question], tokenizer, ("start", "end"), qa_recipe(False))[0].answer_mask is not None
    recipe = Recipe.model_validate({"name": "test", "task": "classification", "data": {"max_length": 8}})
    (item,) = make_items([ClassificationExample(PASSAGE, None, "a")], tokenizer, ["a"], recipe)
    assert len(item.ids) == 8 and item.answer_mask is None
