"""Patience and change are computed for many examples at once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.exits.measures import change, patience


def test_patience_is_computed_for_every_example_and_exit():
    assert patience([[0, 0, 1], ["a", "a", "a"]]).tolist() == [[1.0, 0.5, 1.0], [1.0, 0.5, pytest.approx(1 / 3)]]


def test_change_is_computed_for_every_example_and_exit():
    shares = np.random.default_rng(0).normal(0.5, 0.5, (40, 5))
    values = change(shares)
    assert (values[:, 0] == 1.0).all()
    np.testing.assert_array_equal(values[:, 1:], np.clip(np.abs(np.diff(shares, axis=1)), 0, 1))
