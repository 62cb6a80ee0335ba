"""An ablation trains each variant once, shares the stages that do not differ, and continues after a kill."""

from __future__ import annotations

import json
import random

import pytest

from pipeline import cli
from pipeline.recipe import Recipe, load_recipe
from pipeline.report.ablation import ablation_table
from pipeline.run.ablate import ablate, make_variants
from pipeline.run.engine import Run
from pipeline.run.table import STAGES
from pipeline.support.quiet import import_quietly
from pipeline.support.workspace import Workspace


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, tiny_vocab):
    """A random BERT of 3 layers with its masked-LM head, a corpus, and a task: which of two words occurs."""
    transformers = import_quietly("transformers")
    folder = tmp_path_factory.mktemp("ablation")
    words = tiny_vocab.read_text()
    transformers.set_seed(0)
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
    }
    transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=len(words.split("\n")) - 1, **sizes)
    ).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text(words)
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgl" for b in "aeiou"]
    rows = []
    for row in range(150):
        text = chance.choices(syllables, k=chance.randint(3, 8))
        text[chance.randrange(len(text))] = ("tu", "va")[row % 2]
        rows.append(f"{' '.join(text)}\t{row % 2}")
    (folder / "data.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    (folder / "corpus.txt").write_text("\n".join(row.split("\t")[0] + "." for row in rows))
    training = "training = { epochs = 1, batch_size = 16, learning_rate = 1e-3 }"
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
name = "tiny"
task = "classification"
precision = "fp32"
[data]
train = "{folder}/data.tsv"
dev = "{folder}/data.tsv"
calibration = 50
max_length = 32
[pretrain]
corpus = "{folder}/corpus.txt"
length = 16
{training}
[teacher]
weights = "{folder}/bert"
{training}
[student]
layers = [0, 2]
[distill]
attention_weight = 0.5
{training}
[exits]
exact = 0.1
balanced = 0.15
fast = 0.2
{training}
[export]
max_length = 32
"""
    )
    return recipe


def test_the_variants_are_the_terms_that_the_recipe_uses():
    def names(**sections):
        return [
            variant.name for variant in make_variants(Recipe.model_validate({"name": "t", "task": "qa", **sections}))
        ]

    assert names() == ["full", "without-soft", "without-hard", "random"]
    assert names(distill={"hidden_weight": 1, "attention_weight": 1, "training": {"exit_weight": 0.5}})[3:] == [
        "without-hidden",
        "without-attention",
        "without-exits",
        "random",
    ]
    assert names(distill={"soft_weight": 0}) == ["full", "random"]  # the only term left cannot be taken away
    assert names(distill={"training": {"epochs": 0}}, student={"initialise": "random"}) == ["full"]
    with_corpus = [
        "full",
        "pretrain-without-soft",
        "pretrain-without-mlm",
        "pretrain-without-hidden",
        "without-soft",
        "without-hard",
        "without-pretraining",
        "random",
    ]
    assert names(pretrain={"corpus": "books"}) == with_corpus
    assert names(pretrain={"corpus": "books", "soft_weight": 0, "hidden_weight": 0})[1] == "without-soft"


def test_a_variant_differs_in_one_key():
    recipe = Recipe.model_validate(
        {"name": "t", "task": "classification", "pretrain": {"corpus": "books"}, "distill": {"hidden_weight": 1}}
    )
    expected = {
        "pretrain-without-soft": ("pretrain", "soft_weight", 0), "pretrain-without-mlm": ("pretrain", "mlm_weight", 0),
        "pretrain-without-hidden": ("pretrain", "hidden_weight", 0), "without-soft": ("distill", "soft_weight", 0),
        "without-hard": ("distill", "hard_weight", 0), "without-hidden": ("distill", "hidden_weight", 0),
        "without-pretraining": ("pretrain", "corpus", None), "random": ("student", "initialise", "random"),
    }  # fmt: skip
    for variant in make_variants(recipe)[1:]:
        section, key, value = expected.pop(variant.name)
        raw = recipe.model_dump()
        raw[section][key] = value
        assert variant.recipe.model_dump() == raw
    assert not expected


@pytest.fixture(scope="module")
def finished(recipe_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, ablate(load_recipe(recipe_file), out)


def test_every_variant_is_measured_on_dev(recipe_file, finished):
    out, ablation = finished
    assert json.loads((out / "ablation" / "ablation.json").read_text()) == ablation.model_dump()
    assert ablation.metric == "accuracy" and ablation.variants[0].name == "full" and ablation.variants[0].delta == 0
    assert {row.name for row in ablation.variants} == {
        variant.name for variant in make_variants(load_recipe(recipe_file))
    }
    full = json.loads((out / "exits" / "metrics.json").read_text())
    for row in ablation.variants:
        folder = out if row.name == "full" else out / "ablation" / row.name
        assert row.metrics["accuracy"] == json.loads((folder / "exits" / "metrics.json").read_text())["accuracy"]
        assert row.delta == pytest.approx(row.metrics["accuracy"] - full["accuracy"])
        assert len(row.exits) == 2 and row.exits[-1] == row.metrics["accuracy"]


def test_stages_that_do_not_differ_are_not_trained_again(finished):
    out, ablation = finished
    for row in ablation.variants[1:]:
        made = {path.name for path in (out / "ablation" / row.name).iterdir() if not path.name.startswith(".")}
        assert made == {"student", "exits"} | (
            {"pretrained"} if row.name.startswith("pretrain-") or row.name == "random" else set()
        )


def test_a_second_ablation_trains_nothing(recipe_file, finished, monkeypatch):
    out, ablation = finished
    monkeypatch.setattr("pipeline.support.workspace.Workspace.run", lambda *_: pytest.fail("a stage was built again"))
    assert ablate(load_recipe(recipe_file), out) == ablation


def test_a_killed_ablation_continues(recipe_file, finished, tmp_path, monkeypatch):
    recipe = load_recipe(
        recipe_file, ["pretrain.mlm_weight=0", "pretrain.hidden_weight=0", "distill.attention_weight=0"]
    )
    built, run = [], Run.run_up_to

    def kill_before_the_last(self, last):
        if self.base is not None and self.recipe.student.initialise == "random":
            raise KeyboardInterrupt
        run(self, last)

    monkeypatch.setattr(Run, "run_up_to", kill_before_the_last)
    with pytest.raises(KeyboardInterrupt):
        ablate(recipe, tmp_path)
    assert not (tmp_path / "ablation" / "ablation.json").exists()
    monkeypatch.setattr(Run, "run_up_to", run)
    build = Workspace.run

    def build_and_note(self, stage, key, work):
        built.append((self.root.name, stage))
        return build(self, stage, key, work)

    monkeypatch.setattr(Workspace, "run", build_and_note)
    names = [row.name for row in ablate(recipe, tmp_path).variants]
    assert names == ["full", "without-soft", "without-hard", "without-pretraining", "random"]
    assert set(built) == {("random", STAGES[stage].folder) for stage in ("pretrain", "distill", "exits")}


def test_the_table_and_the_command(recipe_file, finished, monkeypatch, capsys):
    out, ablation = finished
    table = ablation_table(ablation)
    assert table.row_count == len(ablation.variants)
    monkeypatch.setattr("sys.argv", ["pocketbert", "ablate", str(recipe_file), "--out", str(out), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out) == ablation.model_dump()
    monkeypatch.setattr("sys.argv", ["pocketbert", "ablate", str(recipe_file), "--out", str(out)])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert all(row.change.split()[-1] in printed for row in ablation.variants) and "delta" in printed
