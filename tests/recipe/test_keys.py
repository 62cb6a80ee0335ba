"""Every key of a recipe is listed with its meaning, and every listed default is what a recipe has."""

from __future__ import annotations

import json

import pytest

from pipeline import cli
from pipeline.recipe import known_keys, parse_setting
from pipeline.recipe.keys import list_keys, nearest_keys
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import get_value


def test_all_keys_are_listed_with_their_meaning():
    keys = list_keys()
    assert [key.key for key in keys] == known_keys()
    assert all(key.type and key.description and key.default for key in keys)


def test_the_listed_default_is_what_a_recipe_has():
    recipe = Recipe(name="test", task="classification").model_dump()
    for key in list_keys():
        if key.default not in ("required", "not set"):
            assert parse_setting(key.key, key.default) == get_value(recipe, key.key), key
    assert {key.key for key in list_keys() if key.default == "required"} == {"name", "task"}
    epochs = {key.key: key.default for key in list_keys("epochs")}
    assert (epochs["exits.training.epochs"], epochs["teacher.training.epochs"]) == ("2", "1")


def test_types_and_limits_are_in_words():
    keys = {key.key: key for key in list_keys()}
    assert (keys["data.max_length"].type, keys["data.max_length"].limits) == ("whole number", "at least 8, at most 512")
    assert keys["exits.delta"].limits == "above 0, below 1"
    assert keys["quantize.scheme"].type.startswith("one of fp32, fp16, ")
    assert keys["exits.uncertainty"].type.startswith("one of entropy, ")
    assert (keys["bench.lengths"].type, keys["data.label_names"].type) == ("list of whole numbers", "list of text")
    assert (keys["pretrain.corpus"].type, keys["pretrain.corpus"].default) == ("text", "not set")
    assert keys["data.calibration"].type == "whole number or text"


def test_a_word_is_looked_for_in_names_and_meanings():
    assert {"data.calibration", "exits.temperature_scaling"} <= {key.key for key in list_keys("Calibrat")}
    assert list_keys("no such thing") == []
    assert nearest_keys("trainlimit")[0].endswith("train_limit")


@pytest.fixture
def keys(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pocketbert", "keys", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return run


def test_the_command_shows_keys_and_suggests_where_there_are_none(keys):
    code, out, _ = keys("warmup", "--json")
    listed = json.loads(out)
    assert code == 0 and all("warmup" in key["key"] for key in listed)
    assert set(listed[0]) == {"key", "type", "default", "limits", "description"}
    code, out, _ = keys("warmup")
    assert code == 0 and "teacher.training.warmup" in out and "0.1" in out
    code, out, err = keys("trainlimit")
    assert code == 2 and err.startswith("error: no key has 'trainlimit'") and "data.train_limit" in err
