"""Draws the pictures of README and site as SVG, for light and dark pages. The same figures give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from measurements import Measured, Row

WIDTH = 800
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """The colours of a picture. The background is transparent, so the page's own shows."""

    name: str
    ink: str
    soft: str
    line: str
    fill: str
    accent: str
    accent_fill: str
    warm: str


THEMES = (
    Theme("light", "#1c2321", "#5b6663", "#d5dbd9", "#f3f6f5", "#0f6b5c", "#dff1ec", "#b4532a"),
    Theme("dark", "#e8eeec", "#a3b0ac", "#3b4643", "#1d2523", "#5fd0b8", "#173b34", "#f0a07a"),
)


class Drawing:
    """Collects SVG elements in a theme."""

    def __init__(self, theme: Theme, height: int, title: str):
        self.theme, self.height, self.title = theme, height, title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, size: int = 14, colour: str = "", anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour or self.theme.ink}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float = 8) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "", arrow: bool = False) -> None:
        """Draws a straight line; an arrow ends at its second point and runs right or down."""
        colour = colour or self.theme.soft
        self.parts.append(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        if arrow:
            head = "m-6 -4.5l6 4.5l-6 4.5" if x2 > x1 else "m-4.5 -6l4.5 6l4.5 -6"
            self.parts.append(f'<path d="M{x2:g} {y2:g}{head}" stroke="{colour}" stroke-width="1.5" fill="none"/>')

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>')

    def svg(self) -> str:
        inner = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img" font-family="{FONT}">\n'
            f"<title>{escape(self.title)}</title>\n{inner}\n</svg>\n"
        )


def draw(measured: Measured) -> dict[str, str]:
    """Returns every picture by its file's name."""
    drawn = {}
    for theme in THEMES:
        drawn[f"speeds-{theme.name}.svg"] = speeds(theme, measured)
        drawn[f"flow-{theme.name}.svg"] = flow(theme)
        drawn[f"stages-{theme.name}.svg"] = stages(theme)
    return drawn


def nice_ticks(low: float, high: float, steps: Sequence[float], most: int = 6) -> list[float]:
    """Returns round values between two ends, at most so many, with the smallest step that allows it."""
    for step in steps:
        first = -(-low // step) * step
        ticks = [round(first + index * step, 6) for index in range(int((high - first) / step + 1e-9) + 1)]
        if len(ticks) <= most:
            return ticks
    raise ValueError(f"no step of {steps} fits {low} to {high}")


def speeds(theme: Theme, measured: Measured) -> str:
    """Draws accuracy against milliseconds at each speed, and beside it all times on one scale with BERT-base's."""
    if measured.bench is None or measured.reference_ms is None:
        raise FileNotFoundError("docs/results/sst2-bench.json has no BERT-base; run docs/measure.sh")
    rows = list(measured.rows())
    d = Drawing(theme, 360, "Accuracy on SST-2 against milliseconds for one sentence")
    d.text(0, 20, "Accuracy against time, SST-2", 17, bold=True)
    d.text(0, 41, f"{measured.evaluation.examples} sentences; higher and further left is better", 13, theme.soft)
    left, right, top, bottom = 56, 470, 66, 300
    times = [row.result.latency_ms.mean for row in rows]
    scores = [row.result.accuracy or 0.0 for row in rows]
    longest = max(times) * 1.12
    low, high = min(scores) - 0.0035, max(scores) + 0.0035

    def place(time: float, score: float) -> tuple[float, float]:
        return (
            round(left + (right - left) * time / longest, 1),
            round(bottom - (bottom - top) * (score - low) / (high - low), 1),
        )

    for tick in nice_ticks(low, high, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)):
        _, y = place(0, tick)
        d.line(left, y, right, y, theme.line)
        d.text(left - 9, y + 4.5, f"{tick:.3f}", 13, theme.soft, "end")
    for tick in nice_ticks(0, longest, (0.1, 0.2, 0.5, 1, 2, 5, 10)):
        x, _ = place(tick, low)
        d.text(x, bottom + 20, f"{tick:g}", 13, theme.soft, "middle")
    d.line(left, bottom, right, bottom, theme.soft)
    d.text(
        (left + right) / 2,
        bottom + 42,
        "mean milliseconds for one sentence, tokenizer included",
        13,
        theme.soft,
        "middle",
    )
    marks = [place(time, score) for time, score in zip(times, scores)]
    for (x1, y1), (x2, y2) in zip(marks, marks[1:]):
        d.line(x1, y1, x2, y2, theme.accent)
    # The curve rises to the right, so the place to the left of a mark is free.
    heights = spread([y for _, y in marks], 20)
    for row, (x, y), height in zip(rows, marks, heights):
        d.dot(x, y, 6, theme.accent)
        d.text(x - 13, height + 1, f"{row.name.strip('`')}  {row.result.accuracy:.3f}", 14, anchor="end", bold=True)
    bars(d, rows, measured.reference_ms)
    return d.svg()


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights apart that are closer than a gap; they come from the top to the bottom."""
    moved: list[float] = []
    for height in heights:
        moved.append(height if not moved else max(height, moved[-1] + gap))
    return moved


def bars(d: Drawing, rows: Sequence[Row], reference_ms: float) -> None:
    """Draws all times on one scale, BERT-base's first."""
    theme, x, full = d.theme, 530, 270
    d.text(x, 20, "The same beside BERT-base", 17, bold=True)
    d.text(x, 41, "milliseconds for one input", 13, theme.soft)
    d.text(x, 74, "BERT-base, padded to 128", 14)
    d.box(x, 82, full, 16, theme.warm, theme.warm, 2)
    d.text(x + full, 74, f"{reference_ms:.0f}", 14, anchor="end", bold=True)
    for index, row in enumerate(rows, start=1):
        y, time = 74 + index * 52, row.result.latency_ms.mean
        width = max(2.0, round(full * time / reference_ms, 1))
        d.text(x, y, f"{row.name.strip('`')}, {row.result.mean_depth:.2f} of {len(row.result.exits)} segments", 14)
        d.box(x, y + 8, width, 16, theme.accent, theme.accent, 2)
        d.text(x + width + 8, y + 21, f"{time:.2f}, {reference_ms / time:.0f} times as fast", 13, theme.soft)


def flow(theme: Theme) -> str:
    """Draws how an input runs: embed, then segments, each with an exit that may stop it."""
    d = Drawing(theme, 240, "embed, then one segment after another; each has an exit that may stop the input")
    y, height, width = 58, 56, 100
    d.text(0, 20, "An input stops at the first exit that is sure enough", 17, bold=True)
    d.text(0, y + 25, "“not half as", 14, theme.soft)
    d.text(0, y + 43, "dull as I feared”", 14, theme.soft)
    d.line(118, y + 28, 138, y + 28, arrow=True)
    d.box(140, y, 84, height, theme.fill, theme.line)
    d.text(182, y + 24, "embed", 15, anchor="middle", bold=True)
    d.text(182, y + 43, "to vectors", 12, theme.soft, "middle")
    before = 224
    for number, x, note in ((1, 246, "sure: answer"), (2, 420, "sure: answer"), (6, 688, "always answers")):
        middle = x + width / 2
        d.line(before + 2, y + 28, x - 2, y + 28, arrow=True)
        d.box(x, y, width, height, theme.accent_fill, theme.accent)
        d.text(middle, y + 24, f"segment {number}", 15, anchor="middle", bold=True)
        d.text(middle, y + 43, "some layers", 12, theme.soft, "middle")
        d.line(middle, y + height + 2, middle, y + height + 26, arrow=True)
        d.box(x, y + height + 28, width, 34, theme.fill, theme.line, 17)
        d.text(middle, y + height + 50, "exit", 15, anchor="middle", bold=True)
        d.line(middle, y + height + 64, middle, y + height + 88, theme.accent, arrow=True)
        d.text(middle, y + height + 108, note, 13, theme.accent, "middle", bold=True)
        before = x + width
    d.text(382, y + 20, "unsure", 12, theme.soft, "middle")
    d.text(549, y + 20, "unsure", 12, theme.soft, "middle")
    d.box(576, y + 14, 84, 28, theme.fill, theme.line, 14)
    d.text(618, y + 32, "3, 4 and 5", 12, theme.soft, "middle")
    return d.svg()


def stages(theme: Theme) -> str:
    """Draws the stages of a run, in three groups."""
    d = Drawing(theme, 128, "the stages of a run: data, training, bundle, proof")
    groups = (
        ("data", ("prepare",)),
        ("training", ("finetune", "distill", "exits")),
        ("bundle", ("quantize", "export")),
        ("proof", ("verify", "bench", "report")),
    )
    x, y, width, height, gap = 2, 52, 76, 40, 13
    for group, (title, names) in enumerate(groups):
        end = x + len(names) * (width + gap) - gap
        d.text((x + end) / 2, 26, title, 14, theme.soft, "middle")
        d.line(x, 36, end, 36, theme.line)
        for index, name in enumerate(names):
            last = group == len(groups) - 1 and index == len(names) - 1
            accent = title == "bundle"
            d.box(
                x, y, width, height, theme.accent_fill if accent else theme.fill, theme.accent if accent else theme.line
            )
            d.text(x + width / 2, y + 25, name, 14, anchor="middle", bold=True)
            if not last:
                d.line(x + width + 2, y + height / 2, x + width + gap - 2, y + height / 2, arrow=True)
            x += width + gap
    d.text(
        0,
        118,
        "Each stage writes a folder, whole or not at all. A second run repeats only what changed.",
        13,
        theme.soft,
    )
    return d.svg()
