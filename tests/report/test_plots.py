"""The labels in the plots: none covers another, each stands at its own point, and no two lines look alike."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest

from pipeline.report import plots, study_plots
from pipeline.report.drawing import along, distance_to, drawing, label_log_scale, name_points
from pipeline.report.study_plots import LINES
from pipeline.report.wording import speed_label
from pipeline.tasks import TASKS
from tests.report.test_report import results
from tests.report.test_study_page import studied

CROWDED = {
    "one below the other": [(3.94, 92.7, "fast"), (4.0, 94.3, "balanced"), (4.03, 95.8, "exact"), (6, 96.9, "full")],
    "two at one place": [(2.37, 94.5, "fast"), (2.55, 96.8, "balanced"), (2.56, 96.8, "exact"), (6, 97.8, "full")],
    "all in one corner": [(5.6, 97.0, "fast"), (5.75, 97.2, "balanced"), (5.9, 97.4, "exact"), (6, 97.5, "full")],
    "the other way round": [(4.0, 95.0, "exact"), (4.3, 94.8, "balanced"), (4.6, 94.6, "fast"), (6, 96.9, "full")],
    "one": [(3.0, 90.0, "exact")],
}  # fmt: skip


def named(axes) -> list:
    return [text for text in axes.texts if text.get_gid() == "point-name"]


def check_names(figure, axes, points) -> None:
    """Asserts that the names overlap nothing of each other, and that each is nearest to a point of its own."""
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in named(axes)}
    shown = [name for names in boxes for name in names.split(", ")]
    assert sorted(shown) == sorted(name for *_, name in points)
    for first, second in itertools.combinations(boxes.values(), 2):
        assert not first.overlaps(second)
    places = {name: axes.transData.transform((x, y)) for x, y, name in points}
    for names, box in boxes.items():
        nearest = min(places, key=lambda name: distance_to(box, places[name]))
        assert nearest in names.split(", "), f"{names!r} stands nearer to the point of {nearest!r}"
        assert not any(box.contains(*place) for place in places.values())


@pytest.mark.parametrize("points", CROWDED.values(), ids=CROWDED)
def test_each_name_stands_at_its_own_point(points):
    with drawing(5, 3.4) as (figure, axes, _):
        lines = [(x, y) for x, y, _ in points]
        axes.plot(*zip(*lines), marker="o")
        axes.set_xlim(0.7, 6.4)
        axes.margins(y=0.3)
        name_points(axes, points, along(lines))
        check_names(figure, axes, points)


@contextmanager
def watched(monkeypatch, *modules):
    """Collects what `name_points` was asked for in these modules, checked when the plot is complete."""
    calls = []

    def watch(axes, points, *arguments, **options):
        name_points(axes, points, *arguments, **options)
        check_names(axes.get_figure(), axes, points)
        calls.append([name for *_, name in points])

    for module in modules:
        monkeypatch.setattr(module, "name_points", watch)
    yield calls


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_the_names_in_every_plot_are_apart(task, monkeypatch):
    study = studied(task, exits=6, speeds=("exact", "balanced", "fast"))
    with watched(monkeypatch, plots, study_plots) as calls:
        plots.depth_plot(results(task))
        study_plots.alone_plot(study)
        study_plots.depth_plot(study)
        study_plots.flops_plot(study)
    assert len(calls) == 4 and "full depth" in calls[0] and len(calls[1]) == 6


def test_plots_call_full_depth_by_one_name():
    """The speed 0 and the speed full run every segment; a page must not show a third name for it."""
    assert [speed_label(name) for name in ("0", "0.0", "full", "exact", "0.3")] == [
        "full depth", "full depth", "full depth", "speed exact", "speed 0.3",
    ]  # fmt: skip


def test_no_two_measures_share_a_line():
    looks = [(colour, str(line)) for colour, line in LINES]
    assert len(set(looks)) == len(looks)
    # Beside the bundle's own, a study may have every other measure, and three that only questions have.
    most = max(len(task.uncertainties) for task in TASKS.values()) - 1 + 3
    assert len(LINES) >= most


@pytest.mark.parametrize(("low", "high"), [(0.3, 140.0), (1.2, 8.0), (9.0, 11.0)])
def test_numbers_on_a_log_scale_do_not_overlap(low, high):
    with drawing(5, 3.4) as (figure, axes, _):
        axes.plot([1, 2], [low, high])
        axes.set_yscale("log")
        label_log_scale(axes.yaxis, *axes.get_ylim())
        figure.draw_without_rendering()
        ticks = [*axes.yaxis.get_majorticklabels(), *axes.yaxis.get_minorticklabels()]
        shown = [text.get_window_extent() for text in ticks if text.get_text() and text.get_visible()]
        shown = [box for box in shown if axes.bbox.y0 <= (box.y0 + box.y1) / 2 <= axes.bbox.y1]
        assert shown and not any(a.overlaps(b) for a, b in itertools.combinations(shown, 2))
