"""The line through the times of a benchmark."""

import pytest
from scipy.stats import linregress

from pipeline.bench.documents import BenchReport, Device, Measurement


def report(times, system="pocketbert", depth=6):
    def measured(length, median, depth):
        return Measurement(
            system=system,
            model="tiny",
            precision="int8",
            length=length,
            depth=depth,
            median_ms=median,
            p95_ms=median,
            file_bytes=1,
            runs=3,
        )

    results = [measured(length, median, depth) for length, median in times.items()]
    shallow = [measured(length, 1.0, depth - 1) for length in times]  # at another depth, and flat
    return BenchReport(
        device=Device(kind="host", system="Linux", processor="A processor", cores=2, threads=1),
        results=[*shallow, *results],
    )


def test_the_line_is_scipys_up_to_128_tokens_and_says_how_far_the_rest_is_above_it():
    times = {128: 31.0, 16: 5.5, 64: 16.0, 32: 9.0, 256: 70.0}
    growth = report(times).growth()
    fitted = (16, 32, 64, 128)
    expected = linregress(fitted, [times[length] for length in fitted])
    assert growth.lengths == fitted
    assert (growth.token_ms, growth.fixed_ms) == pytest.approx((expected.slope, expected.intercept))
    assert growth.r_squared == pytest.approx(expected.rvalue**2)
    assert growth.ratio[256] == pytest.approx(70.0 / (expected.intercept + 256 * expected.slope))
    assert (
        f"{expected.slope:.3f} ms a token" in growth.sentence()
        and f"{growth.ratio[256]:.2f} times at 256" in growth.sentence()
    )


def test_two_lengths_are_no_line():
    assert report({16: 1.0, 128: 8.0, 256: 17.0}).growth() is None
    assert report({16: 1.0, 32: 2.0, 64: 4.0}).growth("bert-base") is None
    assert "beyond" not in report({16: 1.0, 32: 2.0, 64: 4.0}).growth().sentence()
