"""Tests that the page of a study needs no other file, and describes its plots in words."""

import base64
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.bundle.manifest import Speed
from pipeline.exits.predictions import Predictions
from pipeline.exits.study import Costs, study
from pipeline.exits.study_document import Study
from pipeline.report.study_page import render_study, study_figures, write_study
from pipeline.support.errors import UserError


def studied(task="classification", exits=3, speeds=("exact", "fast"), count=120) -> Study:
    """Returns the study of exits that get better and less uncertain with depth. The measure `margin` is random."""
    generator = np.random.default_rng(0)
    uncertainty = np.linspace(0, 1, count)[:, None] / np.arange(1, exits + 1)
    score = (generator.random((count, exits)) > uncertainty / 2).astype(float)
    answers = [["a"] * exits if task == "qa" else [0] * exits] * count
    named = {
        name: Speed(
            thresholds=[0.2 + 0.4 * index] * exits, metric="f1", value=0.9, value_full_depth=0.9, mean_depth=2.0,
            examples=9, max_loss=0.0123, delta=0.1,
        )
        for index, name in enumerate(speeds)
    }  # fmt: skip
    predictions = Predictions(
        score, score, uncertainty, answers, measures={"margin": generator.random((count, exits))}, task=task
    )
    costs = Costs(np.arange(count) + 7, np.outer(np.arange(count) + 7, np.arange(1, exits + 1) * 1e6))
    return study(predictions, costs, tuple(range(1, exits + 1)), "entropy", named)


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.images, self.loaded, self.text, self.tags, self.style = [], [], "", [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.style = tag == "style"
        self.images += [attributes] if tag == "img" else []
        self.loaded += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.text += "" if self.style else data + " "


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_page_and_numbers_are_written_and_load_nothing(task, tmp_path):
    result = studied(task)
    path = write_study(result, "my-bundle", "dev.tsv", tmp_path / "new" / "study")
    assert sorted(file.name for file in path.parent.iterdir()) == ["study.html", "study.json"]
    assert Study.model_validate_json((path.parent / "study.json").read_text()) == result
    page = Page(path.read_text(encoding="utf-8"))
    assert page.loaded and all(address.startswith("data:image/svg+xml;base64,") for address in page.loaded)
    assert "script" not in page.tags and "link" not in page.tags
    text = " ".join(page.text.split())
    for phrase in (
        "my-bundle",
        "dev.tsv",
        "120 examples",
        "≤ 1.23",
        "speed fast",
        "AUROC",
        "Spearman",
        "margin",
        "≤ 0.5 points",
    ):
        assert phrase in text, phrase
    assert ("F1 alone" in text) == (task == "qa") and ("passages by tokens" in text) == (task == "qa")
    exact = result.speeds[0]
    assert f"{exact.mean_depth:.2f} {100 * exact.flops:.1f} %" in text


def test_the_tables_show_the_study():
    result = studied()
    text = " ".join(Page(render_study(result, "b", "d")).text.split())
    for measure in result.measures:
        for point in measure.within:
            assert f"{point.mean_depth:.2f}, {point.speed_up:.1f}×" in text
    for index, exit_study in enumerate(result.exits, start=1):
        assert f"{index} after layer {exit_study.layer} {100 * exit_study.score:.1f} %" in text
    for third in result.speeds[1].thirds:
        assert f"{third.shortest}–{third.longest} tokens" in text and f"{third.mean_depth:.2f}" in text


@pytest.mark.parametrize("exits", [1, 3, 12])
def test_every_plot_is_drawn_and_described_in_words(exits):
    result = studied(exits=exits)
    figures = study_figures(result)
    assert len({figure.title for figure in figures}) == len(figures) == 5
    for figure in figures:
        drawing = xml.etree.ElementTree.fromstring(base64.b64decode(figure.source.partition(",")[2]))
        assert drawing.tag.endswith("svg") and len(list(drawing.iter())) > 50
        assert len(figure.alt) > 50 and len(figure.caption) > 40
    words = " ".join(figure.alt for figure in figures)
    for exit_study in result.exits:
        assert f"{100 * exit_study.score:.1f} %" in words and f"{exit_study.quantiles[2]:.2f}" in words
    for measure in result.measures:
        assert f"{measure.measure} " + ", ".join(f"{point.mean_depth:.2f}" for point in measure.within) in words


def test_a_bundle_without_named_speeds_has_a_page():
    page = Page(render_study(studied(speeds=()), "b", "d"))
    assert len(page.images) == 5 and "The named speeds" not in page.text


def test_the_same_study_gives_the_same_page_and_names_cannot_break_it():
    html = render_study(studied(), "<b>", "<script>alert(1)</script>")
    assert html == render_study(studied(), "<b>", "<script>alert(1)</script>")
    assert "script" not in Page(html).tags


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out.*file.*another folder|file.*--out.*another folder"):
        write_study(studied(), "b", "d", tmp_path / "file" / "study")
