"""The plots of a run and of a benchmark, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.bench.documents import BenchReport
from pipeline.exits.study_document import NamedSpeed
from pipeline.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    along,
    drawing,
    label_log_scale,
    name_points,
)
from pipeline.report.results import RunResults
from pipeline.report.wording import (
    BACKENDS,
    MEGABYTE,
    is_full_depth,
    metric_name,
    milliseconds,
    short_scheme,
    speed_label,
)
from pipeline.runtime.evaluate import SpeedResult
from pipeline.tasks import get_task

PART_COLOURS = {
    "embeddings": "#0072B2",
    "layers": "#56B4E9",
    "heads": "#E69F00",
    "vocabulary": "#009E73",
    "overhead": "#767676",
    "other": "#CC79A7",
}
MIN_LABELLED_PERCENT = 8  # narrower parts of a bar have no room for their number


def size_plot(results: RunResults) -> str:
    """Draws bytes by part as stacked bars: BERT-base and this model in float32, then each target.

    A line marks the paper's app.
    """
    size = results.size
    bars = [("BERT-base\nfp32", size.bert_base_parts), ("this model\nfp32", size.fp32_parts)]
    bars += [(f"{BACKENDS[target.backend]}\n{short_scheme(target.scheme)}", target.parts) for target in size.targets]
    with drawing(5, 0.9 + 0.62 * len(bars)) as (figure, axes, svg):
        lefts = [0.0] * len(bars)
        for part, colour in PART_COLOURS.items():
            widths = [max(0, getattr(parts, part)) / MEGABYTE for _, parts in bars]
            if any(widths):
                axes.barh(range(len(bars)), widths, left=lefts, color=colour, label=part, height=0.62)
            lefts = [left + width for left, width in zip(lefts, widths)]
        longest = max(lefts)
        for row, (_, parts) in enumerate(bars):
            axes.text(lefts[row] + 0.01 * longest, row, f"{parts.total / MEGABYTE:.0f} MB", va="center")
        axes.axvline(size.target_bytes / MEGABYTE, color=ORANGE, linestyle="--", linewidth=1.3)
        # The label stands beside the last bar. That is a target's, so it is short.
        axes.text(
            (size.target_bytes / MEGABYTE) + 0.015 * longest,
            len(bars) - 1,
            "207 MB: the paper's app",
            color=ORANGE,
            va="center",
        )
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.17)
        axes.set_xlabel("megabytes")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return svg.getvalue()


def speedup_plot(results: RunResults) -> str:
    """Draws bars of time: BERT-base at its padded length, then the mean of every speed at the examples' own lengths."""
    bars = [
        (f"BERT-base, {reference.length} tokens", reference.median_ms, GREY)
        for reference in results.bench.measurements_of("bert-base")
    ]
    bars += [(speed_label(speed.speed), speed.latency_ms.mean, BLUE) for speed in results.evaluation.speeds]
    with drawing(5, 0.75 + 0.42 * len(bars)) as (figure, axes, svg):
        axes.barh(range(len(bars)), [width for _, width, _ in bars], color=[colour for *_, colour in bars], height=0.62)
        longest = max(width for _, width, _ in bars)
        for row, (_, width, _) in enumerate(bars):
            axes.text(width + 0.01 * longest, row, milliseconds(width), va="center")
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.2)
        axes.set_xlabel("milliseconds for one input")
    return svg.getvalue()


def latency_plot(results: RunResults) -> str:
    """Draws milliseconds by length at the least, the middle and the full depth, with a mark for BERT-base."""
    bundle = results.bench.measurements_of("pocketbert")
    depths = sorted({measurement.depth for measurement in bundle})
    shown = sorted({depths[0], depths[len(depths) // 2], depths[-1]})
    with drawing(5, 3.4) as (figure, axes, svg):
        for depth, colour, mark in zip(shown, (GREEN, PURPLE, BLUE), ("^", "s", "o")):
            line = sorted((run.length, run.median_ms) for run in bundle if run.depth == depth)
            label = f"{depth} of {depths[-1]} segments"
            axes.plot(*zip(*line), color=colour, marker=mark, markersize=5, label=label)
        for reference in results.bench.measurements_of("bert-base"):
            axes.plot(
                [reference.length],
                [reference.median_ms],
                color=ORANGE,
                marker="D",
                markersize=8,
                linestyle="none",
                label="BERT-base fp32",
            )
        axes.set_yscale("log")
        label_log_scale(axes.yaxis, *axes.get_ylim())
        lengths = sorted({measurement.length for measurement in results.bench.results})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.tick_params(axis="x", labelrotation=45 if len(lengths) > 5 else 0)
        axes.grid(axis="y", **GRID)
        axes.set_xlabel("length in tokens")
        axes.set_ylabel("milliseconds (log scale)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return svg.getvalue()


def systems_plot(report: BenchReport) -> str:
    """Draws milliseconds by length at full depth on log scales, one line for every system and variant."""
    from matplotlib import colormaps

    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for system in dict.fromkeys(measurement.system for measurement in report.results):
        measurements = report.measurements_of(system)
        full_depth = max(measurement.depth for measurement in measurements)
        deep = [measurement for measurement in measurements if measurement.depth == full_depth]
        # If a system reports only its fastest variant at each length, all of them are one line.
        has_variants = len(deep) > len({measurement.length for measurement in deep})
        for run in deep:
            name = f"{system}, {run.variant}" if has_variants else system
            low = run.median_ms if run.p5_ms is None else run.p5_ms
            lines.setdefault(name, []).append((run.length, run.median_ms, low, run.p95_ms))
    slowest_first = sorted(lines, key=lambda name: -max(lines[name])[1])
    colours, marks = colormaps["tab10"], "osD^v<>Ph*X"
    with drawing(7, 4.6) as (figure, axes, svg):
        for index, name in enumerate(slowest_first):
            length, median, low_ms, high_ms = zip(*sorted(lines[name]))
            is_bundle = name == "pocketbert"
            style: dict[str, Any] = {
                "color": INK if is_bundle else colours(index % 10),
                "marker": marks[index % len(marks)],
                "linewidth": 2.4 if is_bundle else 1.2,
            }
            axes.plot(length, median, markersize=5, label=name, zorder=3 if is_bundle else 2, **style)
            axes.fill_between(length, low_ms, high_ms, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        label_log_scale(axes.yaxis, *axes.get_ylim())
        lengths = sorted({measurement.length for measurement in report.results})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.tick_params(axis="x", labelrotation=45 if len(lengths) > 5 else 0)
        axes.grid(axis="y", which="both", **GRID)
        axes.set_xlabel("length in tokens")
        axes.set_ylabel(
            f"milliseconds, {report.device.threads} thread{'s' if report.device.threads > 1 else ''} (log scale)"
        )
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return svg.getvalue()


def depth_plot(results: RunResults) -> str:
    """Draws the score of every speed over its mean depth, with lines at full depth and at the teacher's score."""
    metric = get_task(results.task).headline
    scale, unit = (1, "") if metric == "pearson" else (100, " in %")
    with drawing(5, 3.4) as (figure, axes, svg):
        scored = [(speed.mean_depth, getattr(speed, metric), speed.speed) for speed in results.evaluation.speeds]
        points = sorted((depth, scale * score, name) for depth, score, name in scored if score is not None)
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=BLUE, marker="o", markersize=7)
        full = [score for _, score, name in points if is_full_depth(name)]
        if full:
            axes.axhline(full[0], color=ORANGE, linestyle="--", linewidth=1.3, label="full depth", zorder=0)
        teacher = results.metrics.get("teacher")
        if teacher is not None and teacher.headline is not None:
            axes.axhline(scale * teacher.headline, color=GREY, linestyle=":", linewidth=1.5, label="teacher", zorder=0)
        axes.set_xlim(left=0.7, right=len(results.evaluation.speeds[0].exits) + 0.4)
        axes.margins(y=0.3)
        axes.grid(**GRID)
        axes.set_xlabel("mean depth in segments")
        axes.set_ylabel(f"{metric_name(metric)}{unit}")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        named = [(x, y, "full depth" if is_full_depth(name) else name) for x, y, name in points]
        name_points(axes, named, along([(x, y) for x, y, _ in points]), size=11)
    return svg.getvalue()


def exits_plot(speeds: Sequence[SpeedResult | NamedSpeed]) -> str:
    """Draws the share of the examples that left after each segment, one bar of 100 % for every speed."""
    from matplotlib import colormaps

    segments = len(speeds[0].exits)
    colours = colormaps["cividis"]
    with drawing(5, 1.35 + 0.42 * len(speeds)) as (figure, axes, svg):
        lefts = [0.0] * len(speeds)
        for segment in range(segments):
            lightness = 0.08 + 0.9 * segment / max(1, segments - 1)
            widths = [100 * speed.exits[segment] / sum(speed.exits) for speed in speeds]
            axes.barh(
                range(len(speeds)),
                widths,
                left=lefts,
                color=colours(lightness),
                label=f"{segment + 1}",
                height=0.66,
                edgecolor="white",
                linewidth=0.6,
            )
            for row, width in enumerate(widths):
                if width >= MIN_LABELLED_PERCENT:
                    ink = "white" if lightness < 0.55 else INK
                    axes.text(lefts[row] + width / 2, row, f"{width:.0f}", ha="center", va="center", color=ink, size=10)
            lefts = [left + width for left, width in zip(lefts, widths)]
        axes.set_yticks(range(len(speeds)), [speed_label(speed.speed) for speed in speeds])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the examples")
        figure.legend(
            loc="outside lower center",
            ncols=min(6, segments),
            frameon=False,
            fontsize=10,
            title="left after segment",
            title_fontsize=10,
            columnspacing=1.2,
            handlelength=1.2,
        )
    return svg.getvalue()
