"""`--set` takes what users type: lists with commas, home folders, and quotes as shells leave them."""

from __future__ import annotations

import pytest

from pipeline.recipe import Recipe, apply_settings, known_keys
from pipeline.recipe.keys import fields_by_key
from pipeline.recipe.settings import get_value, parse_setting, write_setting
from pipeline.support.errors import UserError


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.label_names=negative,positive", ["negative", "positive"]),
        ("data.label_names=negative, positive", ["negative", "positive"]),
        ("data.label_names=negative,positive,", ["negative", "positive"]),
        ("data.label_names=very good,not so good", ["very good", "not so good"]),
        ("data.label_names='negative','positive'", ["negative", "positive"]),
        ('data.label_names="a, b",c', ["a, b", "c"]),
        ('data.label_names=["a, b", "c"]', ["a, b", "c"]),
        ("data.label_names=[negative, positive]", ["negative", "positive"]),  # the shell took the quotes away
        ("data.label_names=only", ["only"]),
        ("data.label_names=0,1", ["0", "1"]),
        ("data.label_names=[]", []),
        ("bench.speeds=0,exact", ["0", "exact"]),
        ("bench.lengths=16,32", [16, 32]),
        ("bench.lengths=16, 32", [16, 32]),
        ("bench.lengths=[16, 32]", [16, 32]),
        ("student.layers=0,2,4", [0, 2, 4]),
        ("student.layers=3", [3]),
        ("distill.training.exit_shares=0.5,1", [0.5, 1]),
        # A text stays one, whatever is in it.
        ("data.train=a,b.csv", "a,b.csv"),
        ("data.train=1,5", "1,5"),
        ("data.train=2024", "2024"),
        ("data.text=true", "true"),
        ('data.text="a, b"', "a, b"),
        ("name=7", "7"),
        ("data.calibration=300", 300),
        ("data.calibration=held, out.csv", "held, out.csv"),
        ("teacher.training.learning_rate=3e-5", 3e-5),
        ("teacher.token_types=false", False),
        ('data.text="unset"', "unset"),
    ],
)
def test_a_value_is_read_as_its_key_asks_for(setting, value):
    tables: dict = {"name": "test", "task": "classification"}
    apply_settings(tables, [setting])
    key = setting.partition("=")[0]
    assert get_value(tables, key) == value
    assert get_value(Recipe.model_validate(tables).model_dump(), key) == value
    # What a suggestion writes is read as the same value.
    written = write_setting(key, value)
    assert parse_setting(key, written.partition("=")[2]) == value


def test_unset_takes_a_key_out():
    tables: dict = {"name": "test", "task": "qa", "data": {"train": "a", "trian": "b"}}
    apply_settings(tables, ["data.trian=unset", "data.train=unset", "exits.head=unset", "bench=unset"])
    assert tables == {"name": "test", "task": "qa", "data": {}}


PATHS = ("data.train", "data.dev", "data.calibration", "teacher.weights", "pretrain.corpus", "pretrain.teacher")


@pytest.mark.parametrize("key", [*PATHS, "distill.unlabelled"])
def test_a_home_folder_is_expanded_in_keys_that_name_files(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    tables: dict = {"name": "test", "task": "classification"}
    apply_settings(tables, [f"{key}=~/some/file.csv"])
    assert get_value(Recipe.model_validate(tables).model_dump(), key) == "/home/ada/some/file.csv"


def test_no_other_key_is_expanded():
    tables: dict = {"name": "test", "task": "classification", "data": {"text": "~/column", "label_names": ["~/a"]}}
    data = Recipe.model_validate(tables).data
    assert (data.text, data.label_names) == ("~/column", ["~/a"])


def test_every_malformed_setting_is_named_and_the_others_apply():
    tables: dict = {}
    with pytest.raises(UserError) as caught:
        apply_settings(tables, ["seed", "seed=3", "=4"])
    assert [error.message.split(";")[0] for error in caught.value.errors] == [
        "--set 'seed' is not key=value",
        "--set '=4' is not key=value",
    ]
    assert tables == {"seed": 3}


def test_every_default_can_be_written_as_a_setting():
    recipe = Recipe(name="test", task="classification").model_dump()
    for key in known_keys():
        value = get_value(recipe, key)
        if value is not None and fields_by_key()[key]:
            assert parse_setting(key, write_setting(key, value).partition("=")[2]) == value, key
