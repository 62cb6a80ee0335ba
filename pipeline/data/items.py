"""Turns examples into the arrays that a model learns from, and groups them into padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.features import encode_examples
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import QAWindow, label_window, make_windows
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError

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
            answering; None if unlabelled.
        answer_mask: bool, [length]; true where a token may be in an answer. None unless the task is question answering.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    target: tuple[int, ...] | tuple[np.float32] | None
    answer_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """The padded arrays of some items; padding is 0.

    Attributes:
        ids, type_ids, answer_mask: as in `Item`, [batch, length].
        mask: float32, [batch, length]; 1 for tokens, 0 for padding.
        targets: as in `Item`, [batch, 1 or 2]. The row of an unlabelled item holds `UNLABELLED`, or NaN for regression.
            None if no item is labelled.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    mask: np.ndarray
    answer_mask: np.ndarray | None
    targets: np.ndarray | None


def classification_items(
    examples: Sequence[ClassificationExample], tokenizer: WordPieceTokenizer, labels: Sequence[str], max_length: int
) -> list[Item]:
    """Returns an item for each example. Raises UserError for a label that is not in `labels`."""
    index = {value: at for at, value in enumerate(labels)}
    items = []
    for example, feature in zip(examples, encode_examples(tokenizer, examples, max_length)):
        if example.label is not None and example.label not in index:
            raise UserError(
                f"label {example.label!r} is not one of the training data's: {', '.join(labels)}", field="data.label"
            )
        target = None if example.label is None else (index[example.label],)
        items.append(Item(feature.ids, feature.type_ids, target))
    return items


def regression_items(
    examples: Sequence[ClassificationExample], tokenizer: WordPieceTokenizer, label_range: LabelRange, max_length: int
) -> list[Item]:
    """Returns an item for each example.

    Its target is a share of the label range, beyond 0 to 1 if the training data have no such label.
    """
    items = []
    for example, feature in zip(examples, encode_examples(tokenizer, examples, max_length)):
        target = None if example.label is None else (np.float32(label_range.share(example.label)),)
        items.append(Item(feature.ids, feature.type_ids, target))
    return items


def question_windows(example: QAExample, tokenizer: WordPieceTokenizer, recipe: Recipe) -> list[QAWindow]:
    """Returns the windows of one question, with the lengths of the recipe."""
    qa = recipe.qa
    return make_windows(
        tokenizer, example.question, example.passage, qa.window, qa.stride, qa.max_question, qa.allow_no_answer
    )


def qa_items(examples: Sequence[QAExample], tokenizer: WordPieceTokenizer, recipe: Recipe) -> list[Item]:
    """Returns an item for each window of each question.

    Unless the recipe allows "no answer", windows without the answer are left out: their target would be wrong.
    """
    items = []
    for example in examples:
        answer = example.answers[0] if example.answers else None
        if answer is None and not recipe.qa.allow_no_answer:
            continue
        for window in question_windows(example, tokenizer, recipe):
            target = label_window(window, answer)
            if target is None and recipe.qa.allow_no_answer:
                target = (0, 0)
            if target is not None:
                items.append(Item(window.ids, window.type_ids, target, window.answer_mask))
    return items


def make_items(
    examples: Sequence[Example], tokenizer: WordPieceTokenizer, labels: Sequence[str] | LabelRange, recipe: Recipe
) -> list[Item]:
    """Returns the training items of any task; `labels` are its classes, or the label range for regression."""
    if recipe.task == "classification":
        return classification_items(examples, tokenizer, labels, recipe.data.max_length)
    if recipe.task == "regression":
        return regression_items(examples, tokenizer, labels, recipe.data.max_length)
    return qa_items(examples, tokenizer, recipe)


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
        targets=_collate_targets(items),
    )


def _collate_targets(items: Sequence[Item]) -> np.ndarray | None:
    known = next((item.target for item in items if item.target is not None), None)
    if known is None:
        return None
    missing = tuple(np.float32(np.nan) if isinstance(value, np.float32) else UNLABELLED for value in known)
    # numpy chooses the type: int64 for Python's integers, float32 for the labels of a regression.
    return np.array([missing if item.target is None else item.target for item in items])
