import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.bench import host
from pipeline.bench.documents import BenchReport
from pipeline.bench.host import WorkerProcess, bench_host
from pipeline.bench.protocol import alternate
from pipeline.bench.runtimes.worker import BundlePrograms
from pipeline.bundle.manifest import MANIFEST_FILE
from pipeline.support.errors import UserError

DESIGN = {
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


def test_every_length_and_depth_and_the_reference_are_measured(tiny_classifier, small_bert):
    told = []
    report = bench_host(
        tiny_classifier.path,
        [8, 16, 8, 4096],
        repeats=3,
        threads=1,
        reference="bert-base",
        on_step=lambda *step: told.append(step),
        reference_length=16,
        reference_shape=small_bert,
    )
    ours = report.of("pocketbert")
    assert [(each.length, each.depth) for each in ours] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    (theirs,) = report.of("bert-base")
    assert (theirs.length, theirs.depth, theirs.precision) == (16, 2, "fp32")
    assert "random weights" in theirs.model
    assert ours[0].precision == "int8"
    assert ours[0].file_bytes == (tiny_classifier.path / "model.pte").stat().st_size
    for each in report.results:
        assert 0 < each.median_ms <= each.p95_ms
        assert each.runs == 3
        assert each.load_ms > 0
        assert each.peak_memory_bytes >= each.baseline_memory_bytes > 20e6  # a Python with torch
    assert report.device.threads == 1
    raw = json.loads(report.model_dump_json())
    assert DESIGN <= set(raw["results"][0]) and raw["device"]["kind"] == "host" and raw["device"]["executorch"]
    assert BenchReport.model_validate(raw) == report
    assert told[-1] == ("timing in turns", 5, 5)


def test_a_system_has_its_whole_turn_at_once_and_the_deepest_point_first(tiny_classifier, small_bert, monkeypatch):
    turns = []

    def record(points, *arguments):
        turns.extend((point.source.system, point.length, point.depth) for point in points)
        return alternate(points, *arguments)

    monkeypatch.setattr(host, "alternate", record)
    bench_host(tiny_classifier.path, [8, 16], repeats=1, threads=1, reference_length=16, reference_shape=small_bert)
    bundle = [("pocketbert", 8, 2), ("pocketbert", 16, 2), ("pocketbert", 8, 1), ("pocketbert", 16, 1)]
    assert turns == [*bundle, ("bert-base", 16, 2)]


def test_a_run_passes_through_the_programs_up_to_its_depth(tiny_qa):
    programs = BundlePrograms(tiny_qa.path, 1, tiny_qa.manifest)
    programs.load()
    ran, run_program = [], programs.file.run

    def record(name, inputs):
        ran.append((name, [tuple(each.shape) for each in inputs]))
        return run_program(name, inputs)

    programs.file.run = record
    programs.prepare(length=7, depth=1)()
    assert ran == [("embed", [(1, 7)]), ("segment_0", [(1, 7, 64), (1, 1, 7), (1, 7)])]
    ran.clear()
    programs.prepare(length=9, depth=2)()
    assert [name for name, _ in ran] == ["embed", "segment_0", "segment_1"]
    assert ran[2][1][0] == (1, 9, 64)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_the_pool_has_the_threads_asked_for(tiny_classifier):
    counts = []
    for threads in (1, 4):
        with WorkerProcess("pocketbert", tiny_classifier.path, tiny_classifier.path, threads) as worker:
            assert worker.ask("load", length=8, depth=2)["threads"] == threads
            worker.ask("run", length=8, depth=2)
            counts.append(len(os.listdir(f"/proc/{worker._process.pid}/task")))
    assert counts[1] - counts[0] == 3


def test_a_reference_of_the_same_width_is_as_deep_as_bert_base(tiny_classifier):
    report = bench_host(tiny_classifier.path, [8], repeats=1, threads=1, reference="same-width", reference_length=8)
    (theirs,) = report.of("bert-base")
    assert (theirs.model, theirs.depth) == ("BERT 12x64, random weights", 12)


def test_without_a_reference_nothing_is_exported(tiny_classifier, monkeypatch):
    monkeypatch.setattr("pipeline.bench.host.reference_program", lambda *_: pytest.fail("exported"))
    report = bench_host(tiny_classifier.path, [8], repeats=1, threads=1, reference="none")
    assert {each.system for each in report.results} == {"pocketbert"}


def test_lengths_beyond_the_bundle_are_refused(tiny_classifier):
    with pytest.raises(UserError, match=r"bench.lengths.*none of \[100, 1\] is from 2 to 64"):
        bench_host(tiny_classifier.path, [100, 1], repeats=1, threads=1, reference="none")


def test_a_program_that_does_not_load_is_named_and_no_process_stays(tiny_classifier, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, broken)
    (broken / "model.pte").write_bytes(b"nothing that runs" * 100)
    with pytest.raises(UserError, match="model.pte"):
        with WorkerProcess("pocketbert", broken, broken, 1) as worker:
            worker.ask("load", length=8, depth=2)
    assert worker._process.returncode is not None


def test_a_process_that_dies_is_told_from_an_answer(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(UserError):
        with WorkerProcess("pocketbert", tmp_path, tmp_path, 1) as worker:
            worker._process.kill()
            worker._process.wait()  # the request then finds nobody, every time
            worker.ask("load", length=8, depth=2)
