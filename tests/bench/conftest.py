"""A BERT of two narrow layers, which takes seconds to export, and a cache folder for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.model.encoder import EncoderConfig


@pytest.fixture(scope="session")
def small_bert() -> EncoderConfig:
    """Takes BERT-base's place as the reference."""
    return EncoderConfig(
        vocab_size=1200, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=32, token_types=2
    )


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache_folder(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the tests out of the user's cache folder."""
    monkeypatch.setenv("POCKETBERT_CACHE", str(cache_folder))
