"""Hugging Face checkpoints load whole, heads included, or are refused with one line that names file and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.data.labels import LabelRange
from pipeline.distill.finetune import build_teacher
from pipeline.model.pretrained import load_pretrained
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly

transformers = import_quietly("transformers")

VOCAB, LONGEST = 300, 64
BERT = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": LONGEST, "layer_norm_eps": 1e-5,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": LONGEST,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_model(name: str, **options):
    """Returns a small Hugging Face model whose biases and norms are not at their initial values."""
    config = (
        transformers.DistilBertConfig(**DISTILBERT, **options)
        if name.startswith("Distil")
        else (transformers.BertConfig(**BERT, **options))
    )
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"word{index}" for index in range(VOCAB - 5)]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


@pytest.fixture(scope="module")
def bert():
    return build_model("BertModel")


@pytest.fixture
def folder(bert, tmp_path):
    """A complete checkpoint folder for a test to break."""
    return save(bert, tmp_path / "checkpoint")


def make_recipe(task: str) -> Recipe:
    return Recipe.model_validate({"name": "test", "task": task, "teacher": {"training": {"epochs": 0}}})


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        ("BertForSequenceClassification", "classification", 3),
        ("DistilBertForSequenceClassification", "classification", 3),
        ("BertForQuestionAnswering", "qa", 2),
        ("DistilBertForQuestionAnswering", "qa", 2),
    ],
)
@torch.no_grad()
def test_fine_tuned_logits_equal_hugging_faces(tmp_path, name, task, labels, token_types):
    theirs = build_model(name, num_labels=labels)
    pretrained = load_pretrained(str(save(theirs, tmp_path)), task)
    recipe = make_recipe(task)
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"token_types": token_types})})
    ours = build_teacher(pretrained, recipe, tuple("012"[:labels])).eval()
    ids = torch.randint(5, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([20, 4, 11])[:, None]).float()
    logits = ours(ids, mask).logits[-1]
    output = theirs(input_ids=ids, attention_mask=mask.long())
    if task == "classification":
        torch.testing.assert_close(logits, output.logits, rtol=1e-5, atol=1e-5)
    else:
        expected = torch.stack([output.start_logits, output.end_logits], dim=-1)
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_fine_tuned_regression_head_predicts_shares_of_the_label_range(tmp_path):
    """Hugging Face's head with one label predicts in the data's unit, so its weights are rescaled."""
    theirs = build_model("BertForSequenceClassification", num_labels=1)
    recipe = make_recipe("classification").model_copy(update={"task": "regression"})
    label_range = LabelRange(minimum=-1, maximum=4)
    pretrained = load_pretrained(str(save(theirs, tmp_path)), "regression")
    ours = build_teacher(pretrained, recipe, label_range).eval()
    ids = torch.randint(5, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    shares = ours(ids, torch.ones(3, 20)).logits[-1]
    torch.testing.assert_close(label_range.value(shares), theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_label_names_are_read_with_the_classifier(tmp_path):
    names = {0: "no", 1: "perhaps", 2: "yes"}
    ids = {name: label for label, name in names.items()}
    model = build_model("BertForSequenceClassification", id2label=names, label2id=ids)
    folder = save(model, tmp_path)
    assert load_pretrained(str(folder), "classification").labels == ("no", "perhaps", "yes")
    assert load_pretrained(str(folder), "qa").labels == ()


def test_zero_epochs_without_a_fitting_head_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="teacher.training.epochs.*needs a qa head for 2 labels and has none"):
        build_teacher(load_pretrained(str(folder), "qa"), make_recipe("qa"), ("start", "end"))
    three = save(build_model("BertForSequenceClassification", num_labels=3), tmp_path / "three")
    with pytest.raises(UserError, match="for 2 labels and has one for 3 labels"):
        build_teacher(load_pretrained(str(three), "classification"), make_recipe("classification"), ("0", "1"))


def same_encoder(first, second) -> bool:
    return first.encoder.keys() == second.encoder.keys() and all(
        torch.equal(first.encoder[name], second.encoder[name]) for name in first.encoder
    )


def test_gamma_and_beta_of_old_files_load(folder):
    expected = load_pretrained(str(folder), "classification")
    state = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    save_file(old, folder / "model.safetensors")
    assert same_encoder(load_pretrained(str(folder), "classification"), expected)


@pytest.mark.parametrize("prefix", ["", "bert."], ids=["bare", "prefixed"])
def test_a_pytorch_bin_file_loads(folder, bert, prefix):
    expected = load_pretrained(str(folder), "classification")
    (folder / "model.safetensors").unlink()
    torch.save({prefix + name: tensor for name, tensor in bert.state_dict().items()}, folder / "pytorch_model.bin")
    assert same_encoder(load_pretrained(str(folder), "classification"), expected)


def test_half_precision_weights_become_float32(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "model.safetensors")
    assert {tensor.dtype for tensor in load_pretrained(str(folder), "qa").encoder.values()} == {torch.float32}


def test_a_config_without_layer_norm_eps_gets_berts_default(folder):
    """Hugging Face's BertConfig does the same; the small BERTs of google-research have such files."""
    edit(folder, layer_norm_eps=None)
    assert load_pretrained(str(folder), "qa").config.layer_norm_eps == 1e-12


@pytest.mark.parametrize(
    ("options", "lowercase"), [({"do_lower_case": False}, False), ({"do_lower_case": True}, True), (None, True)]
)
def test_lowercasing_is_read_from_the_tokenizers_options(folder, options, lowercase):
    (folder / "tokenizer_config.json").unlink()
    if options is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
    assert load_pretrained(str(folder), "qa").tokenizer.lowercase is lowercase


# Broken checkpoints.


def edit(folder: Path, **changes) -> None:
    """Changes config.json. None removes a key."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.attention.self.key.bias"]
    save_file(state, folder / "model.safetensors")


def truncate_bin(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    truncate(folder / "pytorch_model.bin")


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "is missing"]),
    "cut config": (lambda f: truncate(f / "config.json"), ["config.json", "JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), ["config.json"]),
    "config without a key": (lambda f: edit(f, hidden_size=None), ["config.json", "hidden_size", "is missing"]),
    "config with text for a number": (lambda f: edit(f, num_hidden_layers="two"), ["config.json", "num_hidden_layers"]),
    "heads do not divide the width": (lambda f: edit(f, num_attention_heads=5), ["config.json", "5"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "pytorch_model.bin"]),
    "cut weights": (lambda f: truncate(f / "model.safetensors"), ["model.safetensors", "not a whole"]),
    "cut bin": (truncate_bin, ["pytorch_model.bin", "not a whole"]),
    "tensor missing": (drop_tensor, ["encoder.layer.1.attention.self.key.bias", "is missing"]),
    "shape": (lambda f: edit(f, intermediate_size=256), ["intermediate.dense.weight", "(128, 64)", "(256, 64)"]),
    "no embeddings": (lambda f: save_file({"a": torch.zeros(1)}, f / "model.safetensors"), ["no word embeddings"]),
    "no vocabulary": (lambda f: (f / "vocab.txt").unlink(), ["has neither tokenizer.json nor vocab.txt"]),
    "short vocabulary": (
        lambda f: (f / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n"),
        ["vocab.txt", "4 entries", str(VOCAB)],
    ),
    "another architecture": (lambda f: edit(f, model_type="roberta"), ["config.json", "model_type", "roberta"]),
    "another activation": (lambda f: edit(f, hidden_act="relu"), ["config.json", "hidden_act", "relu"]),
    "relative positions": (lambda f: edit(f, position_embedding_type="relative_key"), ["position_embedding_type"]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_error_names_the_broken_file(folder, fault):
    damage, words = BROKEN[fault]
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_pretrained(str(folder), "classification")
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    for word in words:
        assert word in line
