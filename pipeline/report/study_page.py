"""Writes a study of exits as a page that needs no other file (`pocketbert study --out`), and describes its plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.exits.study_document import NamedSpeed, OperatingPoint, Study
from pipeline.report import plots, study_plots
from pipeline.report.page import Figure, environment
from pipeline.report.wording import capitalized, measure_name, metric_name, percent, speed_label
from pipeline.runtime.evaluate import SpeedResult
from pipeline.support.errors import UserError
from pipeline.support.workspace import write_text

PAGE, DATA, TEMPLATE = "study.html", "study.json", "study_page.html.j2"


def write_study(study: Study, name: str, source: str, folder: str | Path) -> Path:
    """Writes `study.html` and `study.json` into a folder, each completely or not at all.

    Args:
        name: the bundle's name.
        source: the name of the data on the page.

    Returns:
        the page.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / DATA, study.model_dump_json(indent=2) + "\n")
        write_text(folder / PAGE, render_study(study, name, source))
    except OSError as error:
        raise UserError(
            f"cannot be written to ({error.strerror}); give another folder", file=folder, field="--out"
        ) from None
    return folder / PAGE


def render_study(study: Study, name: str, source: str) -> str:
    """Returns the page as HTML."""
    exits = [exits_figure(study.speeds)] if study.speeds else []
    template = environment().get_template(TEMPLATE)
    return template.render(
        study=study,
        study_figures=[*study_figures(study), *exits],
        metric=metric_name(study.metric),
        name=name,
        source=source,
    )


def study_figures(study: Study) -> list[Figure]:
    """Draws the plots; each has its content in words, for readers who do not see it."""
    metric = metric_name(study.metric)
    own_measure = measure_name(study.own.measure)

    def within(write: Callable[[OperatingPoint], str]) -> str:
        return "; ".join(
            f"{measure_name(measure.measure)} " + ", ".join(write(point) for point in measure.within)
            for measure in study.measures
        )

    depths = within(lambda point: f"{point.mean_depth:.2f}")
    operations = within(lambda point: percent(point.flops))
    losses = ", ".join(f"{100 * point.max_loss:g}" for point in study.own.within)
    scores = ", ".join(percent(exit_study.score) for exit_study in study.exits)
    boxes = ", ".join("{2:.2f} ({1:.2f} to {3:.2f})".format(*exit_study.quantiles) for exit_study in study.exits)
    tenths = "; ".join(
        f"exit {index} from {percent(exit_study.bins[0].score)} to {percent(exit_study.bins[-1].score)}"
        for index, exit_study in enumerate(study.exits, start=1)
    )
    return [
        Figure.from_svg(
            "Every exit alone",
            study_plots.alone_plot(study),
            f"Points. {metric} if every input left at that exit, from the first to the last: {scores}.",
            "The score if the model were cut off after each segment.",
        ),
        Figure.from_svg(
            f"{capitalized(metric)} against mean depth, all thresholds",
            study_plots.depth_plot(study),
            f"Lines. Mean depth just before the loss exceeds {losses} points: {depths}.",
            "One line for each measure of uncertainty. From full depth on the right, thresholds rise to the left. "
            f"Points are the named speeds. Dotted lines are {losses} points below full depth. Higher and further left "
            "is better. Measures that agree are hidden under the bundle's own.",
        ),
        Figure.from_svg(
            f"{capitalized(metric)} against computation, all thresholds",
            study_plots.flops_plot(study),
            f"Lines. Share of full depth's operations just before the loss exceeds {losses} points: {operations}.",
            "The same in floating-point operations. They include the exit heads, and long inputs count for more.",
        ),
        Figure.from_svg(
            "Uncertainty at each exit",
            study_plots.uncertainty_plot(study),
            f"Boxes. {own_measure} at each exit from the first to the last, median and middle half: {boxes}.",
            "A box holds the middle half of the examples, its whiskers 90 % of them, and its bar is the median.",
        ),
        Figure.from_svg(
            "The lower the uncertainty, the better the answer",
            study_plots.luha_plot(study),
            f"Lines. {metric} of the least and of the most uncertain tenth of the examples: {tenths}.",
            "FastBERT's hypothesis (LUHA, section 4). One line for each exit, and one point for each tenth of the "
            "examples, the least uncertain first. If a line falls, uncertainty can be trusted to decide.",
        ),
    ]


def exits_figure(speeds: Sequence[SpeedResult | NamedSpeed]) -> Figure:
    """Draws after which segments the examples left at each speed."""
    counts = "; ".join(
        f"{speed_label(speed.speed)} {', '.join(str(count) for count in speed.exits)}" for speed in speeds
    )
    return Figure.from_svg(
        "Where inputs leave",
        plots.exits_plot(speeds),
        f"Stacked bars. Examples that left after each segment in turn: {counts}.",
        "The share of the examples that stopped after each segment.",
    )
