"""The colours and the style that all plots share, and the canvas that they are drawn on."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Okabe and Ito's colours, which differ for any colour vision, and in lightness when printed.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#767676"
INK = "#1a1a1a"
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.7}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",  # text looks the same where the font is missing
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
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes, io.StringIO]]:
    """Opens a figure and writes it as SVG when the block ends: `with drawing(5, 3) as (figure, axes, svg)`.

    Args:
        width, height: in inches.
    """
    # Matplotlib stores its font list in the home folder, and warns if it cannot.
    if "MPLCONFIGDIR" not in os.environ and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # pyplot would keep the figure and look for a display.
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(), svg
        figure.savefig(svg, format="svg", metadata={"Date": None})


# Where a name may stand beside its point, the best place first: (x, y) as directions, then farther away.
DIRECTIONS = ((1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
DISTANCES = (7, 14, 22, 32, 44)  # in points
SAME_POINT = 5  # in points; marks closer than this look like one, so they get one name
ALIGNMENT = {1: ("left", "bottom"), -1: ("right", "top"), 0: ("center", "center")}


def name_points(
    axes: Axes, points: Sequence[tuple[float, float, str]], avoid: Sequence[tuple[float, float]] = (), size: float = 10
) -> None:
    """Writes a name beside each point, so that no two names overlap and each is nearest to its own point.

    Points that look like one share their names. A name that finds no place beside its point gets a line to it. Call
    this last: limits and labels of the axes must not change afterwards.

    Args:
        points: (x, y, name) in data coordinates.
        avoid: other points that no name should cover, for example those of the lines.
        size: of the letters, in points.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None  # `drawing` made it
    figure.draw_without_rendering()  # places the axes, so that data coordinates can be converted
    unit = figure.dpi / 72
    groups = _look_alike(axes, points, SAME_POINT * unit)
    marks = [axes.transData.transform((x, y)) for x, y, _ in points]
    others = [axes.transData.transform(point) for point in avoid]
    inside = axes.get_window_extent()
    placed: list[Bbox] = []
    for x, y, name in groups:
        own = axes.transData.transform((x, y))
        foreign = [mark for mark in marks if max(abs(mark - own)) > SAME_POINT * unit]
        best, best_cost = None, float("inf")
        for distance in DISTANCES:
            for right, up in DIRECTIONS:
                text = axes.annotate(
                    name, (x, y), xytext=(right * distance, up * distance), textcoords="offset points", size=size,
                    ha=ALIGNMENT[right][0], va=ALIGNMENT[up][1], zorder=5, annotation_clip=False,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )  # fmt: skip
                box = text.get_window_extent()
                text.remove()
                cost = _cost(box.padded(unit), own, placed, foreign, others, inside) + distance
                if cost < best_cost:
                    best, best_cost = (right, up, distance, box), cost
        assert best is not None  # there are directions
        right, up, distance, box = best
        placed.append(box.padded(unit))
        axes.annotate(
            name, (x, y), xytext=(right * distance, up * distance), textcoords="offset points", size=size,
            ha=ALIGNMENT[right][0], va=ALIGNMENT[up][1], zorder=5, annotation_clip=False, gid="point-name",
            path_effects=[withStroke(linewidth=3, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8} if distance > DISTANCES[1] else None,
        )  # fmt: skip


def label_log_scale(axis: Axis, low: float, high: float) -> None:
    """Writes plain numbers on a log scale. Between powers of ten only where fewer than two of those are in sight."""
    powers = int(math.floor(math.log10(high)) - math.ceil(math.log10(low))) + 1
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter("" if powers > 1 else lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")


def along(points: Sequence[tuple[float, float]], steps: int = 24) -> list[tuple[float, float]]:
    """Returns points along the straight lines between points, for `name_points` to avoid."""
    return [
        (x + (next_x - x) * step / steps, y + (next_y - y) * step / steps)
        for (x, y), (next_x, next_y) in zip(points, points[1:])
        for step in range(1, steps)
    ]


def _look_alike(
    axes: Axes, points: Sequence[tuple[float, float, str]], distance: float
) -> list[tuple[float, float, str]]:
    """Joins the names of points that lie within so many pixels of each other, in their order."""
    groups: list[tuple[float, float, list[str]]] = []
    for x, y, name in points:
        place = axes.transData.transform((x, y))
        for other_x, other_y, names in groups:
            other = axes.transData.transform((other_x, other_y))
            if abs(place[0] - other[0]) <= distance and abs(place[1] - other[1]) <= distance:
                names.append(name)
                break
        else:
            groups.append((x, y, [name]))
    return [(x, y, ", ".join(names)) for x, y, names in groups]


def _cost(box: Bbox, own: Any, placed: Sequence[Bbox], marks: Any, others: Any, inside: Bbox) -> float:
    """Returns how bad a place for a name is: overlaps first, then nearness to another point, then covered lines."""
    overlaps = sum(box.overlaps(other) for other in placed)
    covered = sum(bool(box.contains(x, y)) for x, y in marks)
    nearer = sum(distance_to(box, mark) <= distance_to(box, own) for mark in marks)
    outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
    lines = sum(bool(box.contains(x, y)) for x, y in others)
    return 10_000 * overlaps + 3_000 * covered + 1_000 * nearer + 1_000 * outside + 4 * min(lines, 20)


def distance_to(box: Bbox, point: Any) -> float:
    """Returns the distance from a box to a point, both in pixels; 0 where the point is in the box."""
    across = max(box.x0 - point[0], 0.0, point[0] - box.x1)
    up = max(box.y0 - point[1], 0.0, point[1] - box.y1)
    return float((across**2 + up**2) ** 0.5)
