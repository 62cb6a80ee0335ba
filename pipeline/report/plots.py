"""The report's plots as SVG."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.bench.documents import BenchReport
from pipeline.exits.study_document import NamedSpeed
from pipeline.report.results import RunResults
from pipeline.runtime.evaluate import SpeedResult
from pipeline.tasks import get_task

# Okabe and Ito's colours: told apart with any colour vision, and by their lightness in print.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#767676"
INK = "#1a1a1a"
PART_COLOURS = {
    "embeddings": "#0072B2",
    "layers": "#56B4E9",
    "heads": "#E69F00",
    "vocabulary": "#009E73",
    "overhead": "#767676",
    "other": "#CC79A7",
}
MEGABYTE = 1e6

STYLE = {
    "svg.fonttype": "path",  # looks the same where a font is missing
    "svg.hashsalt": "pocketbert",  # the same results give the same bytes
    "font.size": 11,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple]:
    """Figure and axes of that many inches, and a place for the SVG: `with drawing(5, 3) as (figure, axes, svg)`."""
    # Matplotlib wants a folder for its font list, and warns where the home folder is read-only.
    if "MPLCONFIGDIR" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # Not pyplot: it keeps figures and looks for a display.
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(), svg
        figure.savefig(svg, format="svg", metadata={"Date": None})


def size_plot(results: RunResults) -> str:
    """Stacked bars by part: BERT-base and this model in float32, then what each target ships; a line at the paper's app."""
    size = results.size
    bars = [("BERT-base\nfp32", size.bert_base_parts), ("this model\nfp32", size.fp32_parts)]
    bars += [(f"{BACKENDS[target.backend]}\n{short(target.scheme)}", target.parts) for target in size.targets]
    with drawing(5, 0.9 + 0.62 * len(bars)) as (figure, axes, svg):
        start = [0.0] * len(bars)
        for part, colour in PART_COLOURS.items():
            widths = [max(0, getattr(parts, part)) / MEGABYTE for _, parts in bars]
            if any(widths):
                axes.barh(range(len(bars)), widths, left=start, color=colour, label=part, height=0.62)
            start = [left + width for left, width in zip(start, widths)]
        for at, (_, parts) in enumerate(bars):
            axes.text(start[at] + 0.01 * max(start), at, f"{parts.total / MEGABYTE:.0f} MB", va="center")
        axes.axvline(size.target_bytes / MEGABYTE, color=ORANGE, linestyle="--", linewidth=1.3)
        # Beside the last bar, a shipped bundle: the shortest.
        axes.text(
            (size.target_bytes / MEGABYTE) + 0.015 * max(start),
            len(bars) - 1,
            "207 MB: the paper's app",
            color=ORANGE,
            va="center",
        )
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, max(start) * 1.17)
        axes.set_xlabel("megabytes")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return svg.getvalue()


def speedup_plot(results: RunResults) -> str:
    """Bars: BERT-base at its padded length, then the mean of every speed at the examples' own lengths."""
    bars = [(f"BERT-base, {each.length} tokens", each.median_ms, GREY) for each in results.bench.of("bert-base")]
    bars += [(f"speed {speed.speed}", speed.latency_ms.mean, BLUE) for speed in results.evaluation.speeds]
    with drawing(5, 0.75 + 0.42 * len(bars)) as (figure, axes, svg):
        axes.barh(range(len(bars)), [width for _, width, _ in bars], color=[colour for *_, colour in bars], height=0.62)
        longest = max(width for _, width, _ in bars)
        for at, (_, width, _) in enumerate(bars):
            axes.text(width + 0.01 * longest, at, milliseconds(width), va="center")
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.2)
        axes.set_xlabel("milliseconds for one input")
    return svg.getvalue()


def latency_plot(results: RunResults) -> str:
    """Lines: milliseconds by length, one for the least, the middle and the full depth; a mark for BERT-base."""
    ours = results.bench.of("pocketbert")
    depths = sorted({each.depth for each in ours})
    shown = sorted({depths[0], depths[len(depths) // 2], depths[-1]})
    with drawing(5, 3.4) as (figure, axes, svg):
        for depth, colour, mark in zip(shown, (GREEN, PURPLE, BLUE), ("^", "s", "o")):
            line = sorted((each.length, each.median_ms) for each in ours if each.depth == depth)
            label = f"{depth} of {depths[-1]} segments"
            axes.plot(*zip(*line), color=colour, marker=mark, markersize=5, label=label)
        for each in results.bench.of("bert-base"):
            axes.plot(
                [each.length],
                [each.median_ms],
                color=ORANGE,
                marker="D",
                markersize=8,
                linestyle="none",
                label="BERT-base fp32",
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter("")
        lengths = sorted({each.length for each in results.bench.results})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.tick_params(axis="x", labelrotation=45 if len(lengths) > 5 else 0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_xlabel("length in tokens")
        axes.set_ylabel("milliseconds (log scale)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return svg.getvalue()


def systems_plot(report: BenchReport) -> str:
    """Lines on log scales: milliseconds by length, one for every system and variant at full depth, named from the slowest down."""
    from matplotlib import colormaps

    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for system in dict.fromkeys(each.system for each in report.results):
        measured = report.of(system)
        full = [each for each in measured if each.depth == max(other.depth for other in measured)]
        # Of contending variants a different one may have won at each length; that is one line all the same.
        apart = len(full) > len({each.length for each in full})
        for each in full:
            name = f"{system}, {each.variant}" if apart else system
            low = each.median_ms if each.p5_ms is None else each.p5_ms
            lines.setdefault(name, []).append((each.length, each.median_ms, low, each.p95_ms))
    slowest_first = sorted(lines, key=lambda name: -max(lines[name])[1])
    colours, marks = colormaps["tab10"], "osD^v<>Ph*X"
    with drawing(7, 4.6) as (figure, axes, svg):
        for at, name in enumerate(slowest_first):
            length, median, low, high = zip(*sorted(lines[name]))
            ours = name == "pocketbert"
            style = {
                "color": INK if ours else colours(at % 10),
                "marker": marks[at % len(marks)],
                "linewidth": 2.4 if ours else 1.2,
            }
            axes.plot(length, median, markersize=5, label=name, zorder=3 if ours else 2, **style)
            axes.fill_between(length, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lengths = sorted({each.length for each in report.results})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.grid(axis="y", which="both", color="#dddddd", linewidth=0.7)
        axes.set_xlabel("length in tokens")
        axes.set_ylabel(
            f"milliseconds, {report.device.threads} thread{'s' if report.device.threads > 1 else ''} (log scale)"
        )
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return svg.getvalue()


def depth_plot(results: RunResults) -> str:
    """Points: the score of every speed over its mean depth; a line at the quantized model's score at full depth."""
    metric = get_task(results.task).headline
    scale, unit = (1, "") if metric == "pearson" else (100, " in %")
    with drawing(5, 3.4) as (figure, axes, svg):
        scored = [(speed.mean_depth, getattr(speed, metric), speed.speed) for speed in results.evaluation.speeds]
        points = sorted((depth, scale * score, name) for depth, score, name in scored if score is not None)
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=BLUE, marker="o", markersize=7)
        # Neighbours' names go above and below in turn, so that near points do not write over each other.
        for at, (depth, score, name) in enumerate(points):
            above = at % 2 == 0
            axes.annotate(
                "full depth" if is_full_depth(name) else name,
                (depth, score),
                textcoords="offset points",
                xytext=(0, 10 if above else -10),
                ha="center",
                va="bottom" if above else "top",
            )
        full = [score for _, score, name in points if is_full_depth(name)]
        if full:
            axes.axhline(full[0], color=ORANGE, linestyle="--", linewidth=1.3, label="full depth", zorder=0)
        teacher = results.metrics.get("teacher")
        if teacher is not None and teacher.headline is not None:
            axes.axhline(scale * teacher.headline, color=GREY, linestyle=":", linewidth=1.5, label="teacher", zorder=0)
        axes.set_xlim(left=0.7, right=len(results.evaluation.speeds[0].exits) + 0.4)
        axes.margins(y=0.3)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_xlabel("mean depth in segments")
        axes.set_ylabel(f"{METRIC_NAMES[metric]}{unit}")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return svg.getvalue()


def exits_plot(speeds: Sequence[SpeedResult | NamedSpeed]) -> str:
    """Stacked bars to 100 %: after which segment the examples left, one bar a speed."""
    from matplotlib import colormaps

    segments = len(speeds[0].exits)
    colours = colormaps["cividis"]
    with drawing(5, 1.35 + 0.42 * len(speeds)) as (figure, axes, svg):
        start = [0.0] * len(speeds)
        for segment in range(segments):
            lightness = 0.08 + 0.9 * segment / max(1, segments - 1)
            widths = [100 * speed.exits[segment] / sum(speed.exits) for speed in speeds]
            axes.barh(
                range(len(speeds)),
                widths,
                left=start,
                color=colours(lightness),
                label=f"{segment + 1}",
                height=0.66,
                edgecolor="white",
                linewidth=0.6,
            )
            for at, width in enumerate(widths):
                if width >= 8:
                    ink = "white" if lightness < 0.55 else INK
                    axes.text(start[at] + width / 2, at, f"{width:.0f}", ha="center", va="center", color=ink, size=10)
            start = [left + width for left, width in zip(start, widths)]
        axes.set_yticks(range(len(speeds)), [f"speed {speed.speed}" for speed in speeds])
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


BACKENDS = {"executorch": "ExecuTorch", "coreml": "Core ML", "executorch-coreml": "ExecuTorch, Core ML delegate"}
METRIC_NAMES = {"accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "one_minus_nmae": "1 − NMAE"}
MEASURE_NAMES = {
    "max_probability": "greatest probability",
    "span_entropy": "entropy over spans",
    "span_probability": "probability of the span",
    "unscaled_entropy": "entropy, not scaled",
}


def measure_name(measure: str) -> str:
    """A measure of uncertainty as a page calls it."""
    return MEASURE_NAMES.get(measure, measure.replace("_", " "))


def is_full_depth(speed: str) -> bool:
    """Whether a speed is the number 0: no uncertainty is below it."""
    try:
        return float(speed) == 0.0
    except ValueError:
        return False


def short(scheme: str) -> str:
    """A scheme on one short line."""
    return scheme.replace(", embeddings ", " + ")


def milliseconds(value: float) -> str:
    """Three digits and the unit."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} ms"
