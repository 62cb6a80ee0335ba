"""Without a terminal, progress is a plain line now and then, with the time left."""

from __future__ import annotations

import pytest

from pipeline.support import processes, progress
from pipeline.support.progress import silent


@pytest.fixture
def clock(monkeypatch):
    """Returns a list whose only number is the time that the progress display sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_at_the_start_one_a_minute_and_one_at_the_end(clock, capsys):
    with progress.progress() as on_step:
        for step in range(201):
            on_step(f"training, loss {1 / (step + 1):.3f}", step, 200)
            clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  training, loss 1.000: 0/200, 0 s",
        "  training, loss 0.016: 60/200 (30%), 60 s, about 2.5 minutes left",
        "  training, loss 0.008: 120/200 (60%), 120 s, about 1.5 minutes left",
        "  training, loss 0.006: 180/200 (90%), 180 s, about 20 seconds left",
        "  training, loss 0.005: 200/200, 200 s",
    ]


def test_new_work_in_a_stage_starts_its_own_time(clock, capsys):
    with progress.progress() as on_step:
        on_step("first", 0, 2)
        clock[0] += 90
        on_step("first", 2, 2)
        on_step("second", 1, 4)
        clock[0] += 61
        on_step("second", 2, 4)
    assert capsys.readouterr().err.splitlines() == [
        "  first: 0/2, 0 s",
        "  first: 2/2, 90 s",
        "  second: 1/4, 0 s",
        "  second: 2/4 (50%), 61 s, about 1 minute left",
    ]


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setattr(processes, "is_main", lambda: False)
    with progress.progress() as on_step:
        assert on_step is silent
        on_step("training", 1, 2)
    assert capsys.readouterr().err == ""
