"""The colours and the style that all plots share, and the canvas that they are drawn on."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
