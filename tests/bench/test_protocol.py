import statistics

import pytest

from pipeline.bench.protocol import Timing, alternate


class Recorder:
    """A case whose runs take the given milliseconds. It writes its name into a log."""

    def __init__(self, name, milliseconds, log):
        self.name, self.milliseconds, self.log = name, iter(milliseconds), log

    def run(self):
        self.log.append(self.name)
        return next(self.milliseconds)


def test_cases_take_turns_and_the_warm_up_is_not_counted():
    log, steps = [], []
    cases = [
        Recorder("a", [900, 1, 5, 3], log),
        Recorder("b", [900, 20, 10, 30], log),
        Recorder("c", [900, 7, 7, 7], log),
    ]
    timings = alternate(cases, repeats=3, warm_up_rounds=1, on_step=lambda *step: steps.append(step[1:]))
    assert "".join(log) == "abc" * 4
    assert list(timings) == ["a", "b", "c"]
    assert timings["a"].samples == (1, 5, 3)
    assert [timing.median_ms for timing in timings.values()] == [3, 20, 7]
    assert steps[-1] == (4, 4)


def test_percentiles_are_those_of_the_statistics_module():
    samples = [float(value) for value in (9, 2, 4, 44, 1, 7, 3, 8, 12, 5, 6)]
    timing = Timing.from_samples(samples)
    assert timing.median_ms == statistics.median(samples)
    assert timing.p95_ms == pytest.approx(statistics.quantiles(samples, n=20, method="inclusive")[-1])


def test_two_cases_with_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        alternate([Recorder("a", [1], []), Recorder("a", [1], [])], repeats=1)


def test_zero_repeats_are_refused():
    with pytest.raises(ValueError, match="measure nothing"):
        alternate([Recorder("a", [1], [])], repeats=0)
