"""Tests the linear fit of time over length."""

import pytest
from scipy.stats import linregress

from pipeline.bench.documents import BenchReport, Device, Measurement


def make_report(medians, full_depth=6):
    """Returns a report with these medians by length at full depth, and 1 ms at the depth before it."""

    def measurement(length, median, depth):
        return Measurement(
            system="pocketbert",
            model="tiny",
            precision="int8",
            length=length,
            depth=depth,
            median_ms=median,
            p95_ms=median,
            file_bytes=1,
            runs=3,
        )

    deep = [measurement(length, median, full_depth) for length, median in medians.items()]
    shallow = [measurement(length, 1.0, full_depth - 1) for length in medians]
    return BenchReport(
        device=Device(kind="host", system="Linux", processor="A processor", cores=2, threads=1),
        results=[*shallow, *deep],
    )


def test_the_fit_up_to_128_tokens_is_that_of_scipy_and_longer_inputs_are_compared_with_it():
    medians = {128: 31.0, 16: 5.5, 64: 16.0, 32: 9.0, 256: 70.0}
    growth = make_report(medians).growth()
    fitted = (16, 32, 64, 128)
    expected = linregress(fitted, [medians[length] for length in fitted])
    assert growth.lengths == fitted
    assert (growth.token_ms, growth.fixed_ms) == pytest.approx((expected.slope, expected.intercept))
    assert growth.r_squared == pytest.approx(expected.rvalue**2)
    assert growth.ratio[256] == pytest.approx(70.0 / (expected.intercept + 256 * expected.slope))
    assert f"{expected.slope:.3f} ms a token" in growth.sentence()
    assert f"{growth.ratio[256]:.2f} times at 256" in growth.sentence()


def test_two_lengths_are_too_few_for_a_fit():
    assert make_report({16: 1.0, 128: 8.0, 256: 17.0}).growth() is None
    assert make_report({16: 1.0, 32: 2.0, 64: 4.0}).growth("bert-base") is None


def test_without_longer_inputs_the_sentence_does_not_mention_them():
    assert "longer inputs" not in make_report({16: 1.0, 32: 2.0, 64: 4.0}).growth().sentence()
