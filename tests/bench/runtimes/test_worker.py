"""Tests how the worker times a run, and what it imports."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.bench.runtimes import worker
from pipeline.bench.runtimes.worker import WAITED_SECONDS, WARM_UP_SECONDS, Worker


class Clock:
    """A clock that a test moves by hand."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("run_seconds, untimed_runs", [(WARM_UP_SECONDS / 8, 8), (WARM_UP_SECONDS * 4, 1)])
def test_a_system_that_has_waited_warms_up_before_it_is_timed(monkeypatch, run_seconds, untimed_runs):
    clock, runs = Clock(), []

    def run_once() -> None:
        runs.append(run_seconds)
        clock.now += run_seconds * (1 + 1e-9)  # eight runs must not fall short of the whole warm-up

    monkeypatch.setattr(worker, "time", clock)
    timed = Worker(SimpleNamespace(prepare=lambda length, depth: run_once))
    for waited, expected_untimed in ((0.0, untimed_runs), (WAITED_SECONDS / 2, 1), (WAITED_SECONDS * 2, untimed_runs)):
        runs.clear()
        clock.now += waited
        answer = timed.run(16, 2)
        assert len(runs) == expected_untimed + 1
        assert answer["ms"] == pytest.approx(run_seconds * 1000.0)


def test_the_worker_imports_no_runtime_before_it_knows_its_system():
    code = """if True:
        import sys
        import pipeline.bench.runtimes.worker
        heavy = ("onnx", "onnxruntime", "ai_edge_litert", "litert_torch", "transformers", "executorch")
        print([name for name in (*heavy, "pipeline.model", "pipeline.export", "quantize") if name in sys.modules])
    """
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
