"""The functions do what the commands do, silently, and a mistake is a UserError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pocketbert
from pipeline.recipe.files import apply_settings
from pocketbert.settings import as_texts

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def folder(workplace, monkeypatch) -> Path:
    monkeypatch.chdir(workplace.folder)
    return workplace.folder


def test_settings_as_a_mapping_are_those_of_the_command_line():
    values = {
        "export.coreml": True,
        "data.dev_limit": 40,
        "teacher.training.learning_rate": 1e-5,
        "data.train": Path("my files") / 'a "b".csv',
        "data.label_names": ["1", "größer"],
        "exits.speeds": (0.5, 2),
    }
    tables: dict = {}
    apply_settings(tables, as_texts(values))
    flat = {f"{section}.{name}": value for section, keys in tables.items() for name, value in keys.items()}
    flat["teacher.training.learning_rate"] = flat.pop("teacher.training")["learning_rate"]
    assert flat == values | {"data.train": 'my files/a "b".csv', "exits.speeds": [0.5, 2]}
    assert as_texts(["a.b=c"]) == ["a.b=c"]
    with pytest.raises(pocketbert.UserError, match="data.dev: None is nothing"):
        as_texts({"data.dev": None})
    with pytest.raises(TypeError):
        as_texts("a.b=c")


def test_a_finished_run_names_what_it_left(workplace):
    finished = workplace.finished
    folder = workplace.folder
    assert (folder / finished.report).read_text().startswith("<!doctype html>")
    assert (folder / finished.bundle / "manifest.json").is_file()
    results = json.loads((folder / finished.folder / "report" / "results.json").read_text())
    results["showcase"] = []  # answers are no measurements
    assert finished.results.model_dump(mode="json", exclude_none=True) == _without_none(results)


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


def test_a_run_repeats_nothing_and_says_something_only_when_asked(folder, capfd):
    settings = {"export.coreml": False}
    before = (folder / "runs/reviews/bundle/manifest.json").stat().st_mtime_ns
    pocketbert.run("reviews.toml", settings=settings)
    assert capfd.readouterr() == ("", "")
    pocketbert.run("reviews.toml", settings=settings, progress=True)
    assert "export    unchanged" in capfd.readouterr().err
    assert (folder / "runs/reviews/bundle/manifest.json").stat().st_mtime_ns == before


def test_an_evaluation_takes_speeds_as_names_and_numbers(folder, capfd):
    speeds = pocketbert.evaluate("reviews", "reviews.csv", ["exact", 0, 1.1], limit=10, threads=1).speeds
    assert [speed.speed for speed in speeds] == ["exact", "0", "1.1"]
    assert [speed.mean_depth for speed in speeds][1:] == [2.0, 1.0]
    assert [speed.speed for speed in pocketbert.evaluate("reviews", "reviews.csv", limit=1).speeds] == ["exact"]
    assert [speed.speed for speed in pocketbert.evaluate("reviews", "reviews.csv", "fast", limit=1).speeds] == ["fast"]
    columns = {"text_column": "review", "label_column": "label"}
    assert pocketbert.evaluate(folder / "runs/reviews/bundle", Path("reviews.csv"), limit=4, **columns).examples == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pocketbert.load("nothing"), "nothing: is not a bundle folder; .* runs/questions, runs/reviews"),
        (lambda: pocketbert.load("reviews", threads=0), "threads"),
        (lambda: pocketbert.verify("nothing"), "nothing: is not a bundle folder"),
        (lambda: pocketbert.evaluate("reviews", "nothing.csv"), "nothing.csv"),
        (lambda: pocketbert.evaluate("reviews", "reviews.csv", ["warp"]), "'warp' is not known"),
        (lambda: pocketbert.quantize("nothing"), "nothing"),
        (lambda: pocketbert.quantize("my-checkpoint", "runs"), "runs: is already there"),
        (lambda: pocketbert.run("nothing.toml"), "nothing.toml"),
        (lambda: pocketbert.run("reviews.toml", settings={"data.trian": "x"}), "data.trian"),
        (lambda: pocketbert.init("nothing.csv"), "nothing.csv"),
    ],
)
def test_a_mistake_is_one_line(folder, call, message):
    with pytest.raises(pocketbert.UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_run_of_several_processes_is_left_to_the_command_line(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(pocketbert.UserError, match="one process alone"):
        pocketbert.run("reviews.toml")


def test_types_are_known_to_type_checkers():
    """Each package has the marker without which type checkers ignore its annotations (PEP 561)."""
    for package in ("pocketbert", "pipeline", "quantize"):
        assert (Path(pocketbert.__file__).parents[1] / package / "py.typed").is_file()
