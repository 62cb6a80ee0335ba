"""The arrays that a bundle's programs take, from the ids of one input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What a token that must not be seen, or must not be answered with, adds to its score. float16 holds it, its exponential is 0 in every
# float type, and unlike -inf or finfo.min it can neither become NaN nor overflow when a score is added to it.
MASKED = -1e4


@dataclass(frozen=True)
class ProgramInputs:
    """One input of S tokens, without padding.

    Args:
        input_ids: int64, [1, S].
        attention_bias: float32, [1, 1, S]; all 0, every token is real.
        answer_bias: float32, [1, S]; 0 where a token may be (in) an answer, else -1e4. None for classification.
    """

    input_ids: np.ndarray
    attention_bias: np.ndarray
    answer_bias: np.ndarray | None


def program_inputs(ids: np.ndarray, answer_mask: np.ndarray | None = None) -> ProgramInputs:
    """The programs' inputs.

    Args:
        ids: integers, [S]; at least [CLS] and [SEP].
        answer_mask: bool, [S], for question answering.
    """
    length = len(ids)
    bias = None
    if answer_mask is not None:
        bias = np.where(np.asarray(answer_mask, dtype=bool), 0.0, MASKED).astype(np.float32).reshape(1, length)
    return ProgramInputs(
        np.asarray(ids, dtype=np.int64).reshape(1, length), np.zeros((1, 1, length), dtype=np.float32), bias
    )
