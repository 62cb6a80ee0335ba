"""Classification features: a text or a pair of texts as the ids an encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import ClassificationExample
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class ClassificationFeature:
    """`[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, at its real length.

    Args:
        ids: int64, [length].
        type_ids: int64, [length]; 0 up to the first [SEP], 1 after it.
        answer_mask: none, every token is only read.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    answer_mask: None = None


def encode_text(
    tokenizer: WordPieceTokenizer, text: str, text_pair: str | None, max_length: int
) -> ClassificationFeature:
    """The feature of one text or pair; a text without a single piece gives `[CLS] [SEP]`.

    A pair that is too long loses pieces from the end of its longer text first, as Hugging Face's `longest_first`.

    Raises:
        UserError: `max_length` cannot hold the special tokens.
    """
    pair_ids = None if text_pair is None else tokenizer.encode(text_pair).ids
    return _assemble(tokenizer, tokenizer.encode(text).ids, pair_ids, max_length)


def encode_examples(
    tokenizer: WordPieceTokenizer, examples: Sequence[ClassificationExample], max_length: int
) -> list[ClassificationFeature]:
    """`encode_text` for each example, tokenized over all cores.

    Raises:
        UserError: `max_length` cannot hold the special tokens.
    """
    firsts = tokenizer.encode_batch([example.text for example in examples])
    seconds = iter(tokenizer.encode_batch([e.text_pair for e in examples if e.text_pair is not None]))
    return [
        _assemble(tokenizer, first.ids, None if example.text_pair is None else next(seconds).ids, max_length)
        for example, first in zip(examples, firsts)
    ]


def _assemble(
    tokenizer: WordPieceTokenizer, first: np.ndarray, second: np.ndarray | None, max_length: int
) -> ClassificationFeature:
    specials = 2 if second is None else 3
    room = max_length - specials
    if room < 0:
        raise UserError(
            f"{max_length} cannot hold the {specials} special tokens; set at least {specials}", field="max_length"
        )
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    if second is None:
        ids = np.concatenate([cls, first[:room], sep])
        return ClassificationFeature(ids, np.zeros(len(ids), dtype=np.int64))
    kept_first, kept_second = _longest_first(len(first), len(second), room)
    ids = np.concatenate([cls, first[:kept_first], sep, second[:kept_second], sep])
    type_ids = np.repeat(np.array([0, 1]), [kept_first + 2, kept_second + 1])
    return ClassificationFeature(ids, type_ids)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many pieces of each text stay; of two long texts the odd piece goes to the longer (the second when equal)."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)
