"""The arrays that a bundle's programs take as inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Added to the score of a token that must not be attended to or must not be an answer. float16 can hold it, and its
# exponential is 0 in every float type. Unlike -inf or the least float it can neither become NaN nor overflow.
MASKED = -1e4


@dataclass(frozen=True)
class ProgramInputs:
    """One input of S tokens, without padding.

    Attributes:
        input_ids: int64, [1, S].
        attention_bias: float32, [1, 1, S]; all 0, since no token is padding.
        answer_bias: float32, [1, S]; 0 where an answer may start or end, else `MASKED`. None unless the task is
            question answering.
    """

    input_ids: np.ndarray
    attention_bias: np.ndarray
    answer_bias: np.ndarray | None


def program_inputs(ids: np.ndarray, answer_mask: np.ndarray | None = None) -> ProgramInputs:
    """Returns the inputs of the programs for one input.

    Args:
        ids: token ids, integers, [S]; at least [CLS] and [SEP].
        answer_mask: bool, [S]; the tokens that an answer may start or end at, for question answering.
    """
    length = len(ids)
    bias = None
    if answer_mask is not None:
        bias = np.where(np.asarray(answer_mask, dtype=bool), 0.0, MASKED).astype(np.float32).reshape(1, length)
    return ProgramInputs(
        np.asarray(ids, dtype=np.int64).reshape(1, length), np.zeros((1, 1, length), dtype=np.float32), bias
    )
