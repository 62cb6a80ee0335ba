"""Folders of transformers 5, without vocab.txt, become bundles that answer as transformers does; others are refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bundle.manifest import read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.data.windows import make_windows
from pipeline.model import pretrained
from pipeline.run import checkpoint_source
from pipeline.run.checkpoint import quantize_checkpoint
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from tests.hugging_face import SIZES, demo_texts, save_checkpoint

CLASSIFIER, ANSWERER = "ForSequenceClassification", "ForQuestionAnswering"
# int8 weights and inputs with random weights of this size; a wrong token type or id gives far more.
MAX_RELATIVE_ERROR = 0.1


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    """Labelled sentences: what decides the label is their number, so the random model is right by chance."""
    path = tmp_path_factory.mktemp("data") / "sentences.tsv"
    lines = [f"{text}\t{number % 2}" for number, text in enumerate(demo_texts()[:600])]
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "head", "lowercase"),
    [
        ("Bert", CLASSIFIER, True),
        ("Bert", ANSWERER, False),
        ("DistilBert", CLASSIFIER, False),
        ("DistilBert", ANSWERER, True),
    ],
)
def test_int8_answers_are_those_of_transformers(tmp_path, kind, head, lowercase):
    folder, out = save_checkpoint(tmp_path / "weights", kind, head, lowercase), tmp_path / "bundle"
    assert not (folder / "vocab.txt").exists()
    result = quantize_checkpoint(str(folder), ["data.dev_limit=16"], out)
    transformers = import_quietly("transformers")
    model = getattr(transformers, kind + head).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    runner = Runner(bundle := Bundle.open(out))
    assert bundle.manifest.tokenizer.lowercase is lowercase and bundle.manifest.must_understand == []
    # Short, since a bundle cuts long questions and transformers does not.
    pairs = [(" ".join(first.split()[:3]), second) for first, second in zip(demo_texts()[:24], demo_texts()[24:48])]
    ours, theirs = [], []
    for first, second in pairs:
        inputs = tokenizer(first, second, return_tensors="pt", truncation=True, max_length=128)
        outputs = model(**inputs)
        ids, mask = inputs["input_ids"][0].tolist(), None
        if head == ANSWERER:
            options = bundle.manifest.qa
            window = make_windows(
                bundle.tokenizer, first, second, options.window, options.stride, options.max_question, False
            )[0]
            assert list(window.ids) == ids
            mask = window.answer_mask
            theirs += [outputs.start_logits[0], outputs.end_logits[0]]
        else:
            theirs.append(outputs.logits[0])
        ours += list(runner.run_all(ids, mask)[0].logits)
    expected, actual = np.concatenate(theirs), np.concatenate(ours)
    error = np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean())
    assert error < MAX_RELATIVE_ERROR and result.relative_error < MAX_RELATIVE_ERROR
    same = np.mean([mine.argmax() == int(other.argmax()) for mine, other in zip(ours, theirs)])
    assert same >= 0.9
    assert (result.score_before is None) == (head == CLASSIFIER)  # the embedded sentences have other labels
    command = shlex.split(result.next_command)
    assert command[:3] == ["pocketbert", "predict", str(out)]
    assert command[3] == ("--question" if head == ANSWERER else "--text")


def test_unusual_options_of_the_tokenizer_go_into_the_bundle(tmp_path, sentences):
    folder = save_checkpoint(tmp_path / "weights", "Bert", CLASSIFIER)
    for name, entry in (("tokenizer.json", "normalizer"), ("tokenizer_config.json", None)):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (content[entry] if entry else content)["strip_accents"] = False
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    quantize_checkpoint(str(folder), [f"data.dev={sentences}", "data.dev_limit=16"], tmp_path / "bundle")
    raw = json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert raw["tokenizer"]["strip_accents"] is False and "handle_chinese_chars" not in raw["tokenizer"]
    assert (raw["format_minor"], raw["must_understand"]) == (2, ["tokenizer.strip_accents"])
    theirs = import_quietly("transformers").AutoTokenizer.from_pretrained(folder)
    text = "Café, ñandú"
    assert Bundle.open(tmp_path / "bundle").tokenizer.encode_ids([text]) == [
        theirs(text, add_special_tokens=False)["input_ids"]
    ]


def test_speeds_are_calibrated_on_a_file_and_the_command_says_what_they_do(tmp_path, sentences):
    sizes = {"Bert": {"num_hidden_layers": 2}, "DistilBert": {"n_layers": 2}}["Bert"]
    folder = save_checkpoint(tmp_path / "weights", "Bert", CLASSIFIER, **sizes)
    settings = [
        f"data.calibration={sentences}",
        "data.max_length=32",
        "export.max_length=32",
        "exits.training.epochs=1",
        *(f"exits.{name}=0.3" for name in ("exact", "balanced", "fast")),
    ]
    result = quantize_checkpoint(str(folder), settings, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.segments == 2 and manifest.model.exit_layers == [1, 2]
    assert set(manifest.speeds) == {"exact", "balanced", "fast"}
    speed = manifest.speeds["exact"]
    assert speed.max_loss == 0.3 and speed.delta == 0.1 and speed.metric == "accuracy"
    assert 200 < speed.examples <= 300  # one half of the file; the other half trained the exits
    assert manifest.provenance["calibration"] == "sentences.tsv"
    assert "/" not in " ".join(manifest.provenance.values())  # no folders of this machine
    assert [outcome.speed for outcome in result.speeds] == ["full", "exact", "balanced", "fast"]
    assert result.score_after == result.speeds[0].score
    assert result.score_before == pytest.approx(result.score_after + result.loss, abs=0.02)
    assert all(outcome.mean_ms > 0 for outcome in result.speeds)
    assert (
        result.bundle_bytes
        == sum(file.bytes for file in manifest.files) + (tmp_path / "bundle" / "manifest.json").stat().st_size
    )


def test_core_ml_is_written_and_verified_where_it_is_asked_for(tmp_path, sentences):
    pytest.importorskip("coremltools")
    folder = save_checkpoint(tmp_path / "weights", "Bert", CLASSIFIER)
    settings = [
        f"data.dev={sentences}",
        "data.dev_limit=16",
        "export.coreml=true",
        "export.coreml_buckets=[16]",
        "export.coreml_layout=ane",
        "export.max_length=32",
    ]
    result = quantize_checkpoint(str(folder), settings, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert result.backends == ["coreml", "executorch"] and result.checks > 4
    assert {program.lengths[0] for program in manifest.programs if program.backend == "coreml"} == {16}
    assert (tmp_path / "bundle" / "coreml").is_dir()


def refused(folder: Path, *settings: str) -> str:
    """Returns the one line with which a checkpoint is refused."""
    with pytest.raises(UserError) as error:
        quantize_checkpoint(str(folder), list(settings), folder.parent / "never")
    assert "\n" not in str(error.value) and not (folder.parent / "never").exists()
    return str(error.value)


OTHER_MODELS = {
    "RobertaForSequenceClassification": ({}, "model_type: is 'roberta'; only bert and distilbert checkpoints are"),
    "ModernBertForSequenceClassification": ({"pad_token_id": 0}, "model_type: is 'modernbert'; only bert and"),
    "BertForTokenClassification": ({}, "architectures: is BertForTokenClassification, which gives a label to every"),
    "DistilBertForTokenClassification": ({}, "is DistilBertForTokenClassification, which gives a label to every token"),
    "BertForMaskedLM": ({}, "is BertForMaskedLM, which fills in masked words"),
    "DistilBertModel": ({}, "is DistilBertModel, which is an encoder without a head"),
    "BertForSequenceClassification": ({"num_labels": 1}, "has one output, a regression"),
    "DistilBertForSequenceClassification": (
        {"problem_type": "multi_label_classification"},
        "gives several labels at once",
    ),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_refused_before_weights_and_tokenizer_are_read(tmp_path, monkeypatch, name):
    transformers = import_quietly("transformers")
    options, words = OTHER_MODELS[name]
    model = getattr(transformers, name)
    small = SIZES["DistilBert"] if name.startswith("Distil") else SIZES["Bert"]
    model(model.config_class(vocab_size=20, **small, **options)).save_pretrained(tmp_path / "weights")

    def fail(*_: object) -> None:
        raise AssertionError("the refusal must come before this is read")

    monkeypatch.setattr(pretrained, "read_weights", fail)
    monkeypatch.setattr(pretrained, "read_tokenizer", fail)
    line = refused(tmp_path / "weights")
    assert words in line and "config.json" in line


def test_settings_that_a_checkpoint_cannot_follow_are_refused(tmp_path, sentences):
    folder = save_checkpoint(tmp_path / "weights", "DistilBert", CLASSIFIER)
    assert "data.calibration: is 500; for a checkpoint name a file" in refused(folder, "data.calibration=500")
    assert "exits: without calibration examples there is one exit" in refused(folder, "exits.fast=0.1")
    assert "distill: a checkpoint is not trained further" in refused(folder, "distill.temperature=3")
    assert "student.layers: a checkpoint keeps its layers" in refused(folder, "student.layers=[0]")
    unlabelled = tmp_path / "texts.tsv"
    unlabelled.write_text("text\nva bene\n" * 3)
    assert "label" in refused(folder, f"data.calibration={unlabelled}")
    other = tmp_path / "other.tsv"
    other.write_text(sentences.read_text().replace("\t1\n", "\t7\n"))
    assert "the label '0' is not the checkpoint's; write all labels as LABEL_0, LABEL_1, or as numbers" in refused(
        folder, f"data.calibration={other}"
    )


def test_the_exit_heads_learn_nothing_from_the_calibration_texts(tmp_path, sentences):
    folder = save_checkpoint(tmp_path / "weights", "DistilBert", CLASSIFIER)
    loaded, task = checkpoint_source.load_with_head(str(folder))

    def read(*settings: str) -> checkpoint_source.CalibrationData:
        recipe = checkpoint_source.build_recipe(loaded, task, [f"data.calibration={sentences}", *settings])
        data = checkpoint_source.read_calibration_data(recipe)
        assert data is not None
        return data

    halves = read()
    assert not {text.text for text in halves.lessons} & {text.text for text in halves.examples}
    assert abs(len(halves.lessons) - len(halves.examples)) < 200
    train = tmp_path / "train.tsv"
    rows = sentences.read_text(encoding="utf-8").splitlines()
    train.write_text("\n".join([*rows[:50], "a text of its own, which nobody calibrates\t0"]) + "\n", encoding="utf-8")
    apart = read(f"data.train={train}")
    assert [text.text for text in apart.lessons] == ["a text of its own, which nobody calibrates"]
    assert len(apart.examples) == 600 and apart.lessons[0].label is None
