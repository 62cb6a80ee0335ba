"""A worker's timed run: what comes before it, and that it is one run."""

from types import SimpleNamespace

import pytest

from pipeline.bench.runtimes import worker
from pipeline.bench.runtimes.worker import WAITED_SECONDS, WARM_UP_SECONDS, Worker


class Clock:
    """Time that passes only where it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds, untimed", [(WARM_UP_SECONDS / 8, 8), (WARM_UP_SECONDS * 4, 1)])
def test_a_system_that_waited_for_its_turn_warms_up_before_it_is_timed(monkeypatch, seconds, untimed):
    clock, runs = Clock(), []

    def run() -> None:
        runs.append(seconds)
        clock.now += seconds * (1 + 1e-9)  # eighths must not fall short of the whole

    monkeypatch.setattr(worker, "time", clock)
    timed = Worker(SimpleNamespace(prepare=lambda length, depth: run))
    for waited, before in ((0.0, untimed), (WAITED_SECONDS / 2, 1), (WAITED_SECONDS * 2, untimed)):
        runs.clear()
        clock.now += waited
        answer = timed.run(16, 2)
        assert len(runs) == before + 1
        assert answer["ms"] == pytest.approx(seconds * 1000.0)
