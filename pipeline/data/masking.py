"""Dynamic masking: chooses anew for every batch which tokens a masked language model must predict.

BERT (Devlin et al. 2019), section 3.1; RoBERTa (Liu et al. 2019), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHOSEN_SHARE = 0.15
# Shares of the chosen tokens that become [MASK], or a random token. The rest stay as they are.
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


def mask_tokens(
    ids: np.ndarray,
    maskable: np.ndarray,
    seeds: Sequence[Sequence[int]],
    mask_id: int,
    vocab_size: int,
    share: float = CHOSEN_SHARE,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses tokens and hides them.

    The result for a row depends on its own tokens and seed only, not on the padding or the other rows.

    Args:
        ids: integers, [batch, length].
        maskable: bool, [batch, length]; false at [CLS], [SEP] and padding.
        seeds: non-negative integers for every row; the same integers choose the same tokens.
        mask_id: the id of [MASK].
        vocab_size: random tokens are drawn below this id.
        share: share of the maskable tokens to choose.

    Returns:
        The ids with the chosen tokens hidden, and a bool array that is true at the chosen tokens, both [batch, length].
        A row with a maskable token has at least one chosen token.
    """
    hidden, chosen = ids.copy(), np.zeros(ids.shape, bool)
    for row, seed in enumerate(seeds):
        positions = np.flatnonzero(maskable[row])
        count = len(positions)
        if not count:
            continue
        rng = np.random.default_rng(list(seed))
        draws, fates, others = rng.random(count), rng.random(count), rng.integers(0, vocab_size, count)
        is_chosen = draws < max(share, np.nextafter(draws.min(), 1))
        is_masked = is_chosen & (fates < MASK_SHARE)
        is_swapped = is_chosen & (fates >= MASK_SHARE) & (fates < MASK_SHARE + RANDOM_SHARE)
        chosen[row, positions[is_chosen]] = True
        hidden[row, positions[is_masked]] = mask_id
        hidden[row, positions[is_swapped]] = others[is_swapped]
    return hidden, chosen
