"""Windows for question answering: a question with as much of its passage as fits, sliding over the passage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import Answer
from pipeline.data.options import QuestionOptions
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError

SPECIALS = 3  # [CLS] question [SEP] passage [SEP]


@dataclass(frozen=True)
class QAWindow:
    """`[CLS] question [SEP] part of the passage [SEP]`, S tokens without padding.

    Attributes:
        ids: int64, [S].
        type_ids: int64, [S]; 0 up to the first [SEP], 1 after it.
        answer_mask: bool, [S]; true at the tokens that an answer may start or end at: those of the passage, and [CLS]
            at position 0, which stands for "no answer", if that is allowed.
        passage_start: the position of the first passage token.
        offsets: int64, [S, 2]; start and end of each token's characters in the passage, (-1, -1) for other tokens.
        covers: the longest range of characters in the passage that touches no token outside this window, (start, end).
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
    """Returns the windows of a question and its passage, in the order of the passage (Devlin et al. 2019, section 4.2).

    Args:
        window: maximum number of tokens of a window, special tokens included.
        stride: passage tokens that two neighbouring windows share, as in Hugging Face's tokenizers.
        max_question: question tokens to keep; the rest are dropped.
        allow_no_answer: whether [CLS] may be the answer (SQuAD v2.0).

    Raises:
        UserError: a window has no room for the passage beside the question, `stride` keeps the windows from advancing,
            or the passage has no text.
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
    # If the passage fits into one window, the overlap does not matter.
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
    """Returns the positions of the answer's first and last token in a window, both inclusive.

    Without an answer, both are 0, the position of [CLS]. If the answer is not wholly in this window, the result is
    None: a model for SQuAD v2.0 learns (0, 0) for such a window, a model for v1.1 does not learn from it.
    """
    if answer is None:
        return (0, 0)
    start, end = answer.start, answer.start + len(answer.text)
    # Compares with the covered characters, not with the outermost tokens: an answer may end in a character without a
    # token, such as a combining accent or a zero-width space.
    if start < window.covers[0] or end > window.covers[1]:
        return None
    tokens = np.flatnonzero((window.offsets[:, 0] < end) & (window.offsets[:, 1] > start))
    if len(tokens) == 0:
        return None
    return (int(tokens[0]), int(tokens[-1]))


def stride_problem(options: QuestionOptions) -> UserError | None:
    """Returns what is wrong if windows cannot move on over a passage, with settings of a recipe that mend it.

    A window must have room for more passage than it shares with the one before.
    """
    room = options.window - options.max_question - SPECIALS
    if options.stride < room:
        return None
    shorter = [f"qa.max_question={options.window // 2}"] if room <= 1 else []
    if shorter:
        room = options.window - options.window // 2 - SPECIALS
    stride = options.stride if options.stride < room else room // 2
    return UserError(
        "leaves no room to move on; it must be below window - max_question - 3",
        field="qa.stride",
        settings=[*shorter, f"qa.stride={stride}"],
    )
