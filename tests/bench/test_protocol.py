import statistics

import pytest

from pipeline.bench.protocol import Timing, alternate


class Recorder:
    """A system whose runs take the milliseconds that it is given."""

    def __init__(self, name, milliseconds, log):
        self.name, self.milliseconds, self.log = name, iter(milliseconds), log

    def run(self):
        self.log.append(self.name)
        return next(self.milliseconds)


def test_systems_take_turns_and_warm_up_is_not_counted():
    log, told = [], []
    systems = [
        Recorder("a", [900, 1, 5, 3], log),
        Recorder("b", [900, 20, 10, 30], log),
        Recorder("c", [900, 7, 7, 7], log),
    ]
    timings = alternate(systems, repeats=3, warmup=1, on_step=lambda *step: told.append(step[1:]))
    assert "".join(log) == "abc" * 4
    assert list(timings) == ["a", "b", "c"]
    assert timings["a"].samples == (1, 5, 3)
    assert [timing.median_ms for timing in timings.values()] == [3, 20, 7]
    assert told[-1] == (4, 4)


def test_percentile_is_that_of_the_statistics_module():
    samples = [float(value) for value in (9, 2, 4, 44, 1, 7, 3, 8, 12, 5, 6)]
    timing = Timing.of(samples)
    assert timing.median_ms == statistics.median(samples)
    assert timing.p95_ms == pytest.approx(statistics.quantiles(samples, n=20, method="inclusive")[-1])


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        alternate([Recorder("a", [1], []), Recorder("a", [1], [])], repeats=1)


def test_no_repeats_are_refused():
    with pytest.raises(ValueError, match="measure nothing"):
        alternate([Recorder("a", [1], [])], repeats=0)
