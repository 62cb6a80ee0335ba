"""Examples as arrays that a model learns from, and the batches they go in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

UNLABELLED = -100  # the class of an item without one, in a batch with others that have; cross-entropy passes over it


@dataclass(frozen=True)
class Item:
    """One input of a model. Arrays are [length]; `target` is (label,) or (start token, end token), None when unlabelled.

    A regression's label is a float32, its share of the label range. `answer_mask` is true where a token may be in an answer; None but for
    question answering.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    target: tuple[int, ...] | tuple[np.float32] | None
    answer_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Padded arrays: ids, type_ids, mask, answer_mask [batch, length]; targets [batch, 1 or 2], as in `Item`. Padding is 0 everywhere.

    Targets are None when no item has one; a row without one among others is `UNLABELLED`, for regression NaN.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    mask: np.ndarray
    answer_mask: np.ndarray | None
    targets: np.ndarray | None


def plan_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one pass, as arrays of indices: random, yet each of like lengths, so that little is padded.

    Shuffled items are sorted by length within pools of 50 batches, cut, and the batches shuffled. The same arguments give the same
    plan, so an interrupted run finds its place again by counting.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    lengths = np.asarray(lengths)
    batches = []
    for at in range(0, len(order), 50 * batch_size):
        pool = order[at : at + 50 * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    return [batches[at] for at in random.permutation(len(batches))]


def sorted_batches(lengths: Sequence[int], tokens: int = 8192) -> Iterator[np.ndarray]:
    """Every index once, longest first, in batches of at most `tokens` padded tokens: for measuring, not for learning."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    at = 0
    while at < len(order):
        size = max(1, tokens // int(lengths[order[at]]))
        yield order[at : at + size]
        at += size


def collate(items: Sequence[Item]) -> Batch:
    """Pads items to the longest of them."""
    length = max(len(item.ids) for item in items)

    def padded(arrays, dtype) -> np.ndarray:
        out = np.zeros((len(items), length), dtype)
        for row, array in enumerate(arrays):
            out[row, : len(array)] = array
        return out

    known = next((item.target for item in items if item.target is not None), None)
    unknown = (
        None
        if known is None
        else tuple(np.float32(np.nan) if isinstance(value, np.float32) else UNLABELLED for value in known)
    )
    return Batch(
        ids=padded((item.ids for item in items), np.int64),
        type_ids=padded((item.type_ids for item in items), np.int64),
        mask=padded((np.ones(len(item.ids)) for item in items), np.float32),
        answer_mask=None if items[0].answer_mask is None else padded((item.answer_mask for item in items), bool),
        # Its own type: int64 of Python's integers, float32 of a regression's.
        targets=None
        if known is None
        else np.array([unknown if item.target is None else item.target for item in items]),
    )
