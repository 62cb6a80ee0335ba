"""A recipe is typed and checked once; whatever is wrong with it is one line with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import Recipe, known_keys, load_recipe, parse_value
from pipeline.support.errors import UserError

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.toml"))
LEAST = 'name = "test"\ntask = "classification"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


def test_recipes_are_shipped():
    assert {path.stem for path in RECIPES} >= {"sst2", "squad", "sts-b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.head != "default"
    assert path.read_text().startswith(f"# pocketbert run recipes/{path.name}")  # opens with the command that runs it


def test_the_least_recipe_has_defaults(write):
    recipe = load_recipe(write(LEAST))
    assert (recipe.data.train, recipe.teacher.weights, recipe.head) == ("demo", "minilm", "pooled")
    assert load_recipe(write(LEAST), ["task=qa"]).head == "attention"
    assert load_recipe(write(LEAST), ["exits.head=linear"]).head == "linear"


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ('[data]\ntrian = "a.tsv"', "data.trian", "data.train"),
        ("[teacher.training]\nepoch = 1", "teacher.training.epoch", "teacher.training.epochs"),
        ("[distill]\ntemprature = 1", "distill.temprature", "distill.temperature"),
        ("seeds = 1", "seeds", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(write, text, wrong, near):
    path = write(LEAST + text)
    assert refused(path) == f"{path}: {wrong}: unknown key; the nearest known one is {near}"


def test_an_unknown_key_on_the_command_line(write):
    assert refused(write(LEAST), "data.trian=a.tsv").endswith(
        "data.trian: unknown key; the nearest known one is data.train"
    )


@pytest.mark.parametrize(
    ("override", "read"),
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
def test_overrides_are_typed(write, override, read):
    assert read(load_recipe(write(LEAST), [override]))


def test_the_last_override_wins_over_the_file(write):
    recipe = load_recipe(
        write(LEAST + "seed = 1\n[data]\nmax_length = 64\n"), ["seed=2", "data.max_length=32", "seed=3"]
    )
    assert (recipe.seed, recipe.data.max_length) == (3, 32)


def test_values_are_toml_or_words():
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
        ("student.layers=3", "student.layers"),
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
    path = write(LEAST)
    assert refused(path, override).startswith(f"{path}: {key}: ")


def test_missing_keys_are_named(write):
    path = write('name = "test"\n')
    assert refused(path) == f"{path}: task: is required"


@pytest.mark.parametrize("override", ["seed", "=3", "", "data.train"])
def test_an_override_is_key_equals_value(write, override):
    assert refused(write(LEAST), override).startswith(f"--set {override!r} is not key=value")


def test_a_value_has_no_keys_below_it(write):
    assert refused(write(LEAST), "name.first=a") == "name.first: 'name' holds a value, it has no keys below it"


def test_files_that_are_no_recipe(write, tmp_path):
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
            "exits.head: 'attention' is no head for classification; take one of pooled, fastbert, linear, bert, distilbert",
        ),
        (
            ["distill.training.exit_shares=[0, 0]"],
            "distill.training.exit_shares: takes numbers of 0 or more, one of them above 0",
        ),
        (
            ["task=qa", "distill.unlabelled=texts.jsonl"],
            "distill.unlabelled: texts alone are no input for qa; leave it out",
        ),
        (
            ["task=qa", "exits.head=pooled"],
            "exits.head: 'pooled' is no head for qa; take one of attention, fastbert, linear",
        ),
        (
            ["task=qa", "qa.stride=317"],
            "qa.stride: leaves no room to move on; it must be below window - max_question - 3",
        ),
        (
            ["task=regression"],
            "exits.uncertainty: 'entropy' is no measure for regression; set it to change",
        ),
        (
            ["exits.uncertainty=change"],
            "exits.uncertainty: 'change' is no measure for classification; set it to entropy or max_probability or margin or patience or agreement",
        ),
        (
            ["task=regression", "exits.uncertainty=change", "exits.temperature_scaling=true"],
            "exits.temperature_scaling: a regression has no probabilities to calibrate; set it to false",
        ),
        (
            ["task=regression", "exits.uncertainty=change", "exits.head=attention"],
            "exits.head: 'attention' is no head for regression; take one of pooled, fastbert, linear, bert, distilbert",
        ),
        (
            ["export.coreml_precision=int4", "export.coreml_target=iOS17"],
            "export.coreml_precision: int4 needs iOS18, export.coreml_target is iOS17; set that to iOS18, or take int8",
        ),
        (
            ["export.coreml_precision=palette6", "export.coreml_target=iOS16"],
            "export.coreml_precision: palette6 needs iOS18, export.coreml_target is iOS16; set that to iOS18, or take palette6-per-tensor",
        ),
        (
            ["export.coreml_precision=int8-a8", "export.coreml_target=iOS16"],
            "export.coreml_precision: int8-a8 needs iOS17, export.coreml_target is iOS16; set that to iOS17, or take int8",
        ),
        (
            ["export.coreml_precision=mixed"],
            "export.coreml_precision: mixed is what quantize.scheme=mixed found, and that is int8; set that to mixed, or take int8",
        ),
        (
            ["export.coreml_precision=int8-a8", "export.executorch_coreml=true"],
            "export.executorch_coreml: computes in float16 and has no int8-a8; set it to false, or take another export.coreml_precision",
        ),
        (
            [
                "export.coreml_precision=mixed",
                "quantize.scheme=mixed",
                "quantize.budget_mb=9",
                "export.executorch_coreml=true",
            ],
            "export.executorch_coreml: computes in float16 and has no mixed; set it to false, or take another export.coreml_precision",
        ),
        (["export.max_length=64"], "export.max_length: 64 is below the longest input, 128"),
        (["task=qa", "export.max_length=256"], "export.max_length: 256 is below the longest input, 384"),
    ],
)
def test_choices_must_fit_each_other(write, overrides, line):
    path = write(LEAST)
    assert refused(path, *overrides) == f"{path}: {line}"


def test_choices_that_just_fit(write):
    load_recipe(write(LEAST), ["task=qa", "qa.stride=316"])  # 384 - 64 - 3 = 317
    load_recipe(write(LEAST), ["data.max_length=64", "export.max_length=64"])
    for weights, target in (
        ("int4", "iOS18"),
        ("palette4", "iOS18"),
        ("palette4-per-tensor", "iOS16"),
        ("int8", "iOS16"),
        ("int8-a8", "iOS17"),
    ):
        load_recipe(write(LEAST), [f"export.coreml_precision={weights}", f"export.coreml_target={target}"])
    load_recipe(write(LEAST), ["qa.stride=383"])  # nobody reads [qa] for classification


def test_known_keys_are_all_that_a_recipe_takes():
    keys = known_keys(Recipe)
    assert {"name", "data.train", "teacher.training.epochs", "exits.training.epochs", "bench.speeds"} <= set(keys)
    assert "data" not in keys and len(keys) == len(set(keys))


def test_a_recipe_cannot_be_changed(write):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write(LEAST)).seed = 3


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_every_head_and_measure_that_exists_is_offered(write, task):
    from pipeline.model.heads import HEADS
    from pipeline.model.uncertainty import MEASURES
    from pipeline.tasks import get_task

    path = write(LEAST)
    assert set(get_task(task).heads) == set(HEADS[get_task(task).head_family])
    for kind in get_task(task).heads:
        assert load_recipe(path, [f"task={task}", f"exits.head={kind}"]).head == kind
    for measure in MEASURES:
        assert load_recipe(path, [f"task={task}", f"exits.uncertainty={measure}"]).exits.uncertainty == measure
    assert get_task("regression").heads == get_task("classification").heads
    line = refused(path, "exits.uncertainty=entropie")
    assert "exits.uncertainty" in line and all(f"'{measure}'" in line for measure in MEASURES)
