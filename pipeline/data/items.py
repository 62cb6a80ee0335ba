"""Turns examples into the arrays that a model learns from, and groups them into padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# The class of an unlabelled item in a batch that has labelled ones. PyTorch's cross-entropy ignores it.
UNLABELLED = -100

BATCHES_IN_A_POOL = 50


@dataclass(frozen=True)
class Item:
    """One input of a model.

    Attributes:
        ids: token ids, [length].
        type_ids: [length]; 0 for the first text, 1 for the second.
        target: (class,), (share of the label range, a float32,) for regression, (start token, end token) for question
            answering. A task that gives every token a class has (classes,), an int64 array, [length], with `UNLABELLED`
            at tokens that have none. None if unlabelled.
        answer_mask: bool, [length]; true where a token may be in an answer. None for tasks that answer on whole texts.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    target: tuple[int, ...] | tuple[np.float32] | tuple[np.ndarray] | None
    answer_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """The padded arrays of some items; padding is 0.

    Attributes:
        ids, type_ids, answer_mask: as in `Item`, [batch, length].
        mask: float32, [batch, length]; 1 for tokens, 0 for padding.
        targets: as in `Item`, [batch, 1 or 2], or [batch, 1, length] with a class for each token. The row of an
            unlabelled item holds `UNLABELLED`, or NaN for regression. None if no item is labelled.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    mask: np.ndarray
    answer_mask: np.ndarray | None
    targets: np.ndarray | None


def plan_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Returns the batches of one epoch as arrays of indices: random, but of similar lengths, to pad little.

    The shuffled indices are cut into pools of 50 batches. Each pool is sorted by length and cut into batches, and then
    all batches are shuffled. The same arguments give the same plan, so a resumed training only counts batches.

    Args:
        lengths: tokens of each item.
        batch_size: items of a batch; the last batch of a pool may hold fewer.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    token_counts = np.asarray(lengths)
    pool_size = BATCHES_IN_A_POOL * batch_size
    batches = []
    for pool_start in range(0, len(order), pool_size):
        pool = order[pool_start : pool_start + pool_size]
        pool = pool[np.argsort(token_counts[pool], kind="stable")]
        batches += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def sorted_batches(lengths: Sequence[int], tokens: int = 8192) -> Iterator[np.ndarray]:
    """Yields every index once, in batches of at most `tokens` padded tokens, longest items first. For evaluation.

    An item of more than `tokens` tokens is a batch of its own.
    """
    token_counts = np.asarray(lengths)
    order = np.argsort(-token_counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // int(token_counts[order[start]]))
        yield order[start : start + size]
        start += size


def collate(items: Sequence[Item]) -> Batch:
    """Returns items as one batch, padded to the longest of them. All of them have an answer mask, or none."""
    length = max(len(item.ids) for item in items)

    def padded(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
        out: np.ndarray = np.zeros((len(items), length), dtype)
        for row, array in enumerate(arrays):
            out[row, : len(array)] = array
        return out

    answer_masks = [item.answer_mask for item in items if item.answer_mask is not None]
    if len(answer_masks) not in (0, len(items)):
        raise ValueError("some items of a batch have an answer mask and some have none")
    return Batch(
        ids=padded((item.ids for item in items), np.int64),
        type_ids=padded((item.type_ids for item in items), np.int64),
        mask=padded((np.ones(len(item.ids)) for item in items), np.float32),
        answer_mask=padded(answer_masks, bool) if answer_masks else None,
        targets=_collate_targets(items, length),
    )


def _collate_targets(items: Sequence[Item], length: int) -> np.ndarray | None:
    known = next((item.target for item in items if item.target is not None), None)
    if known is None:
        return None
    if isinstance(known[0], np.ndarray):
        targets = np.full((len(items), 1, length), UNLABELLED)
        for row, item in enumerate(items):
            if item.target is not None:
                targets[row, 0, : len(item.ids)] = item.target[0]
        return targets
    missing = tuple(np.float32(np.nan) if isinstance(value, np.float32) else UNLABELLED for value in known)
    # numpy chooses the type: int64 for Python's integers, float32 for the labels of a regression.
    return np.array([missing if item.target is None else item.target for item in items])
