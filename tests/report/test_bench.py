"""Tests the table and the plot of a benchmark, also with several variants of a system."""

import pytest

from pipeline.bench.documents import BenchReport, Device, Measurement
from pipeline.report.plots import systems_plot
from pipeline.report.terminal import bench_table


def measurement(system, length, depth=2, **changes) -> Measurement:
    fields = {
        "model": "tiny",
        "precision": "int8",
        "median_ms": float(length * depth),
        "p95_ms": length * depth * 1.2,
        "file_bytes": 66_800_000,
        "runs": 15,
    }
    return Measurement(system=system, length=length, depth=depth, **{**fields, **changes})


@pytest.fixture
def report() -> BenchReport:
    return BenchReport(
        device=Device(kind="host", system="Linux", processor="A processor", cores=2, threads=2),
        results=[
            *(measurement("pocketbert", length, depth) for length in (8, 16) for depth in (1, 2)),
            *(
                measurement("onnxruntime-int8", 8 * index, variant=name)
                for index, name in ((1, "fused"), (2, "as exported"))
            ),
            *(
                measurement("executorch-plain", length, variant=name, p5_ms=1.0, difference=0.5)
                for length in (8, 16)
                for name in ("any length", "fixed length")
            ),
        ],
    )


def test_the_table_has_a_row_for_each_measurement(report):
    table = bench_table(report)
    assert table.row_count == len(report.results) == 10
    assert table.columns[-1].header == "difference"
    without = report.model_copy(update={"results": report.measurements_of("pocketbert")})
    assert "difference" not in [column.header for column in bench_table(without).columns]


def test_the_plot_is_drawn_and_is_the_same_every_time(report):
    drawn = systems_plot(report)
    assert drawn.startswith("<?xml") and drawn == systems_plot(report)
