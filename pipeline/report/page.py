"""The parts that all pages share: figures, and the environment of the templates."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report import wording
from pipeline.tasks import TASKS


@dataclass(frozen=True)
class Figure:
    """A plot on a page.

    Attributes:
        title: its heading.
        source: the SVG as a data address.
        alt: its content in words.
        caption: how to read it.
    """

    title: str
    source: str
    alt: str
    caption: str

    @classmethod
    def from_svg(cls, title: str, svg: str, alt: str, caption: str) -> Figure:
        """Embeds an SVG, so that the page needs no other file."""
        return cls(title, f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt, caption)


def environment() -> Environment:
    """Returns Jinja's environment with the number formats as filters. It escapes text and refuses undefined names."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        percent=wording.percent,
        score=wording.score,
        points=wording.points,
        ms=wording.milliseconds,
        mb=wording.megabytes,
        seconds=wording.duration,
        number=wording.number,
        times=wording.times,
        measure=wording.measure_name,
    )
    templates.globals["tasks"] = TASKS
    return templates
