"""The bundle of a quantized checkpoint answers as Hugging Face's model does, and each refusal is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.bundle.manifest import read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.data.features import encode_text
from pipeline.data.windows import make_windows
from pipeline.run.checkpoint import quantize_checkpoint
from pipeline.run.checkpoint_source import build_recipe, load_with_head, read_rounding_texts, read_texts
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly

SIZES = {
    "bert": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
    }
}
SIZES["distilbert"] = {"dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 96, "max_position_embeddings": 64}


def save(folder: Path, kind: str, head: str, vocab: Path, **config) -> Path:
    """Writes a checkpoint with random weights, as Hugging Face does."""
    transformers = import_quietly("transformers")
    names = {"bert": "Bert", "distilbert": "DistilBert"}
    tokens = len(vocab.read_text().splitlines())
    torch.manual_seed(0)
    model = getattr(transformers, names[kind] + head)(
        getattr(transformers, names[kind] + "Config")(vocab_size=tokens, initializer_range=0.3, **SIZES[kind], **config)
    )
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text(vocab.read_text())
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_vocab) -> Path:
    names = {"id2label": {0: "low", 1: "middle", 2: "high"}, "label2id": {"low": 0, "middle": 1, "high": 2}}
    return save(
        tmp_path_factory.mktemp("weights") / "classifier",
        "distilbert",
        "ForSequenceClassification",
        tiny_vocab,
        **names,
    )


@pytest.fixture(scope="module")
def answerer(tmp_path_factory, tiny_vocab) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "answerer", "bert", "ForQuestionAnswering", tiny_vocab)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A file of texts with the numbers of their labels."""
    random = np.random.default_rng(0)
    lines = [
        " ".join(random.choice(["ba", "de", "fi", "go", "lu", "man"], size=random.integers(3, 20))) + f"\t{number % 3}"
        for number in range(40)
    ]
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


@torch.no_grad()
def test_a_bert_answers_as_hugging_face_does(answerer, tmp_path):
    """Question and passage have different token types, which the program finds by the separator."""
    result = quantize_checkpoint(
        str(answerer), ["quantize.scheme=fp32", "quantize.embeddings=fp32", "data.dev_limit=16"], tmp_path / "bundle"
    )
    assert result.relative_error == 0.0 and result.same_answer == 1.0 and result.parity_db > 100
    model = import_quietly("transformers").BertForQuestionAnswering.from_pretrained(answerer).eval()
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.segments == 1 and not bundle.manifest.speeds
    runner, options = Runner(bundle), bundle.manifest.qa
    windows = make_windows(
        bundle.tokenizer,
        "ba de fi?",
        "lu man go ba de lu. fi man",
        options.window,
        options.stride,
        options.max_question,
        False,
    )
    for window in windows:
        expected = model(torch.tensor(window.ids)[None], token_type_ids=torch.tensor(window.type_ids)[None])
        without_types = model(torch.tensor(window.ids)[None])
        actual = runner.run_all(window.ids, window.answer_mask)[0].logits
        for ours, theirs, without in zip(
            actual, (expected.start_logits, expected.end_logits), (without_types.start_logits, without_types.end_logits)
        ):
            np.testing.assert_allclose(ours, theirs[0], atol=1e-3)
            assert np.abs(ours - without[0].numpy()).max() > 0.05
    assert 0 <= runner.answer("ba de fi?", "lu man go ba de lu. fi man").start


@torch.no_grad()
def test_a_distilbert_in_int4_is_close_to_hugging_faces_and_smaller(classifier, texts, tmp_path):
    out = tmp_path / "bundle"
    result = quantize_checkpoint(
        str(classifier), ["quantize.scheme=int4", "quantize.embeddings=int4", f"data.dev={texts}"], out
    )
    model = import_quietly("transformers").DistilBertForSequenceClassification.from_pretrained(classifier).eval()
    runner = Runner(bundle := Bundle.open(out))
    ids = [
        encode_text(bundle.tokenizer, line.split("\t")[0], None, 64).ids for line in texts.read_text().splitlines()[1:]
    ]
    expected = np.stack([model(torch.tensor(row)[None]).logits[0].numpy() for row in ids])
    actual = np.stack([runner.run_all(row)[0].logits[0] for row in ids])
    error = np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean())
    assert 0.01 < error < 0.4 and error == pytest.approx(result.relative_error, rel=0.1)
    assert (actual.argmax(1) == expected.argmax(1)).mean() == pytest.approx(result.same_answer, abs=0.05)
    assert (result.texts, result.rounding_texts) == (40, 0)  # all texts are compared, none is left to round by
    assert result.loss is not None and result.divergence > 0
    manifest = read_manifest(out)
    assert (manifest.labels, manifest.label_values) == (["low", "middle", "high"], ["0", "1", "2"])
    assert runner.classify("ba de fi").label in manifest.labels
    assert (
        result.file_bytes < result.fp32_bytes / 2
        and sum(result.parts.values())
        == sum(file.bytes for file in manifest.files) + (out / "manifest.json").stat().st_size
    )
    with pytest.raises(UserError, match="bundle: is already there"):
        quantize_checkpoint(str(classifier), [], out)


def test_int4_is_rounded_by_texts_that_are_not_compared(classifier, texts, tmp_path):
    pretrained, task = load_with_head(str(classifier))

    def chosen(*settings: str) -> tuple[set[str], set[str]]:
        recipe = build_recipe(pretrained, task, settings)
        compared, _ = read_texts(recipe, pretrained)
        return {text.text for text in compared}, {text.text for text in read_rounding_texts(recipe, compared)}

    compared, others = chosen(f"data.dev={texts}", "data.dev_limit=20")
    assert (len(compared), len(others)) == (20, 20) and not compared & others
    assert len(chosen(f"data.dev={texts}", "data.dev_limit=20", "quantize.rounding_texts=16")[1]) == 16
    assert len(chosen(f"data.dev={texts}", "data.dev_limit=30")[1]) == 0  # 10 are too few to round by
    assert len(chosen(f"data.dev={texts}", "data.dev_limit=20", "quantize.rounding_texts=0")[1]) == 0
    train = tmp_path / "train.tsv"
    train.write_text(
        "text\tlabel\n" + "\n".join(f"go {'lu ' * count}fi\t9" for count in range(40))
    )  # labels are not read, so an unknown one does not matter
    assert all(text.startswith("go ") for text in chosen(f"data.dev={texts}", f"data.train={train}")[1])
    compared, others = chosen()  # the embedded texts
    assert len(others) == 128 and not compared & others
    settings = ["quantize.scheme=int4", f"data.dev={texts}", f"data.train={train}"]
    assert quantize_checkpoint(str(classifier), settings, tmp_path / "bundle").rounding_texts == 40


def refused(weights: Path, *settings: str, lines: int = 1) -> str:
    """Returns the message with which a checkpoint is refused; nothing may be left of its bundle."""
    out = weights.parent / "never"
    with pytest.raises(UserError) as error:
        quantize_checkpoint(str(weights), list(settings), out)
    assert not out.exists() and not out.with_name("never.partial").exists()
    assert len(str(error.value).splitlines()) == lines
    return str(error.value)


def changed(folder: Path, source: Path, config: dict | None = None, **tensors) -> Path:
    """Copies a checkpoint and changes entries of its config or tensors; None removes a tensor."""
    shutil.copytree(source, folder)
    if config:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | config))
    state = load_file(folder / "model.safetensors") | tensors
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")
    return folder


def test_a_checkpoint_that_cannot_be_quantized_is_refused_in_one_line(
    classifier, answerer, texts, tiny_vocab, tmp_path
):
    assert "config.json: model_type: is 'roberta'; only bert and distilbert checkpoints are supported" in refused(
        changed(tmp_path / "roberta", classifier, {"model_type": "roberta"})
    )
    headless = changed(tmp_path / "headless", answerer, **{"qa_outputs.weight": None, "qa_outputs.bias": None})
    assert "has no head for classification or question answering" in refused(headless)
    name = "distilbert.transformer.layer.0.ffn.lin1.weight"
    eight = {name: torch.zeros(96, 64, dtype=torch.int8)}
    assert f"model.safetensors: {name}: is int8; give weights in float32" in refused(
        changed(tmp_path / "int8", classifier, **eight)
    )
    one = save(tmp_path / "one", "distilbert", "ForSequenceClassification", tiny_vocab, num_labels=1)
    assert "has one output, a regression" in refused(one)
    narrow = changed(tmp_path / "narrow", answerer, **{"qa_outputs.weight": torch.zeros(2, 32)})
    assert "has a head that does not fit its config" in refused(narrow)


def test_settings_that_do_not_fit_are_refused_in_one_line(classifier, answerer, texts, tmp_path):
    assert "65 is more than the 64 positions" in refused(classifier, "export.max_length=65", "data.max_length=64")
    both = refused(classifier, "data.max_length=65", "export.max_length=65", lines=3)  # two problems, said at once
    assert "data.max_length: 65 is more than" in both and "export.max_length: 65 is more than" in both
    both = refused(answerer, "qa.window=100", "export.max_length=100", lines=3)
    assert "qa.window: 100 is more than the 64 positions" in both
    assert "quantize.scheme: Input should be" in refused(classifier, "quantize.scheme=int3")
    assert "none.tsv: " in refused(classifier, "data.dev=none.tsv")
    assert "15 texts to compare on, at least 16 are needed" in refused(
        classifier, f"data.dev={texts}", "data.dev_limit=15"
    )
    assert "quantize.budget_mb: 0.001 MB cannot be met: the smallest mix is" in refused(
        classifier,
        "quantize.scheme=mixed",
        "quantize.budget_mb=0.001",
        "quantize.embeddings=mixed",
        f"data.dev={texts}",
        "data.dev_limit=20",
    )
    assert "quantize.budget_points: needs labelled texts" in refused(
        classifier, "quantize.scheme=mixed", "quantize.budget_points=1", "data.dev_limit=20"
    )


def test_python_m_quantize_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quantize", str(tmp_path / "nowhere.toml")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere.toml: does not exist" in done.stderr
