"""Dynamic masking has the shares of BERT and depends on the seed only."""

from __future__ import annotations

import numpy as np

from pipeline.data.masking import mask_tokens

MASK, WORDS = 4, 1000


def many(seed: int = 0, rows: int = 400, length: int = 128):
    ids = np.random.default_rng(7).integers(5, WORDS, (rows, length))
    maskable = np.ones(ids.shape, bool)
    maskable[:, [0, -1]] = False
    return ids, maskable, [(seed, row) for row in range(rows)]


def test_shares_are_those_of_bert():
    ids, maskable, seeds = many()
    hidden, chosen = mask_tokens(ids, maskable, seeds, MASK, WORDS)
    assert not chosen[~maskable].any()
    assert np.array_equal(hidden[~chosen], ids[~chosen])
    assert abs(chosen[maskable].mean() - 0.15) < 0.005  # three standard deviations of 50,000 draws
    masked, kept = hidden[chosen] == MASK, hidden[chosen] == ids[chosen]
    assert abs(masked.mean() - 0.8) < 0.015
    assert abs(kept.mean() - 0.1) < 0.012
    assert abs((~masked & ~kept).mean() - 0.1) < 0.012
    others = hidden[chosen][~masked & ~kept]
    assert others.min() >= 0 and others.max() < WORDS and len(np.unique(others)) > 300


def test_the_same_seed_chooses_the_same_tokens_and_another_seed_others():
    ids, maskable, seeds = many(rows=20)
    first, again = mask_tokens(ids, maskable, seeds, MASK, WORDS), mask_tokens(ids, maskable, seeds, MASK, WORDS)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    other = mask_tokens(ids, maskable, many(seed=1, rows=20)[2], MASK, WORDS)
    assert (first[1] != other[1]).any(axis=1).all()


def test_a_row_is_masked_the_same_in_any_batch():
    ids, maskable, seeds = many(rows=6, length=40)
    together = mask_tokens(ids, maskable, seeds, MASK, WORDS)
    wide = np.zeros((1, 60), ids.dtype)
    wide[0, :40] = ids[3]
    alone = mask_tokens(wide, np.pad(maskable[3:4], ((0, 0), (0, 20))), seeds[3:4], MASK, WORDS)
    assert np.array_equal(alone[0][0, :40], together[0][3]) and np.array_equal(alone[1][0, :40], together[1][3])
    assert not alone[1][0, 40:].any()


def test_the_shortest_text_has_a_hidden_token():
    ids = np.full((200, 3), 9)
    maskable = np.zeros(ids.shape, bool)
    maskable[:, 1] = True
    _, chosen = mask_tokens(ids, maskable, [(row,) for row in range(200)], MASK, WORDS)
    assert np.array_equal(chosen, maskable)
    assert not mask_tokens(ids, np.zeros(ids.shape, bool), [(row,) for row in range(200)], MASK, WORDS)[1].any()


def test_the_given_ids_are_not_changed():
    ids, maskable, seeds = many(rows=3)
    before = ids.copy()
    mask_tokens(ids, maskable, seeds, MASK, WORDS)
    assert np.array_equal(ids, before)
