"""Examples as arrays that a model learns from, and the batches they go in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.features import encode_examples
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import QAWindow, label_window, make_windows
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError

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


def classification_items(
    examples: Sequence[ClassificationExample], tokenizer: WordPieceTokenizer, labels: Sequence[str], max_length: int
) -> list[Item]:
    """One item per example. Raises UserError for a label that is not among `labels`."""
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
    """One item per example, its label as a share of the range, which a label that training has not seen may be beyond."""
    items = []
    for example, feature in zip(examples, encode_examples(tokenizer, examples, max_length)):
        target = None if example.label is None else (np.float32(label_range.share(example.label)),)
        items.append(Item(feature.ids, feature.type_ids, target))
    return items


def question_windows(example: QAExample, tokenizer: WordPieceTokenizer, recipe: Recipe) -> list[QAWindow]:
    """The windows of one question, by the recipe's lengths."""
    qa = recipe.qa
    return make_windows(
        tokenizer, example.question, example.passage, qa.window, qa.stride, qa.max_question, qa.allow_no_answer
    )


def qa_items(examples: Sequence[QAExample], tokenizer: WordPieceTokenizer, recipe: Recipe) -> list[Item]:
    """One item per window that teaches: without no-answer, windows that miss the answer are left out (they would teach a lie)."""
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
    """Training items of any task; `labels` are its classes, or for regression the range."""
    if recipe.task == "classification":
        return classification_items(examples, tokenizer, labels, recipe.data.max_length)
    if recipe.task == "regression":
        return regression_items(examples, tokenizer, labels, recipe.data.max_length)
    return qa_items(examples, tokenizer, recipe)


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
