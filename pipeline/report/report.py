"""Writes the report of a run: one page that needs no other file, and the same numbers as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.documents import Measurement
from pipeline.report import plots
from pipeline.report.page import Figure, environment
from pipeline.report.results import RunResults, Score
from pipeline.report.study_page import exits_figure, study_figures
from pipeline.report.wording import (
    BACKENDS,
    MEGABYTE,
    capitalized,
    megabytes,
    metric_name,
    milliseconds,
    score,
    speed_label,
)
from pipeline.runtime.evaluate import SpeedResult
from pipeline.support.workspace import write_text
from pipeline.tasks import get_task

PAGE, DATA, TEMPLATE = "report.html", "results.json", "report.html.j2"


@dataclass(frozen=True)
class HeadlineRow:
    """A row of the headline table; None is shown as a dash.

    Attributes:
        name: the system.
        note: how it was measured.
        depth: its mean depth, in words.
        latency_ms: milliseconds for one input.
        speed_up: BERT-base's milliseconds divided by its own.
        ours: True for a row of the bundle.
    """

    name: str
    note: str
    score: Score | None = None
    megabytes: float | None = None
    depth: str | None = None
    latency_ms: float | None = None
    speed_up: float | None = None
    ours: bool = False


def write_report(results: RunResults, folder: str | Path) -> Path:
    """Writes `report.html` and `results.json` into a folder, each completely or not at all.

    Returns:
        the page. It contains its style and its plots, and loads nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DATA, results.model_dump_json(indent=2) + "\n")
    write_text(folder / PAGE, render(results))
    return folder / PAGE


def render(results: RunResults) -> str:
    """Returns the page as HTML."""
    headline = get_task(results.task).headline
    template = environment().get_template(TEMPLATE)
    return template.render(
        results=results,
        reference=reference_of(results),
        rows=headline_rows(results),
        figures=figures(results),
        backends=BACKENDS,
        metrics=get_task(results.task).metrics,
        headline=headline,
        headline_name=metric_name(headline),
        metric=metric_name(results.study.metric),
        study=results.study,
        study_figures=study_figures(results.study),
        failed=[check for check in results.checks if not check.passed],
    )


def reference_of(results: RunResults) -> Measurement | None:
    """Returns BERT-base's measurement, or None if the run did not measure it."""
    return next(iter(results.bench.measurements_of("bert-base")), None)


def headline_rows(results: RunResults) -> list[HeadlineRow]:
    """Returns the rows of BERT-base, teacher, student, quantized student, and the bundle at every speed."""
    reference, size = reference_of(results), results.size
    rows = []
    if reference:
        rows.append(
            HeadlineRow(
                "BERT-base fp32",
                f"ExecuTorch, every input padded to {reference.length} tokens; random weights, so no score",
                megabytes=reference.file_bytes / MEGABYTE,
                depth=f"{reference.depth} layers",
                latency_ms=reference.median_ms,
                speed_up=1.0,
            )
        )
    notes = {
        "teacher": ("Teacher", "fine-tuned, float32, in PyTorch"),
        "student": ("Student", "all layers, float32, in PyTorch"),
        "quantized": ("Student, quantized", f"all layers, {results.size.targets[0].scheme}, in PyTorch"),
    }
    for key, (name, note) in notes.items():
        if key in results.metrics:
            rows.append(HeadlineRow(name, note, results.metrics[key]))
    program = next((target for target in size.targets if target.backend == "executorch"), None)
    for speed in results.evaluation.speeds:
        rows.append(
            HeadlineRow(
                f"Bundle, {speed_label(speed.speed)}",
                "ExecuTorch, every input at its own length",
                score_of(speed),
                megabytes=program.program_bytes / MEGABYTE if program else None,
                depth=f"{speed.mean_depth:.2f} of {len(speed.exits)}",
                latency_ms=speed.latency_ms.mean,
                speed_up=reference.median_ms / speed.latency_ms.mean if reference else None,
                ours=True,
            )
        )
    return rows


def score_of(speed: SpeedResult) -> Score:
    """Returns the scores of a speed."""
    return Score(**{name: getattr(speed, name) for name in Score.model_fields})


def figures(results: RunResults) -> list[Figure]:
    """Draws the plots; each has its content in words, for readers who do not see it."""
    size, reference, headline = results.size, reference_of(results), get_task(results.task).headline
    metric = metric_name(headline)
    speeds = results.evaluation.speeds
    targets = "; ".join(f"{BACKENDS[target.backend]} {megabytes(target.bytes)}" for target in size.targets)
    time_by_speed = "; ".join(f"{speed_label(speed.speed)} {milliseconds(speed.latency_ms.mean)}" for speed in speeds)
    score_by_depth = "; ".join(
        f"{speed_label(speed.speed)} {score(getattr(speed, headline), headline)} at {speed.mean_depth:.2f}"
        for speed in speeds
    )
    reference_time = ""
    if reference:
        reference_time = f"BERT-base {milliseconds(reference.median_ms)} at {reference.length} tokens; "
    bundle = results.bench.measurements_of("pocketbert")
    full_depth = max(measurement.depth for measurement in bundle)
    time_by_length = "; ".join(
        f"{measurement.length} tokens {milliseconds(measurement.median_ms)}"
        for measurement in bundle
        if measurement.depth == full_depth
    )
    growth = results.bench.growth()
    growth_sentence = f" {growth.sentence()}" if growth else ""
    return [
        Figure.from_svg(
            "Size by part",
            plots.size_plot(results),
            f"Stacked bars. BERT-base in float32 {megabytes(size.bert_base_bytes)}; this model in float32 "
            f"{megabytes(size.fp32_bytes)}; {targets}. A line marks 207 MB.",
            "What an app ships for each target, by what the bytes hold. The dashed line is the paper's app, 207 MB.",
        ),
        Figure.from_svg(
            "Time for one input",
            plots.speedup_plot(results),
            f"Bars. {reference_time}mean over the examples at their own lengths: {time_by_speed}.",
            "Grey: BERT-base's program at its padded length. Blue: the mean over all examples, each at its own length.",
        ),
        Figure.from_svg(
            f"{capitalized(metric)} against depth",
            plots.depth_plot(results),
            f"Points. {metric} at mean depth: {score_by_depth}.",
            "How much of the score is left when inputs stop early. One point for each speed.",
        ),
        exits_figure(speeds),
        Figure.from_svg(
            "Time by length and depth",
            plots.latency_plot(results),
            f"Lines on a log scale. {reference_time}all {full_depth} segments: {time_by_length}.",
            f"Medians of the programs alone, at fixed lengths.{growth_sentence}",
        ),
    ]
