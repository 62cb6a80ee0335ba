"""BERT-base is exported while a bundle is made, and is complete in the cache when the benchmark begins."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.bench import ahead
from pipeline.bench.cache import CACHE_VARIABLE
from pipeline.bench.runtimes.bert_base import bert_base_program, file_name
from pipeline.model.encoder import EncoderConfig

SHAPE = EncoderConfig(vocab_size=1000, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def test_the_export_made_ahead_is_the_one_that_the_benchmark_makes(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "FEWEST_CORES", 1)
    assert ahead.start_export(8, SHAPE)
    assert not ahead.start_export(8, SHAPE)  # it is under way
    steps = []
    ahead.wait_for_export(8, lambda *step: steps.append(step))
    made = cache / file_name(8, SHAPE)
    assert [path.name for path in cache.iterdir()] == [made.name] and len(steps) == 2
    assert not ahead.start_export(8, SHAPE)  # it is there
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    assert bert_base_program(8, SHAPE).read_bytes() == made.read_bytes()


def test_an_export_that_fails_leaves_the_work_to_the_benchmark(cache, monkeypatch):
    monkeypatch.setattr(ahead, "FEWEST_CORES", 1)
    assert ahead.start_export(99, SHAPE)  # the model has 16 positions
    ahead.wait_for_export(99)
    assert list(cache.iterdir()) == []


def test_the_end_of_the_run_ends_the_export(monkeypatch):
    process = subprocess.Popen(["sleep", "3600"])
    monkeypatch.setitem(ahead._exports, 8, process)
    ahead.stop_exports()
    assert process.poll() is not None and not ahead._exports


def test_a_single_core_is_left_to_the_work_at_hand(cache, monkeypatch):
    monkeypatch.setattr(ahead, "FEWEST_CORES", 10_000)
    assert not ahead.start_export(8, SHAPE)


def test_without_an_export_there_is_nothing_to_wait_for(cache):
    ahead.wait_for_export(8)
