"""Question-answering windows: a question with as much of its passage as fits, sliding over the passage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import Answer
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError

SPECIALS = 3  # [CLS] question [SEP] passage [SEP]


@dataclass(frozen=True)
class QAWindow:
    """`[CLS] question [SEP] part of the passage [SEP]` at its real length S.

    Args:
        ids: int64, [S].
        type_ids: int64, [S]; 0 up to the first [SEP], 1 after it.
        answer_mask: bool, [S]; the tokens that an answer may start or end at: the passage's, and [CLS] at position 0,
            which stands for "no answer", when that is allowed.
        passage_start: the position of the first passage token.
        offsets: int64, [S, 2]; start and end of each token's characters in the passage, (-1, -1) outside of it.
        covers: the characters of the passage that no token outside this window has a part in, (start, end).
    """

    ids: np.ndarray
    type_ids: np.ndarray
    answer_mask: np.ndarray
    passage_start: int
    offsets: np.ndarray
    covers: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ids)


def make_windows(
    tokenizer: WordPieceTokenizer,
    question: str,
    passage: str,
    window: int,
    stride: int,
    max_question: int,
    allow_no_answer: bool,
) -> list[QAWindow]:
    """The windows of a question and its passage, from the first passage token to the last (Devlin et al. 2019, 4.2).

    Args:
        window: the longest window in tokens, special tokens included.
        stride: the passage tokens that a window shares with the one before it, Hugging Face's meaning of the word.
        max_question: the question's tokens beyond this many are dropped.
        allow_no_answer: whether [CLS] may be the answer (SQuAD v2.0).

    Raises:
        UserError: the window holds no passage token beside the question, `stride` leaves it no way forward, or the
            passage has no text.
    """
    question_ids = tokenizer.encode(question).ids[:max_question]
    tokens = tokenizer.encode(passage)
    if len(tokens) == 0:
        raise UserError("the passage holds no text; give a passage that could hold the answer", field="passage")
    room = window - SPECIALS - len(question_ids)
    if room < 1:
        raise UserError(
            f"{window} tokens hold no passage beside a question of {len(question_ids)} and {SPECIALS} special tokens; "
            f"set at least {len(question_ids) + SPECIALS + 1}, or a smaller max_question",
            field="window",
        )
    # A passage that fits at once needs no way forward, however large the overlap.
    if stride < 0 or (stride >= room and len(tokens) > room):
        raise UserError(
            f"windows that hold {room} passage tokens cannot overlap by {stride}; set 0 to {room - 1}, "
            "or a larger window",
            field="stride",
        )
    passage_start = len(question_ids) + 2
    passage_offsets = np.asarray(tokens.offsets, dtype=np.int64)  # [passage tokens, 2]
    windows = []
    for first in range(0, len(tokens), max(room - stride, 1)):
        last = min(first + room, len(tokens))  # one past the last
        ids = np.concatenate(
            [[tokenizer.cls_id], question_ids, [tokenizer.sep_id], tokens.ids[first:last], [tokenizer.sep_id]]
        )
        passage_tokens = slice(passage_start, passage_start + last - first)
        type_ids = np.zeros(len(ids), dtype=np.int64)
        type_ids[passage_start:] = 1
        answer_mask = np.zeros(len(ids), dtype=bool)
        answer_mask[passage_tokens] = True
        answer_mask[0] = allow_no_answer
        offsets = np.full((len(ids), 2), -1, dtype=np.int64)
        offsets[passage_tokens] = passage_offsets[first:last]
        covers = (
            int(passage_offsets[first - 1, 1]) if first > 0 else 0,
            int(passage_offsets[last, 0]) if last < len(tokens) else len(passage),
        )
        windows.append(QAWindow(ids, type_ids, answer_mask, passage_start, offsets, covers))
        if last == len(tokens):
            break
    return windows


def label_window(window: QAWindow, answer: Answer | None) -> tuple[int, int] | None:
    """The positions of the answer's first and last token in this window, (start, end), both inclusive.

    It is (0, 0), the [CLS], for no answer, and None when the answer is not wholly in this window: SQuAD v2.0 trains
    such a window as (0, 0) too, v1.1 leaves it out.
    """
    if answer is None:
        return (0, 0)
    start, end = answer.start, answer.start + len(answer.text)
    # Not the window's outermost tokens but what it covers: an answer may end in a character that has no token (a
    # combining accent, a zero-width space), and it is in the window all the same.
    inside = window.covers[0] <= start and end <= window.covers[1]
    tokens = np.flatnonzero((window.offsets[:, 0] < end) & (window.offsets[:, 1] > start)) if inside else ()
    if len(tokens) == 0:
        return None
    return (int(tokens[0]), int(tokens[-1]))
