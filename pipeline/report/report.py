"""The report of a run: one page that needs nothing but itself, and the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.documents import Measurement
from pipeline.report import plots
from pipeline.report.page import Figure, environment, megabytes, score
from pipeline.report.results import RunResults, Score
from pipeline.report.study_page import study_figures
from pipeline.runtime.evaluate import SpeedResult
from pipeline.support.workspace import write_text
from pipeline.tasks import get_task

PAGE, DATA, TEMPLATE = "report.html", "results.json", "report.html.j2"


@dataclass(frozen=True)
class Line:
    """A line of the headline table; None is a dash."""

    name: str
    note: str
    score: Score | None = None
    megabytes: float | None = None
    depth: str | None = None
    latency_ms: float | None = None
    speed_up: float | None = None
    ours: bool = False


def write_report(results: RunResults, folder: str | Path) -> Path:
    """Writes `report.html` and `results.json` into a folder, each whole or not at all.

    Returns:
        the page. It loads nothing: style and plots are in it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DATA, results.model_dump_json(indent=2) + "\n")
    write_text(folder / PAGE, render(results))
    return folder / PAGE


def render(results: RunResults) -> str:
    """The page."""
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            results=results,
            reference=reference_of(results),
            lines=headline_lines(results),
            figures=figures(results),
            backends=plots.BACKENDS,
            metrics=get_task(results.task).metrics,
            headline=get_task(results.task).headline,
            headline_name=plots.METRIC_NAMES[get_task(results.task).headline],
            metric=plots.METRIC_NAMES[results.study.metric],
            study=results.study,
            study_figures=study_figures(results.study),
            failed=[check for check in results.checks if not check.passed],
        )
    )


def reference_of(results: RunResults) -> Measurement | None:
    """BERT-base's measurement; None where the run measured without it."""
    return next(iter(results.bench.of("bert-base")), None)


def headline_lines(results: RunResults) -> list[Line]:
    """What everything is compared with, the models on the way, and the bundle at every speed."""
    reference, size = reference_of(results), results.size
    lines = []
    if reference:
        lines.append(
            Line(
                "BERT-base fp32",
                f"ExecuTorch, every input padded to {reference.length} tokens; random weights, so no score",
                megabytes=reference.file_bytes / plots.MEGABYTE,
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
            lines.append(Line(name, note, results.metrics[key]))
    program = next((target for target in size.targets if target.backend == "executorch"), None)
    for speed in results.evaluation.speeds:
        lines.append(
            Line(
                "Bundle, full depth" if plots.is_full_depth(speed.speed) else f"Bundle, speed {speed.speed}",
                "ExecuTorch, every input at its own length",
                score_of(speed),
                megabytes=program.program_bytes / plots.MEGABYTE if program else None,
                depth=f"{speed.mean_depth:.2f} of {len(speed.exits)}",
                latency_ms=speed.latency_ms.mean,
                speed_up=reference.median_ms / speed.latency_ms.mean if reference else None,
                ours=True,
            )
        )
    return lines


def score_of(speed: SpeedResult) -> Score:
    return Score(**{name: getattr(speed, name) for name in Score.model_fields})


def figures(results: RunResults) -> list[Figure]:
    """The plots, each with its content in words for those who do not see it."""
    size, reference, headline = results.size, reference_of(results), get_task(results.task).headline
    metric = plots.METRIC_NAMES[headline]
    speeds = results.evaluation.speeds
    shipped = "; ".join(f"{plots.BACKENDS[target.backend]} {megabytes(target.bytes)}" for target in size.targets)
    by_speed = "; ".join(f"speed {speed.speed} {plots.milliseconds(speed.latency_ms.mean)}" for speed in speeds)
    by_depth = "; ".join(
        f"speed {speed.speed} {score(getattr(speed, headline), headline)} at {speed.mean_depth:.2f}" for speed in speeds
    )
    against = f"BERT-base {plots.milliseconds(reference.median_ms)} at {reference.length} tokens; " if reference else ""
    deepest = max(each.depth for each in results.bench.of("pocketbert"))
    by_length = "; ".join(
        f"{each.length} tokens {plots.milliseconds(each.median_ms)}"
        for each in results.bench.of("pocketbert")
        if each.depth == deepest
    )
    growth = results.bench.growth()
    leaving = "; ".join(f"speed {speed.speed} {', '.join(str(count) for count in speed.exits)}" for speed in speeds)

    def figure(title: str, draw: Callable[[RunResults], str], alt: str, caption: str) -> Figure:
        return Figure.of(title, draw(results), alt, caption)

    return [
        figure(
            "Size by part",
            plots.size_plot,
            f"Stacked bars. BERT-base in float32 {megabytes(size.bert_base_bytes)}; this model in float32 "
            f"{megabytes(size.fp32_bytes)}; {shipped}. A line marks 207 MB.",
            "What an app ships for each target, by what the bytes hold. The dashed line is the paper's app, 207 MB.",
        ),
        figure(
            "Time for one input",
            plots.speedup_plot,
            f"Bars. {against}mean over the examples at their own lengths: {by_speed}.",
            "Grey: BERT-base's program at its padded length. Blue: the mean over all examples, each at its own length.",
        ),
        figure(
            f"{metric[0].upper() + metric[1:]} against depth",
            plots.depth_plot,
            f"Points. {metric} at mean depth: {by_depth}.",
            "How much of the score is left when inputs stop early. A point for each speed.",
        ),
        figure(
            "Where inputs leave",
            lambda results: plots.exits_plot(results.evaluation.speeds),
            f"Stacked bars. Examples that left after each segment in turn: {leaving}.",
            "The share of the examples that stopped after each segment.",
        ),
        figure(
            "Time by length and depth",
            plots.latency_plot,
            f"Lines on a log scale. {against}all {deepest} segments: {by_length}.",
            f"The programs alone, at fixed lengths, medians.{f' At full depth: {growth.sentence()}' if growth else ''}",
        ),
    ]
