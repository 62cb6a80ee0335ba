"""The pages in a bundle are true to it, hold no path of this machine, and their Python runs."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pipeline.bundle.manifest import read_manifest
from pipeline.export.documents import (
    DataPart,
    TrainingFacts,
    code,
    licence_of,
    shown_source,
    shown_words,
    write_documents,
)
from pipeline.recipe import Recipe

TASKS = pytest.mark.parametrize("name", ["tiny_classifier", "tiny_regressor", "tiny_qa"])


def written(bundle, manifest, training=None, **recipe):
    exits = {"uncertainty": manifest.uncertainty}
    recipe = Recipe.model_validate({"name": manifest.name, "task": manifest.task, "exits": exits, **recipe})
    write_documents(bundle, manifest, recipe, training)
    return (bundle / "USE.md").read_text(encoding="utf-8"), (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")


@TASKS
def test_a_bundle_explains_itself(name, request):
    tiny = request.getfixturevalue(name)
    assert {"USE.md", "MODEL_CARD.md"} <= {entry.path for entry in read_manifest(tiny.path).files}
    use = (tiny.path / "USE.md").read_text(encoding="utf-8")
    for words in (tiny.manifest.name, "model.pte", "vocab.txt", "slice BUNDLE --target android", "segment_k("):
        assert words in use
    for label in tiny.manifest.labels:
        assert f"`{label}`" in use
    for speed in tiny.manifest.speeds.values():
        assert ", ".join(map(str, speed.thresholds)) in use
    card = (tiny.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert sections == [
        "Model description", "Intended uses & limitations", "Training and evaluation data", "Training procedure",
        "Evaluation results", "Speeds and their promises", "Sizes", "Licence",
    ]  # fmt: skip
    assert "loses at most 1 point, with probability 90 %" in card and "| none |" in card
    assert str(tiny.path) not in use + card


@TASKS
def test_the_python_of_the_page_runs(name, request, tmp_path, monkeypatch, capsys):
    pocketbert = pytest.importorskip("pocketbert")
    if not hasattr(pocketbert, "load"):
        pytest.skip("this checkout has no Python API yet")
    tiny = request.getfixturevalue(name)
    (python,) = re.findall(r"```python\n(.*?)```", (tiny.path / "USE.md").read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(tiny.path, tmp_path / "BUNDLE")
    monkeypatch.chdir(tmp_path)
    exec(compile(python, "USE.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_card_has_data_and_scores_without_folders(tiny_classifier, tmp_path):
    shutil.copytree(tiny_classifier.path, tmp_path / "bundle")
    training = TrainingFacts(
        [DataPart("training", shown_source("/home/somebody/secret/train.csv"), 12_345)],
        {"teacher": {"accuracy": 0.91234}, "student": {"accuracy": None}},
    )
    data = {"train": "/home/somebody/secret/train.csv"}
    use, card = written(
        tmp_path / "bundle", tiny_classifier.manifest, training, data=data, teacher={"weights": "/opt/models/mine"}
    )
    assert "`train.csv`, 12,345 examples" in card and "| teacher | 0.9123 |" in card and "| student | – |" in card
    assert "/home" not in use + card and "/opt" not in use + card
    assert "unknown: see the checkpoint, `mine`" in card


@TASKS
def test_a_bundle_without_speeds_explains_itself_too(name, request, tmp_path):
    """A checkpoint that was quantized as it stands has none."""
    tiny = request.getfixturevalue(name)
    shutil.copytree(tiny.path, tmp_path / "bundle")
    manifest = tiny.manifest.model_copy(
        update={"speeds": {}, "provenance": {"relative_error": "0.02 on 5 texts of /home/me/dev.tsv"}}
    )
    use, card = written(tmp_path / "bundle", manifest)
    assert 'speed="full"' in use and "no calibrated speeds" in use and "every input runs all layers" in card
    assert "against float32: 0.02 on 5 texts of dev.tsv." in card


def test_the_pages_are_the_same_every_time(tiny_qa, tmp_path):
    shutil.copytree(tiny_qa.path, tmp_path / "bundle")
    assert written(tmp_path / "bundle", tiny_qa.manifest) == written(tmp_path / "bundle", tiny_qa.manifest)


@pytest.mark.parametrize(
    ("card", "config", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model\n", {}, "mit"),
        ("# A model without metadata\n", {"license": "apache-2.0"}, "apache-2.0"),
        ("---\nlicense: [a, b]\n---\n", {"license": 5}, "unknown"),
        ("---\nlicense: |\n  mit\n  # Injected\n---\n", {}, "unknown"),
        ("---\n: : {\n---\n", {}, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_the_licence_is_what_the_checkpoint_says(card, config, licence, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert licence_of(str(tmp_path)) == licence


def test_the_offline_weights_have_their_licence():
    assert licence_of("minilm") == "Apache-2.0" and licence_of("somebody/on-the-hub") == "unknown"


def test_sources_are_shown_without_folders(tmp_path):
    assert shown_source("organisation/model") == "organisation/model" and shown_source("demo") == "demo"
    assert shown_source(str(tmp_path)) == tmp_path.name and shown_source("~/data/train.tsv") == "train.tsv"
    assert shown_words("0.02 on 5 texts of /home/me/dev.tsv") == "0.02 on 5 texts of dev.tsv"
    assert shown_words(r"of C:\Users\me\dev.tsv, 3/4") == "of dev.tsv, 3/4"


@pytest.mark.parametrize("label", ["a`b", "two\nlines", "a|b", "``", "<b>"])
def test_a_label_cannot_break_the_page(label):
    shown = code(label)
    fence = re.match("`+", shown).group()
    assert "\n" not in shown and shown.endswith(fence) and fence not in shown[len(fence) : -len(fence)]
