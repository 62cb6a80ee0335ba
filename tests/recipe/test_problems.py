"""All that is wrong with a recipe is said at once, and the suggested settings mend it."""

from __future__ import annotations

import shlex

import pytest

from pipeline.recipe import load_recipe
from pipeline.support.errors import UserError

WRONG = """
nmae = "mine"
task = "regression"
sed = 3
[data]
trian = "a.csv"
max_length = 9999
label_names = "a"
[exits]
head = "attention"
temperature_scaling = true
[student]
layers = [0, "two"]
[training]
epochs = 3
[export]
max_length = 64
coreml_precision = "int4"
coreml_target = "iOS17"
"""


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WRONG)
    return path


def errors_of(path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_all_problems_are_said_at_once(wrong):
    error = errors_of(wrong)
    lines = str(error).splitlines()
    assert lines[0] == f"{wrong}: {len(error.errors)} problems"
    assert {line.split(": ")[0].strip() for line in lines[1:]} == {
        "name", "nmae", "sed", "data.trian", "data.max_length", "data.label_names", "student.layers.1", "training",
        # These can only be checked once the others are mended.
        "exits.head", "exits.uncertainty", "exits.temperature_scaling", "export.coreml_precision", "export.max_length",
    }  # fmt: skip
    assert all(line.startswith("  ") and "--set " in line for line in lines[1:])


def test_the_suggested_settings_mend_the_recipe(wrong):
    options = [part for error in errors_of(wrong).errors for setting in error.settings for part in ("--set", setting)]
    # As a shell would hand them on from the printed lines.
    printed = " ".join(line.partition(" (")[2].rstrip(")") for line in str(errors_of(wrong)).splitlines()[1:])
    assert shlex.split(printed.replace(") (", " ")) == options
    recipe = load_recipe(wrong, options[1::2])
    assert (recipe.name, recipe.seed, recipe.data.train, recipe.export.coreml_target) == ("mine", 3, "a.csv", "iOS18")


def test_each_mended_problem_is_gone(wrong):
    """Whoever mends one problem after the other has one fewer each time."""
    settings: list[str] = []
    count = len(errors_of(wrong).errors)
    for error in errors_of(wrong).errors[:-1]:
        settings += error.settings
        left = [(other.field, other.message) for other in errors_of(wrong, *settings).errors]
        assert (error.field, error.message) not in left and len(left) < count
        count = len(left)


def test_a_wrong_setting_is_replaced_and_a_wrong_key_in_the_file_is_taken_out(wrong, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "t"\ntask = "qa"\n')
    assert errors_of(path, "data.trian=a.csv").settings == ("data.train=a.csv",)
    path.write_text('name = "t"\ntask = "qa"\n[data]\ntrian = "a.csv"\n')
    assert errors_of(path).settings == ("data.trian=unset", "data.train=a.csv")
    # The nearest key is set already, so the unknown one can only go.
    assert errors_of(path, "data.train=b.csv").settings == ("data.trian=unset",)


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("task=clasification", "task=classification"),
        ("quantize.scheme=int-8", "quantize.scheme=int8"),
        ("precision=bf6", "precision=bf16"),
        ("name=my model", "name=my-model"),
        ("data.max_length=9999", "data.max_length=512"),
        ("data.max_length=3", "data.max_length=8"),
        ("seed=many", "seed=0"),
        ("exits.training.epochs=-1", "exits.training.epochs=0"),
        ("exits.delta=1", "exits.delta=0.1"),
        ("bench.lengths=16,long", "bench.lengths=16,32,64,128"),
        ("quantize.budget_mb=20", "quantize.scheme=mixed"),
        ("quantize.scheme=mixed", "quantize.budget_points=0.5"),
        ("data=3", "data=unset"),
    ],
)
def test_the_mend_is_near_what_was_meant(tmp_path, setting, mend):
    path = tmp_path / "r.toml"
    path.write_text('name = "t"\ntask = "classification"\n')
    assert errors_of(path, setting).settings == (mend,)
    load_recipe(path, [setting, mend])


@pytest.mark.parametrize(
    "settings",
    [
        ["qa.stride=300", "qa.window=128", "qa.max_question=128"],
        ["qa.window=32", "qa.max_question=30", "qa.stride=31"],
        ["qa.stride=200", "qa.window=256"],
    ],
)
def test_windows_that_cannot_move_on_get_room(tmp_path, settings):
    path = tmp_path / "r.toml"
    path.write_text('name = "t"\ntask = "qa"\n')
    load_recipe(path, [*settings, *errors_of(path, *settings).settings])
