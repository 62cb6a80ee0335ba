"""The plots of a study of exits as SVG."""

from __future__ import annotations

from pipeline.exits.study import LOSSES
from pipeline.exits.study_document import Study
from pipeline.report.plots import BLUE, GREEN, GREY, INK, METRIC_NAMES, ORANGE, PURPLE, drawing, measure_name

# The alternatives' lines; the bundle's own is blue, whole, and thicker.
LINES = [
    (ORANGE, "--"),
    (GREEN, "-."),
    (PURPLE, (0, (1, 1.2))),
    (GREY, "-"),
    (INK, (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "-"),
]
FEW = 12  # points of a sweep that are shown as such: the line between them is no threshold's
SHOWN_LOSS = 4.0  # points below full depth that a curve is followed to: nobody ships what loses more
GRID = {"color": "#dddddd", "linewidth": 0.7}


def segment_colour(segment: int, segments: int):
    """Dark for the first exit, light for the last, as in the plot of where inputs leave; told apart without colour vision."""
    from matplotlib import colormaps

    return colormaps["cividis"](0.05 + 0.82 * segment / max(1, segments - 1))


def alone_plot(study: Study) -> str:
    """Points: the score of every exit alone; a line at full depth."""
    with drawing(5, 3.2) as (figure, axes, svg):
        at = range(1, len(study.exits) + 1)
        values = [100 * each.score for each in study.exits]
        axes.axhline(100 * study.full_depth, color=ORANGE, linestyle="--", linewidth=1.3, label="full depth", zorder=0)
        axes.plot(at, values, color=BLUE, marker="o", markersize=7, label="every input leaves here")
        for x, value in zip(at, values):
            axes.annotate(
                f"{value:.1f}", (x, value), textcoords="offset points", xytext=(0, -9), ha="center", va="top", size=10
            )
        axes.set_xticks(list(at))
        axes.margins(x=0.08, y=0.16)
        axes.grid(axis="y", **GRID)
        axes.set_xlabel("segments run")
        axes.set_ylabel(f"{METRIC_NAMES[study.metric]} in %")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return svg.getvalue()


def depth_plot(study: Study) -> str:
    """Lines: score over mean depth as the threshold rises, one a measure; points at the named speeds."""
    return sweep_plot(study, "mean depth in segments", lambda point: point.mean_depth, 1, len(study.exits))


def flops_plot(study: Study) -> str:
    """The same over floating-point operations, in % of full depth's."""
    return sweep_plot(study, "floating-point operations, % of full depth", lambda point: point.flops, 100, 100)


def sweep_plot(study: Study, label: str, x_of, scale: float, full: float) -> str:
    """Lines of the sweeps over `x_of` a curve or a point, times `scale`; `full` is full depth's x."""
    top = 100 * study.full_depth
    with drawing(5, 3.9) as (figure, axes, svg):
        from matplotlib.patheffects import withStroke  # not before `drawing` has found matplotlib a folder

        axes.axhline(top, color=INK, linewidth=1, zorder=0)
        for loss in LOSSES:
            axes.axhline(top - 100 * loss, color=GREY, linestyle=":", linewidth=1, zorder=0)
            axes.annotate(
                f"−{100 * loss:g}", (1, top - 100 * loss), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                va="center", size=9, color=INK, annotation_clip=False,
            )  # fmt: skip
        others = [measure for measure in study.measures if not measure.own]
        styles = {measure.measure: LINES[at % len(LINES)] for at, measure in enumerate(others)}
        highest, leftmost = top, full
        for measure in study.measures:
            colour, line = styles.get(measure.measure, (BLUE, "-"))
            sweep = zip(x_of(measure.curve), measure.curve.score)
            points = [(scale * x, 100 * y) for x, y in sweep if top - 100 * y <= SHOWN_LOSS]
            highest = max(highest, *(y for _, y in points))
            leftmost = min(leftmost, *(x for x, _ in points))
            axes.plot(
                *zip(*points), color=colour, linestyle=line, linewidth=2.4 if measure.own else 1.5, zorder=3 if measure.own else 2,
                marker="." if len(set(points)) <= FEW else None,
                label=measure_name(measure.measure) + (" (this bundle's)" if measure.own else ""),
            )  # fmt: skip
        shown = sorted(
            (scale * x_of(speed), 100 * speed.score, speed.speed)
            for speed in study.speeds
            if 100 * speed.loss <= SHOWN_LOSS
        )
        for at, (x, y, name) in enumerate(shown):
            axes.plot(
                [x], [y], color=BLUE, marker="o", markersize=7, markeredgecolor="white", linestyle="none", zorder=4
            )
            # Right below and left above in turn, so that near points do not write over each other.
            below = at % 2 == 0
            axes.annotate(
                name, (x, y), textcoords="offset points", xytext=(7, -3) if below else (-6, 4), ha="left" if below else "right",
                va="top" if below else "bottom", size=10, zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
        axes.set_ylim(top - SHOWN_LOSS, highest + 0.12 * SHOWN_LOSS)
        room = 0.04 * max(full - leftmost, 0.1 * full)
        axes.set_xlim(leftmost - 5 * room, full + room)  # on the left names of speeds stand
        axes.grid(axis="x", **GRID)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{METRIC_NAMES[study.metric]} in %")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return svg.getvalue()


def uncertainty_plot(study: Study) -> str:
    """Boxes: the middle half of the examples' uncertainty at every exit, whiskers from 5 to 95 %."""
    with drawing(5, 3.2) as (_, axes, svg):
        boxes = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), each.quantiles), fliers=[]) for each in study.exits]
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
    """Lines: score over uncertainty, a line for every exit, a point for each tenth of the examples."""
    marks = "osD^vP*X"
    with drawing(5, 3.9) as (figure, axes, svg):
        for segment, each in enumerate(study.exits):
            axes.plot(
                [part.uncertainty for part in each.bins], [100 * part.score for part in each.bins],
                color=segment_colour(segment, len(study.exits)), marker=marks[segment % len(marks)], markersize=5, label=f"{segment + 1}",
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.grid(**GRID)
        axes.set_xlabel(f"uncertainty: {measure_name(study.own.measure)}")
        axes.set_ylabel(f"{METRIC_NAMES[study.metric]} in %")
        figure.legend(
            loc="outside lower center", ncols=min(6, len(study.exits)), frameon=False, fontsize=10, title="exit after segment",
            title_fontsize=10, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip
    return svg.getvalue()
