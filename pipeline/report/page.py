"""What all pages share: figures, how numbers are written, and the templates' environment."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report import plots
from pipeline.tasks import TASKS


@dataclass(frozen=True)
class Figure:
    """A plot on a page: its title, the SVG as a data address, what it shows in words, and what to read off it."""

    title: str
    source: str
    alt: str
    caption: str

    @classmethod
    def of(cls, title: str, svg: str, alt: str, caption: str) -> Figure:
        """The figure of an SVG, which the page then carries in itself."""
        return cls(title, f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt, caption)


def environment() -> Environment:
    """Jinja's environment: this folder's templates, escaping, no undefined names, and the number formats as filters."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=percent,
        score=score,
        points=points,
        ms=plots.milliseconds,
        mb=megabytes,
        seconds=duration,
        number=number,
        times=times,
        measure=plots.measure_name,
    )
    made.globals["task_names"] = {name: task.title for name, task in TASKS.items()}
    return made


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one decimal; a dash for none."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def score(value: float | None, metric: str) -> str:
    """A score as its metric is written: a fraction of 1 as a percentage, a correlation or an error as it is; a dash for none."""
    if metric in ("pearson", "spearman", "mean_absolute_error"):
        return "–" if value is None else number(value)
    return percent(value)


def points(fraction: float) -> str:
    """A difference of two percentages in points, two decimals; the minus is a typographic one."""
    return f"{100 * fraction:.2f}".replace("-0.00", "0.00").replace("-", "−")


def megabytes(count: float) -> str:
    """Bytes in megabytes, in kilobytes where that would be nothing."""
    return f"{count / plots.MEGABYTE:.1f} MB" if abs(count) >= 1e5 else f"{count / 1e3:.1f} kB"


def times(ratio: float) -> str:
    """A ratio such as a speed-up."""
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def number(value: float) -> str:
    """Four significant digits, no exponent for what a person would write out."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if math.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
