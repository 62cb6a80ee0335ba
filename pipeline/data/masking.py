"""Dynamic masking: which tokens a masked language model has to find, drawn anew for every batch (BERT, section 3.1; RoBERTa, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARE = 0.15
# Of the chosen tokens: these become [MASK], and these a token by chance; the rest stay as they are.
AS_MASK, AS_RANDOM = 0.8, 0.1


def mask_tokens(
    ids: np.ndarray,
    maskable: np.ndarray,
    seeds: Sequence[Sequence[int]],
    mask_id: int,
    vocab_size: int,
    share: float = SHARE,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses tokens and hides them.

    A row's result depends on its own tokens and seed alone: not on the padding, nor on what else is in the batch.

    Args:
        ids: [batch, length] integers.
        maskable: [batch, length] bool; false at [CLS], [SEP] and padding.
        seeds: for every row non-negative integers; the same ones draw the same tokens.

    Returns:
        (the ids with the chosen tokens hidden, which were chosen): both [batch, length]. Every row with a maskable token has a chosen one.
    """
    hidden, chosen = ids.copy(), np.zeros(ids.shape, bool)
    for row, seed in enumerate(seeds):
        places = np.flatnonzero(maskable[row])
        if not len(places):
            continue
        random = np.random.default_rng(list(seed))
        draws, fates, others = (
            random.random(len(places)),
            random.random(len(places)),
            random.integers(0, vocab_size, len(places)),
        )
        picked = draws < max(share, np.nextafter(draws.min(), 1))
        masked = picked & (fates < AS_MASK)
        swapped = picked & (fates >= AS_MASK) & (fates < AS_MASK + AS_RANDOM)
        chosen[row, places[picked]] = True
        hidden[row, places[masked]] = mask_id
        hidden[row, places[swapped]] = others[swapped]
    return hidden, chosen
