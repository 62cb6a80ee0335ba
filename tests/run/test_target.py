"""A command's target is a recipe, a built-in recipe or a data file; a data file's recipe stays in the run's folder."""

import pytest

from pipeline.recipe import load_recipe
from pipeline.run.engine import open_run
from pipeline.run.target import is_data
from pipeline.support.errors import UserError
from tests.data.tables import as_csv, intent_rows

# One layer that learns from the labels alone: enough to see that the stages work on the file.
TINY = (
    "teacher.training.epochs=0.2", "student.layers=[0]", "distill.soft_weight=0", "distill.keep_targets=false",
    "distill.training.epochs=2", "exits.training.epochs=1", "export.coreml=false",
)  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table in the folder `bank`, beside the working folder's `runs`."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bank" / "train.csv"
    file.parent.mkdir()
    file.write_text(as_csv(intent_rows()), encoding="utf-8")
    return "bank/train.csv"


def test_targets_are_told_apart(table, tmp_path):
    assert is_data(table) and is_data("demo") and is_data("missing.csv") and is_data("owner/name:train")
    assert not is_data("sst2") and not is_data("my.toml") and not is_data("recipes/sst2") and not is_data(tmp_path)
    with pytest.raises(UserError, match="missing.csv: there is no such file"):
        open_run("missing.csv")


def test_a_data_file_is_prepared_without_a_recipe(table, tmp_path):
    run = open_run(table)
    assert run.workspace.root.as_posix() == "runs/bank"
    run.run_up_to("prepare")
    texts = {part: [example.text for example in run.results.examples(part)] for part in ("train", "calibration", "dev")}
    assert len(texts["dev"]) > 60 and len(run.results.labels()) == 5
    assert not {text.casefold() for text in texts["dev"]} & {
        text.casefold() for text in (*texts["train"], *texts["calibration"])
    }
    # The kept recipe repeats the run: neither it nor the same command has anything to do.
    key = run.stage_key("report")
    assert open_run(table).stage_key("report") == key
    assert open_run("runs/bank/recipe.toml").stage_key("report") == key
    assert load_recipe("runs/bank/recipe.toml") == run.recipe


def test_an_edited_recipe_is_kept_and_an_untouched_one_follows_the_data(table, tmp_path, capsys):
    file = tmp_path / "runs" / "bank" / "recipe.toml"
    before = open_run(table).recipe
    (tmp_path / table).write_text(as_csv(intent_rows(1200)), encoding="utf-8")
    assert open_run(table).recipe.data.calibration > before.data.calibration
    file.write_text(file.read_text(encoding="utf-8").replace("max_length = 32", "max_length = 64"), encoding="utf-8")
    assert open_run(table).recipe.data.max_length == 64
    (tmp_path / table).write_text(as_csv(intent_rows(700)), encoding="utf-8")
    assert open_run(table).recipe.data.max_length == 64
    assert "was edited and is kept" in capsys.readouterr().err


def test_another_file_of_the_same_name_does_not_overwrite_a_run(table, tmp_path):
    open_run(table)
    other = tmp_path / "other" / "bank" / "train.csv"
    other.parent.mkdir(parents=True)
    other.write_text(as_csv(intent_rows(500)), encoding="utf-8")
    with pytest.raises(UserError, match="recipe.toml: is for the data bank/train.csv; give another folder with --out"):
        open_run(other)
    assert open_run(other, out=tmp_path / "elsewhere").recipe.data.train == str(other)


def test_settings_name_columns_and_override_the_proposal(table):
    run = open_run(table, ["data.label=Kanal", "exits.uncertainty=margin", "name=channels"], task="classification")
    assert (run.recipe.data.label, run.recipe.exits.uncertainty) == ("Kanal", "margin")
    assert (run.recipe.name, run.workspace.root.name) == ("channels", "channels")
    with pytest.raises(UserError, match="--task: 'tagging' is no task; give classification, regression, qa"):
        open_run(table, task="tagging")


def test_a_built_in_recipe_on_other_data_takes_neither_name_nor_labels_from_its_own(table, capsys):
    settings = [f"data.train={table}", "data.dev=split", "data.text=Kunden Nachricht", "data.label=Anliegen (neu)"]
    run = open_run("sst2", settings)
    assert (run.recipe.name, run.workspace.root.name, run.recipe.data.label_names) == ("bank", "bank", [])
    assert "the recipe's names (negative, positive) are those of other data" in capsys.readouterr().err
    named = open_run("sst2", [*settings, "name=mine", 'data.label_names=["a", "b", "c", "d", "e"]']).recipe
    assert (named.name, named.data.label_names[0]) == ("mine", "a")
    assert open_run("sst2").recipe.name == "sst2" and open_run("sst2").recipe.data.label_names


def test_two_numbered_classes_keep_the_recipes_names_and_it_says_so(tmp_path, capsys):
    file = tmp_path / "mine.tsv"
    file.write_text("sentence\tlabel\ngood film\t1\nbad film\t0\n")
    recipe = open_run("sst2", [f"data.train={file}", f"data.dev={file}"], out=tmp_path / "out").recipe
    assert (recipe.name, recipe.data.label_names) == ("mine", ["negative", "positive"])
    assert "0 as negative, 1 as positive" in capsys.readouterr().err


@pytest.mark.timeout(3600)
def test_a_data_file_to_answers(table):
    from pipeline.bundle.opening import Bundle
    from pipeline.runtime.runner import Runner

    run = open_run(table, TINY)
    run.run_up_to("export")  # what follows only measures
    bundle = Bundle.open(run.path("export"))
    assert bundle.manifest.name == "bank"
    scores = run.results.metrics("quantize")
    assert scores["accuracy"] > 0.5  # five intents: chance is 0.2
    result = Runner(bundle).classify("I lost my card yesterday")
    assert result.label in ("balance", "broken", "card lost", "complaint", "transfer")
