"""Turns a text or a pair of texts into the token ids that an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import ClassificationExample
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class ClassificationFeature:
    """`[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, without padding.

    Attributes:
        ids: int64, [length].
        type_ids: int64, [length]; 0 up to the first [SEP], 1 after it.
        answer_mask: None, since no token may be an answer.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    answer_mask: None = None


def encode_text(
    tokenizer: WordPieceTokenizer, text: str, text_pair: str | None, max_length: int
) -> ClassificationFeature:
    """Returns the feature of one text or pair, cut to `max_length` tokens.

    A text without tokens gives `[CLS] [SEP]`. A pair that is too long loses tokens from the end of its longer text
    first, as with Hugging Face's `longest_first`.

    Raises:
        UserError: `max_length` is too small for the special tokens.
    """
    pair_ids = None if text_pair is None else tokenizer.encode(text_pair).ids
    return _assemble(tokenizer, tokenizer.encode(text).ids, pair_ids, max_length)


def encode_examples(
    tokenizer: WordPieceTokenizer, examples: Sequence[ClassificationExample], max_length: int
) -> list[ClassificationFeature]:
    """Returns the feature of each example, see `encode_text`; tokenizes on all cores.

    Raises:
        UserError: `max_length` is too small for the special tokens.
    """
    firsts = tokenizer.encode_batch([example.text for example in examples])
    pairs = [example.text_pair for example in examples if example.text_pair is not None]
    seconds = iter(tokenizer.encode_batch(pairs))
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
    kept_first, kept_second = _truncated_lengths(len(first), len(second), room)
    ids = np.concatenate([cls, first[:kept_first], sep, second[:kept_second], sep])
    type_ids = np.repeat(np.array([0, 1]), [kept_first + 2, kept_second + 1])
    return ClassificationFeature(ids, type_ids)


def _truncated_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of each text stay.

    If both texts are cut and the room is odd, the longer text gets the odd token, the second if they are equally long.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)
