"""The plots of a study of exits, as SVG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.exits.study import LOSSES
from pipeline.exits.study_document import Study
from pipeline.report.drawing import BLUE, GREEN, GREY, GRID, INK, ORANGE, PURPLE, along, drawing, name_points
from pipeline.report.wording import measure_name, metric_name

# Colour and dashes of the other measures. The bundle's own measure has a thicker, solid blue line.
LINES: list[tuple[str, Any]] = [
    (ORANGE, "--"),
    (GREEN, "-."),
    (PURPLE, (0, (1, 1.2))),
    (GREY, "-"),
    (INK, (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "-"),
    ("#56B4E9", (0, (4, 1.5))),
    ("#CC79A7", "-."),
]
MAX_MARKED_POINTS = 12  # a curve of so few points shows them, since no threshold gives what lies between
MAX_SHOWN_LOSS = 4.0  # in points; nobody ships a speed that loses more


def segment_colour(segment: int, segments: int) -> tuple[float, float, float, float]:
    """Returns a colour from dark for the first segment to light for the last; lightness alone tells them apart."""
    from matplotlib import colormaps

    return colormaps["cividis"](0.05 + 0.82 * segment / max(1, segments - 1))


def alone_plot(study: Study) -> str:
    """Draws the score of every exit if all inputs left there, with a line at full depth."""
    with drawing(5, 3.2) as (figure, axes, svg):
        segments = range(1, len(study.exits) + 1)
        values = [100 * exit_study.score for exit_study in study.exits]
        axes.axhline(100 * study.full_depth, color=ORANGE, linestyle="--", linewidth=1.3, label="full depth", zorder=0)
        axes.plot(segments, values, color=BLUE, marker="o", markersize=7, label="every input leaves here")
        axes.set_xticks(list(segments))
        axes.margins(x=0.08, y=0.16)
        axes.grid(axis="y", **GRID)
        axes.set_xlabel("segments run")
        axes.set_ylabel(f"{metric_name(study.metric)} in %")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        points = list(zip(segments, values))
        name_points(axes, [(x, y, f"{y:.1f}") for x, y in points], along(points))
    return svg.getvalue()


def depth_plot(study: Study) -> str:
    """Draws the score over mean depth for all thresholds, one line a measure, with points at the named speeds."""
    return sweep_plot(study, "mean depth in segments", lambda point: point.mean_depth, 1, len(study.exits))


def flops_plot(study: Study) -> str:
    """Draws the same over floating-point operations, in % of full depth's."""
    return sweep_plot(study, "floating-point operations, % of full depth", lambda point: point.flops, 100, 100)


def sweep_plot(study: Study, label: str, get_x: Callable[[Any], Any], scale: float, full_depth_x: float) -> str:
    """Draws the score for all thresholds, one line a measure.

    Args:
        label: the x axis' label.
        get_x: returns the x of a speed, or the x of all points of a curve.
        scale: x is multiplied by this.
        full_depth_x: the x of full depth, scaled.
    """
    top = 100 * study.full_depth
    with drawing(5, 3.9) as (figure, axes, svg):
        axes.axhline(top, color=INK, linewidth=1, zorder=0)
        for loss in LOSSES:
            axes.axhline(top - 100 * loss, color=GREY, linestyle=":", linewidth=1, zorder=0)
            axes.annotate(
                f"−{100 * loss:g}", (1, top - 100 * loss), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", size=9, color=INK, annotation_clip=False,
            )  # fmt: skip
        others = [measure for measure in study.measures if not measure.own]
        styles = {measure.measure: LINES[index % len(LINES)] for index, measure in enumerate(others)}
        highest, leftmost = top, full_depth_x
        curves: list[tuple[float, float]] = []
        for measure in study.measures:
            colour, line = styles.get(measure.measure, (BLUE, "-"))
            sweep = zip(get_x(measure.curve), measure.curve.score)
            points = [(scale * x, 100 * y) for x, y in sweep if top - 100 * y <= MAX_SHOWN_LOSS]
            curves += points
            highest = max(highest, *(y for _, y in points))
            leftmost = min(leftmost, *(x for x, _ in points))
            axes.plot(
                *zip(*points), color=colour, linestyle=line,
                linewidth=2.4 if measure.own else 1.5, zorder=3 if measure.own else 2,
                marker="." if len(set(points)) <= MAX_MARKED_POINTS else None,
                label=measure_name(measure.measure) + (" (this bundle's)" if measure.own else ""),
            )  # fmt: skip
        shown = sorted(
            (scale * get_x(speed), 100 * speed.score, speed.speed)
            for speed in study.speeds
            if 100 * speed.loss <= MAX_SHOWN_LOSS
        )
        for x, y, _ in shown:
            axes.plot(
                [x], [y], color=BLUE, marker="o", markersize=7, markeredgecolor="white", linestyle="none", zorder=4
            )
        axes.set_ylim(top - MAX_SHOWN_LOSS, highest + 0.12 * MAX_SHOWN_LOSS)
        margin = 0.04 * max(full_depth_x - leftmost, 0.1 * full_depth_x)
        axes.set_xlim(leftmost - 5 * margin, full_depth_x + margin)  # the left margin holds the names of speeds
        axes.grid(axis="x", **GRID)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{metric_name(study.metric)} in %")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        name_points(axes, shown, curves)
    return svg.getvalue()


def uncertainty_plot(study: Study) -> str:
    """Draws the uncertainty at every exit: boxes for the middle half of the examples, whiskers from 5 to 95 %."""
    with drawing(5, 3.2) as (_, axes, svg):
        keys = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [dict(zip(keys, exit_study.quantiles), fliers=[]) for exit_study in study.exits]
        axes.bxp(
            boxes, positions=range(1, len(boxes) + 1), showfliers=False, widths=0.55, patch_artist=True,
            boxprops={"facecolor": "#cfe3f1", "edgecolor": BLUE}, medianprops={"color": ORANGE, "linewidth": 2},
            whiskerprops={"color": BLUE}, capprops={"color": BLUE},
        )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", **GRID)
        axes.set_xlabel("segments run")
        axes.set_ylabel(f"uncertainty: {measure_name(study.own.measure)}")
    return svg.getvalue()


def luha_plot(study: Study) -> str:
    """Draws the score over uncertainty, one line for every exit and one point for each tenth of the examples."""
    marks = "osD^vP*X"
    with drawing(5, 3.9) as (figure, axes, svg):
        for segment, exit_study in enumerate(study.exits):
            axes.plot(
                [tenth.uncertainty for tenth in exit_study.bins], [100 * tenth.score for tenth in exit_study.bins],
                color=segment_colour(segment, len(study.exits)), marker=marks[segment % len(marks)], markersize=5,
                label=f"{segment + 1}",
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.grid(**GRID)
        axes.set_xlabel(f"uncertainty: {measure_name(study.own.measure)}")
        axes.set_ylabel(f"{metric_name(study.metric)} in %")
        figure.legend(
            loc="outside lower center", ncols=min(6, len(study.exits)), frameon=False, fontsize=10,
            title="exit after segment", title_fontsize=10, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip
    return svg.getvalue()
