"""Examples become arrays and batches: each exactly once, with little padding, in the same order for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.items import UNLABELLED, Item, collate, plan_batches, sorted_batches


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


def test_classes_of_tokens_are_padded_with_no_class():
    first, second = item(5, 6, 7, target=(np.array([UNLABELLED, 2, 0]),)), item(8, 9, target=(np.array([1, 3]),))
    targets = collate([first, second, item(4, target=None)]).targets
    missing = [UNLABELLED] * 3
    assert targets.dtype == np.int64 and targets.shape == (3, 1, 3)
    assert targets[:, 0].tolist() == [[UNLABELLED, 2, 0], [1, 3, UNLABELLED], missing]
