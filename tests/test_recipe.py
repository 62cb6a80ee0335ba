"""A recipe is typed and checked once, and every problem in it is one line with its key."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.recipe import (
    Recipe,
    Section,
    built_in_recipes,
    find_recipe,
    known_keys,
    load_recipe,
    parse_value,
)
from pipeline.support.errors import UserError

RECIPES = list(built_in_recipes().values())
MINIMAL = 'name = "test"\ntask = "classification"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    """Returns the error that loading a recipe raises, one line, without the settings at its end. These must mend it."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    problem, bracket, mend = line.partition(" (--set ")
    assert bool(bracket) == bool(caught.value.settings)
    if bracket:
        mended(path, overrides, shlex.split(f"--set {mend[:-1]}"))
    return problem


def mended(path: Path, overrides: Sequence[str], options: list[str]) -> Recipe:
    """Loads a recipe with the options that an error suggests, and without the unknown keys that they replace."""
    assert options[::2] == ["--set"] * (len(options) // 2)
    kept = [override for override in overrides if override.split("=")[0] in known_keys()]
    return load_recipe(path, [*kept, *options[1::2]])


def test_recipes_are_shipped():
    assert {path.stem for path in RECIPES} >= {"sst2", "squad", "sts-b"} and len(RECIPES) >= 7


def test_a_recipe_is_found_by_name_and_a_file_of_that_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("sst2") == find_recipe(Path("sst2")) == built_in_recipes()["sst2"]
    (tmp_path / "sts-b").mkdir()
    assert find_recipe("sts-b").is_file()  # a folder is no recipe
    (tmp_path / "sst2").write_text(MINIMAL)
    assert find_recipe("sst2") == Path("sst2")
    assert load_recipe("sst2").name == "test"


@pytest.mark.parametrize("name", ["squat", "squad.toml", "recipes/squad.toml"])
def test_an_unknown_recipe_lists_the_built_in_ones_nearest_first(name):
    line = refused(Path(name))
    assert line.startswith(f"{name}: does not exist; ")
    names = line.rpartition(": ")[2].split(", ")
    assert names[0] == "squad" and sorted(names) == list(built_in_recipes())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.head != "default"
    assert path.read_text().startswith(f"# pocketbert run {path.stem}")  # opens with the command that runs it


def test_a_minimal_recipe_has_defaults(write):
    recipe = load_recipe(write(MINIMAL))
    assert (recipe.data.train, recipe.teacher.weights, recipe.head) == ("demo", "minilm", "pooled")
    assert load_recipe(write(MINIMAL), ["task=qa"]).head == "attention"
    assert load_recipe(write(MINIMAL), ["exits.head=linear"]).head == "linear"


@pytest.mark.parametrize(
    ("text", "wrong", "nearest"),
    [
        ('[data]\ntrian = "a.tsv"', "data.trian", "data.train"),
        ("[teacher.training]\nepoch = 1", "teacher.training.epoch", "teacher.training.epochs"),
        ("[distill]\ntemprature = 1", "distill.temprature", "distill.temperature"),
        ("seeds = 1", "seeds", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(write, text, wrong, nearest):
    path = write(MINIMAL + text)
    assert refused(path) == f"{path}: {wrong}: unknown key; the nearest known one is {nearest}"


def test_an_unknown_key_on_the_command_line(write):
    assert refused(write(MINIMAL), "data.trian=a.tsv").endswith(
        "data.trian: unknown key; the nearest known one is data.train"
    )


@pytest.mark.parametrize(
    ("override", "is_set"),
    [
        ("seed=7", lambda r: r.seed == 7),
        ("exits.uncertainty=patience", lambda r: r.exits.uncertainty == "patience"),
        ("exits.head=fastbert", lambda r: r.head == "fastbert"),
        ("teacher.training.learning_rate=3e-5", lambda r: r.teacher.training.learning_rate == 3e-5),
        ("teacher.training.epochs=2", lambda r: r.teacher.training.epochs == 2.0),
        ("teacher.token_types=false", lambda r: r.teacher.token_types is False),
        ("student.layers=[0, 2, 4]", lambda r: r.student.layers == [0, 2, 4]),
        ('data.label_names=["a", "b=c"]', lambda r: r.data.label_names == ["a", "b=c"]),
        ("bench.speeds=['0', 'fast']", lambda r: r.bench.speeds == ["0", "fast"]),
        ("data.train=train.tsv", lambda r: r.data.train == "train.tsv"),
        ("data.train=/data/run=3/lr=1e-4/train.tsv", lambda r: r.data.train == "/data/run=3/lr=1e-4/train.tsv"),
        ('data.train="quoted name.tsv"', lambda r: r.data.train == "quoted name.tsv"),
        (r"data.train=C:\data\new.tsv", lambda r: r.data.train == r"C:\data\new.tsv"),
        ("data.train=nyu-mll/glue/sst2:train", lambda r: r.data.train == "nyu-mll/glue/sst2:train"),
        (" seed = 7 ", lambda r: r.seed == 7),
        ("task=qa", lambda r: r.task == "qa"),
    ],
)
def test_overrides_are_typed(write, override, is_set):
    assert is_set(load_recipe(write(MINIMAL), [override]))


def test_the_last_override_wins_over_the_file(write):
    recipe = load_recipe(
        write(MINIMAL + "seed = 1\n[data]\nmax_length = 64\n"), ["seed=2", "data.max_length=32", "seed=3"]
    )
    assert (recipe.seed, recipe.data.max_length) == (3, 32)


def test_a_value_is_toml_or_a_string():
    assert [parse_value(text) for text in ("1", "1.5", "true", "[1, 2]", "word", "a=b", "2024-x", "")] == [
        1, 1.5, True, [1, 2], "word", "a=b", "2024-x", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=many", "seed"),
        ("data.calibration=10", "data.calibration"),
        ("data.max_length=9999", "data.max_length"),
        ("teacher.token_types=maybe", "teacher.token_types"),
        ("teacher.training.warmup=1", "teacher.training.warmup"),
        ("student.layers=all", "student.layers.0"),
        ('student.layers=[0, "two"]', "student.layers.1"),
        ("quantize.scheme=int3", "quantize.scheme"),
        ("export.coreml_buckets=[]", "export.coreml_buckets"),
        ("task=translation", "task"),
        ("precision=fp8", "precision"),
        ("name=with/slash", "name"),
        ("data=3", "data"),
    ],
)
def test_a_wrong_value_names_its_key(write, override, key):
    path = write(MINIMAL)
    assert refused(path, override).startswith(f"{path}: {key}: ")


def test_a_missing_key_is_named(write):
    path = write('name = "test"\n')
    assert refused(path) == f"{path}: task: is required"


@pytest.mark.parametrize("override", ["seed", "=3", "", "data.train"])
def test_an_override_is_key_equals_value(write, override):
    assert refused(write(MINIMAL), override).startswith(f"--set {override!r} is not key=value")


def test_a_value_has_no_keys_below_it(write):
    assert refused(write(MINIMAL), "name.first=a") == (
        "name.first: 'name' holds a value and has no keys below it; set 'name' itself"
    )


def test_a_file_that_is_not_a_recipe_is_refused(write, tmp_path):
    assert "nowhere.toml: does not exist" in refused(tmp_path / "nowhere.toml")
    assert refused(tmp_path) == f"{tmp_path}: is a folder; give the recipe file in it"
    assert "recipe.toml: is not TOML" in refused(write("name = "))
    latin = tmp_path / "latin.toml"
    latin.write_bytes('name = "é"'.encode("latin-1"))
    assert "latin.toml: is not TOML" in refused(latin)
    assert "below" in refused(tmp_path / "below" / "x.toml")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["exits.head=attention"],
            "exits.head: 'attention' is not a head for classification; "
            "set it to one of pooled, fastbert, linear, bert, distilbert",
        ),
        (
            ["distill.training.exit_shares=[0, 0]"],
            "distill.training.exit_shares: no share may be below 0, and one must be above 0; "
            "correct them, or leave it out",
        ),
        (
            ["task=qa", "distill.unlabelled=texts.jsonl"],
            "distill.unlabelled: texts alone are no input for qa; leave it out",
        ),
        (
            ["task=qa", "exits.head=pooled"],
            "exits.head: 'pooled' is not a head for qa; set it to one of attention, fastbert, linear",
        ),
        (
            ["task=qa", "qa.stride=317"],
            "qa.stride: leaves no room to move on; it must be below window - max_question - 3",
        ),
        (
            ["task=regression"],
            "exits.uncertainty: 'entropy' is not a measure for regression; set it to change",
        ),
        (
            ["exits.uncertainty=change"],
            "exits.uncertainty: 'change' is not a measure for classification; "
            "set it to entropy or max_probability or margin or patience or agreement",
        ),
        (
            ["task=regression", "exits.uncertainty=change", "exits.temperature_scaling=true"],
            "exits.temperature_scaling: a regression has no probabilities to calibrate; set it to false",
        ),
        (
            ["task=regression", "exits.uncertainty=change", "exits.head=attention"],
            "exits.head: 'attention' is not a head for regression; "
            "set it to one of pooled, fastbert, linear, bert, distilbert",
        ),
        (
            ["export.coreml_precision=int4", "export.coreml_target=iOS17"],
            "export.coreml_precision: int4 needs iOS18, but export.coreml_target is iOS17; "
            "set that to iOS18, or this to int8",
        ),
        (
            ["export.coreml_precision=palette6", "export.coreml_target=iOS16"],
            "export.coreml_precision: palette6 needs iOS18, but export.coreml_target is iOS16; "
            "set that to iOS18, or this to palette6-per-tensor",
        ),
        (
            ["export.coreml_precision=int8-a8", "export.coreml_target=iOS16"],
            "export.coreml_precision: int8-a8 needs iOS17, but export.coreml_target is iOS16; "
            "set that to iOS17, or this to int8",
        ),
        (
            ["export.coreml_precision=mixed"],
            "export.coreml_precision: mixed follows quantize.scheme=mixed, but that is int8; "
            "set that to mixed, or this to int8",
        ),
        (
            ["export.coreml_precision=int8-a8", "export.executorch_coreml=true"],
            "export.executorch_coreml: computes in float16 and has no int8-a8; "
            "set it to false, or export.coreml_precision to another scheme",
        ),
        (
            [
                "export.coreml_precision=mixed",
                "quantize.scheme=mixed",
                "quantize.budget_mb=9",
                "export.executorch_coreml=true",
            ],
            "export.executorch_coreml: computes in float16 and has no mixed; "
            "set it to false, or export.coreml_precision to another scheme",
        ),
        (
            ["export.max_length=64"],
            "export.max_length: 64 is below the longest input, 128; set it to at least that, or data.max_length lower",
        ),
        (
            ["task=qa", "export.max_length=256"],
            "export.max_length: 256 is below the longest input, 384; set it to at least that, or qa.window lower",
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(write, overrides, line):
    path = write(MINIMAL)
    assert refused(path, *overrides) == f"{path}: {line}"


def test_values_that_just_fit_each_other_are_accepted(write):
    load_recipe(write(MINIMAL), ["task=qa", "qa.stride=316"])  # 384 - 64 - 3 = 317
    load_recipe(write(MINIMAL), ["data.max_length=64", "export.max_length=64"])
    for weights, target in (
        ("int4", "iOS18"),
        ("palette4", "iOS18"),
        ("palette4-per-tensor", "iOS16"),
        ("int8", "iOS16"),
        ("int8-a8", "iOS17"),
    ):
        load_recipe(write(MINIMAL), [f"export.coreml_precision={weights}", f"export.coreml_target={target}"])
    load_recipe(write(MINIMAL), ["qa.stride=383"])  # classification does not read [qa]


def test_known_keys_are_those_that_a_recipe_accepts():
    keys = known_keys(Recipe)
    assert {"name", "data.train", "teacher.training.epochs", "exits.training.epochs", "bench.speeds"} <= set(keys)
    assert "data" not in keys and len(keys) == len(set(keys))


def test_every_key_has_a_description():
    def check(section, prefix=""):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                check(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, prefix + name

    check(Recipe)


def test_a_recipe_cannot_be_changed(write):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write(MINIMAL)).seed = 3


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_a_recipe_accepts_every_head_and_measure_that_exists(write, task):
    from pipeline.model.heads import HEADS
    from pipeline.model.uncertainty import MEASURES
    from pipeline.tasks import get_task

    path = write(MINIMAL)
    assert set(get_task(task).heads) == set(HEADS[get_task(task).head_family])
    for kind in get_task(task).heads:
        assert load_recipe(path, [f"task={task}", f"exits.head={kind}"]).head == kind
    for measure in MEASURES:
        assert load_recipe(path, [f"task={task}", f"exits.uncertainty={measure}"]).exits.uncertainty == measure
    assert get_task("regression").heads == get_task("classification").heads
    line = refused(path, "exits.uncertainty=entropie")
    assert "exits.uncertainty" in line and all(f"'{measure}'" in line for measure in MEASURES)
