"""A study as a page that needs nothing but itself: its figures in words, and `pocketbert study --out`."""

from __future__ import annotations

from pathlib import Path

from pipeline.exits.study_document import Study
from pipeline.report import plots, study_plots
from pipeline.report.page import Figure, environment, percent
from pipeline.support.errors import UserError
from pipeline.support.workspace import write_text

PAGE, DATA, TEMPLATE = "study.html", "study.json", "study_page.html.j2"


def write_study(study: Study, name: str, source: str, folder: str | Path) -> Path:
    """Writes `study.html` and `study.json` into a folder, each whole or not at all; returns the page.

    Args:
        name: the bundle's.
        source: what the data is called on the page.

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
    """The page of `pocketbert study`."""
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            study=study,
            study_figures=[*study_figures(study), *leaving_figure(study)],
            metric=plots.METRIC_NAMES[study.metric],
            name=name,
            source=source,
        )
    )


def study_figures(study: Study) -> list[Figure]:
    """The plots, each with its content in words for those who do not see it."""
    metric = plots.METRIC_NAMES[study.metric]
    title = metric[0].upper() + metric[1:]
    alone = ", ".join(percent(each.score) for each in study.exits)
    within = {
        axis: "; ".join(
            f"{plots.measure_name(measure.measure)} " + ", ".join(write(point) for point in measure.within)
            for measure in study.measures
        )
        for axis, write in (
            ("depth", lambda point: f"{point.mean_depth:.2f}"),
            ("flops", lambda point: percent(point.flops)),
        )
    }
    losses = ", ".join(f"{100 * point.max_loss:g}" for point in study.own.within)
    boxes = ", ".join("{2:.2f} ({1:.2f} to {3:.2f})".format(*each.quantiles) for each in study.exits)
    ends = "; ".join(
        f"exit {at} from {percent(each.bins[0].score)} to {percent(each.bins[-1].score)}"
        for at, each in enumerate(study.exits, start=1)
    )
    return [
        Figure.of(
            "Every exit alone",
            study_plots.alone_plot(study),
            f"Points. {metric} if every input left at that exit, from the first to the last: {alone}.",
            "What the model would be worth cut off after each segment.",
        ),
        Figure.of(
            f"{title} against mean depth, all thresholds",
            study_plots.depth_plot(study),
            f"Lines. Mean depth at which the loss first stays within {losses} points: {within['depth']}.",
            "One line for each measure of uncertainty, from full depth (right) to ever bolder thresholds. Points: the named speeds. "
            f"Dotted: {losses} points below full depth. Higher and further left is better; measures that agree lie under the bundle's own.",
        ),
        Figure.of(
            f"{title} against computation, all thresholds",
            study_plots.flops_plot(study),
            f"Lines. Share of full depth's operations at which the loss first stays within {losses} points: {within['flops']}.",
            "The same, counted in floating-point operations: exit heads included, long inputs with their weight.",
        ),
        Figure.of(
            "Uncertainty by layer",
            study_plots.uncertainty_plot(study),
            f"Boxes. {plots.measure_name(study.own.measure)} at each exit from the first to the last, median and middle half: {boxes}.",
            "Boxes hold the middle half of the examples, whiskers 90 % of them, the bar is the median.",
        ),
        Figure.of(
            "The lower the uncertainty, the better the answer",
            study_plots.luha_plot(study),
            f"Lines. {metric} of the surest and of the least sure tenth of the examples: {ends}.",
            "FastBERT's hypothesis (LUHA, section 4). A line for each exit, a point for each tenth of the examples, from the surest on: "
            "lines that fall say that uncertainty can be trusted to decide.",
        ),
    ]


def leaving_figure(study: Study) -> list[Figure]:
    """Where inputs leave at the named speeds; nothing for a bundle without any."""
    if not study.speeds:
        return []
    leaving = "; ".join(
        f"speed {speed.speed} {', '.join(str(count) for count in speed.exits)}" for speed in study.speeds
    )
    return [
        Figure.of(
            "Where inputs leave",
            plots.exits_plot(study.speeds),
            f"Stacked bars. Examples that left after each segment in turn: {leaving}.",
            "The share of the examples that stopped after each segment.",
        )
    ]
