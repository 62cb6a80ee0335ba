"""Tests the benchmark on this computer with tiny bundles and a small reference."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.bench import host
from pipeline.bench.documents import BenchReport
from pipeline.bench.host import bench_host
from pipeline.bench.protocol import alternate
from pipeline.bench.worker_process import WorkerProcess
from pipeline.bundle.manifest import MANIFEST_FILE
from pipeline.support.errors import UserError

SCRIPTED_FIELDS = {
    "system",
    "model",
    "precision",
    "length",
    "depth",
    "median_ms",
    "p95_ms",
    "load_ms",
    "peak_memory_bytes",
    "file_bytes",
}
MIN_BASELINE_BYTES = 20e6  # a Python process that has imported torch holds more


def test_every_length_and_depth_and_the_reference_are_measured(tiny_classifier, small_bert):
    steps = []
    report = bench_host(
        tiny_classifier.path,
        [8, 16, 8, 4096],
        repeats=3,
        threads=1,
        reference="bert-base",
        on_step=lambda *step: steps.append(step),
        reference_length=16,
        reference_shape=small_bert,
    )
    bundle = report.measurements_of("pocketbert")
    assert [(result.length, result.depth) for result in bundle] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    (reference,) = report.measurements_of("bert-base")
    assert (reference.length, reference.depth, reference.precision) == (16, 2, "fp32")
    assert "random weights" in reference.model
    assert bundle[0].precision == "int8"
    assert bundle[0].file_bytes == (tiny_classifier.path / "model.pte").stat().st_size
    for result in report.results:
        assert 0 < result.median_ms <= result.p95_ms
        assert result.runs == 3
        assert result.load_ms > 0
        assert result.peak_memory_bytes >= result.baseline_memory_bytes > MIN_BASELINE_BYTES
    assert report.device.threads == 1
    raw = json.loads(report.model_dump_json())
    assert SCRIPTED_FIELDS <= set(raw["results"][0])
    assert raw["device"]["kind"] == "host" and raw["device"]["executorch"]
    assert BenchReport.model_validate(raw) == report
    assert steps[-1] == ("timing in turns", 5, 5)


def test_a_system_has_its_whole_turn_at_once_and_starts_with_its_deepest_case(tiny_classifier, small_bert, monkeypatch):
    turns = []

    def record(cases, *arguments):
        turns.extend((case.source.system, case.length, case.depth) for case in cases)
        return alternate(cases, *arguments)

    monkeypatch.setattr(host, "alternate", record)
    bench_host(tiny_classifier.path, [8, 16], repeats=1, threads=1, reference_length=16, reference_shape=small_bert)
    bundle = [("pocketbert", 8, 2), ("pocketbert", 16, 2), ("pocketbert", 8, 1), ("pocketbert", 16, 1)]
    assert turns == [*bundle, ("bert-base", 16, 2)]


def test_the_same_width_reference_is_as_deep_as_bert_base(tiny_classifier):
    report = bench_host(tiny_classifier.path, [8], repeats=1, threads=1, reference="same-width", reference_length=8)
    (reference,) = report.measurements_of("bert-base")
    assert (reference.model, reference.depth) == ("BERT 12x64, random weights", 12)


def test_without_a_reference_nothing_is_exported(tiny_classifier, monkeypatch):
    monkeypatch.setattr(host, "bert_base_program", lambda *_: pytest.fail("exported"))
    report = bench_host(tiny_classifier.path, [8], repeats=1, threads=1, reference="none")
    assert {result.system for result in report.results} == {"pocketbert"}


def test_lengths_that_the_bundle_does_not_take_are_refused(tiny_classifier):
    with pytest.raises(UserError, match=r"bench.lengths.*none of \[100, 1\] is from 2 to 64"):
        bench_host(tiny_classifier.path, [100, 1], repeats=1, threads=1, reference="none")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_worker_has_the_threads_that_it_is_given(tiny_classifier):
    counts = []
    for threads in (1, 4):
        with WorkerProcess("pocketbert", tiny_classifier.path, tiny_classifier.path, threads) as worker:
            assert worker.ask("load", length=8, depth=2)["threads"] == threads
            worker.ask("run", length=8, depth=2)
            counts.append(len(os.listdir(f"/proc/{worker._process.pid}/task")))
    assert counts[1] - counts[0] == 3


def test_a_program_that_does_not_load_is_named_and_its_process_ends(tiny_classifier, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, broken)
    (broken / "model.pte").write_bytes(b"nothing that runs" * 100)
    with pytest.raises(UserError, match="model.pte"):
        with WorkerProcess("pocketbert", broken, broken, 1) as worker:
            worker.ask("load", length=8, depth=2)
    assert worker._process.returncode is not None


def test_a_process_that_dies_gives_an_error(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(UserError):
        with WorkerProcess("pocketbert", tmp_path, tmp_path, 1) as worker:
            worker._process.kill()
            worker._process.wait()  # the request then always meets a dead process
            worker.ask("load", length=8, depth=2)
