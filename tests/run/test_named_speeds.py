"""A bundle has the speeds that its calibration data can show, and says what the others need."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.exits.predictions import Predictions
from pipeline.recipe import Recipe
from pipeline.run.named_speeds import left_out_speeds, left_out_warnings, named_speeds
from pipeline.run.preconditions import calibration_count, check_split
from pipeline.run.stages.bench import present_speeds
from pipeline.support.errors import UserError


def recipe_of(task: str = "classification", **data) -> Recipe:
    exits = {"uncertainty": "change"} if task == "regression" else {}
    return Recipe.model_validate({"name": "few", "task": task, "data": data, "exits": exits})


@pytest.mark.parametrize(
    ("task", "examples", "kept"),
    [
        ("classification", 50, []),
        ("classification", 142, []),
        ("classification", 143, ["fast"]),
        ("classification", 300, ["balanced", "fast"]),
        ("classification", 575, ["exact", "balanced", "fast"]),
        ("qa", 191, []),
        ("regression", 400, ["balanced", "fast"]),
    ],
)
def test_a_bundle_has_the_speeds_that_so_many_examples_can_show(task, examples, kept):
    recipe = recipe_of(task)
    score = np.ones((examples, 3))
    uncertainty = np.random.default_rng(0).random((examples, 3))
    speeds = named_speeds(recipe, Predictions(score, score, uncertainty, [[0] * 3]))
    assert list(speeds) == kept
    left_out = left_out_speeds(recipe, examples)
    assert set(left_out) == {"exact", "balanced", "fast"} - set(kept)
    # What the warning says would show it does, and one example fewer does not.
    for name, line in zip(left_out, left_out_warnings(left_out)):
        more = int(re.search(r"(\d+) more can", line)[1])
        assert line.startswith(f"warning: the bundle leaves out the speed {name}: {examples} calibration examples")
        assert name not in left_out_speeds(recipe, examples + more)
        assert name in left_out_speeds(recipe, examples + more - 1)
        key, loss = re.search(r"--set (exits\.\w+)=([\d.]+)", line).groups()
        looser = recipe.model_copy(update={"exits": recipe.exits.model_copy(update={name: float(loss)})})
        assert key == f"exits.{name}" and name not in left_out_speeds(looser, examples)


@pytest.mark.parametrize(
    ("examples", "count"), [(200, 50), (500, 125), (1000, 250), (3999, 999), (4000, 2000), (60000, 2000)]
)
def test_few_examples_give_a_quarter_to_calibration(examples, count):
    assert calibration_count(recipe_of(), examples) == count
    check_split(recipe_of(), examples)


def test_a_number_in_the_recipe_is_kept():
    assert calibration_count(recipe_of(calibration=90), 200) == 90
    with pytest.raises(UserError, match="2000 of 3000 .* more than half") as caught:
        check_split(recipe_of(calibration=2000), 3000)
    assert caught.value.settings == ("data.calibration=750",)
    check_split(recipe_of(calibration=750), 3000)


def test_the_benchmark_leaves_out_what_calibration_left_out(tiny_classifier, capsys):
    """The bundle has exact and fast. A speed that nobody knows is still an error, later."""
    manifest = tiny_classifier.manifest
    assert present_speeds(["0", "exact", "balanced", "fast"], manifest, {"balanced": "..."}) == ["0", "exact", "fast"]
    assert "balanced" in capsys.readouterr().err
    assert present_speeds(["balanced"], manifest, {"balanced": "..."}) == ["0"]
    assert present_speeds(["warp"], manifest, {"balanced": "..."}) == ["warp"]
