"""A worker's timed run: what comes before it, and that it is one run."""

from types import SimpleNamespace

import pytest

from pipeline.bench import worker
from pipeline.bench.worker import WARM_UP_SECONDS, Worker


class Clock:
    """Time that passes only while something runs."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds, untimed", [(WARM_UP_SECONDS / 8, 8), (WARM_UP_SECONDS * 4, 1)])
def test_a_run_is_timed_once_the_processor_is_awake(monkeypatch, seconds, untimed):
    clock, runs = Clock(), []

    def run() -> None:
        runs.append((16, 2))
        clock.now += seconds if len(runs) > untimed else seconds * (1 + 1e-9)  # sums of floats must not fall short

    monkeypatch.setattr(worker, "time", clock)
    answer = Worker(SimpleNamespace(prepare=lambda length, depth: run)).run(16, 2)
    assert len(runs) == untimed + 1
    assert answer["ms"] == pytest.approx(seconds * 1000.0)
