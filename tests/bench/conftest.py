"""A reference of two narrow layers, so that exporting one takes seconds."""

from __future__ import annotations

import pytest

from pipeline.model.encoder import EncoderConfig


@pytest.fixture(scope="session")
def small_bert() -> EncoderConfig:
    return EncoderConfig(
        vocab_size=1200, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=32, token_types=2
    )


@pytest.fixture(scope="session")
def reference_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(reference_cache, monkeypatch):
    """No test writes into the user's cache folder."""
    monkeypatch.setenv("POCKETBERT_CACHE", str(reference_cache))
