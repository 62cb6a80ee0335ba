"""BERT's and DistilBERT's masked-LM heads load into one class, which scores words as Hugging Face's do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.distill.pretrain import teacher_of
from pipeline.model.encoder import EncoderConfig
from pipeline.model.mlm import MlmHead
from pipeline.model.pretrained import load_pretrained
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly

transformers = import_quietly("transformers")

VOCAB = 120
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": 40,
}


def save_checkpoint(name: str, folder, **options):
    """Writes a small Hugging Face model to a checkpoint folder. Returns the folder and the model."""
    config = (
        transformers.DistilBertConfig(**DISTILBERT, **options)
        if name.startswith("Distil")
        else transformers.BertConfig(**BERT, **options)
    )
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(VOCAB - 5))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder, model


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining", "DistilBertForMaskedLM"])
@torch.no_grad()
def test_logits_equal_hugging_faces(tmp_path, name):
    folder, theirs = save_checkpoint(name, tmp_path)
    ours = teacher_of(load_pretrained(str(folder), "classification"))
    ids = torch.randint(5, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([20, 6, 13])[:, None]).float()
    output = theirs(input_ids=ids, attention_mask=mask.long())
    expected = output.prediction_logits if name == "BertForPreTraining" else output.logits
    chosen = mask.bool() & (torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.4)
    logits = ours.logits(ours.encoder(ids, mask)[-1], chosen)
    assert logits.shape == (int(chosen.sum()), VOCAB)
    torch.testing.assert_close(logits, expected[chosen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "BertForSequenceClassification"])
def test_a_checkpoint_without_a_masked_lm_head_gives_none(tmp_path, name):
    folder, _ = save_checkpoint(name, tmp_path)
    assert load_pretrained(str(folder), "classification").mlm_head is None


@pytest.mark.parametrize("name", ["BertForMaskedLM", "DistilBertForMaskedLM"])
def test_a_head_with_an_untied_decoder_is_ignored(tmp_path, name):
    folder, _ = save_checkpoint(name, tmp_path)
    state = load_file(folder / "model.safetensors")
    decoder = "cls.predictions.decoder.weight" if name.startswith("Bert") else "vocab_projector.weight"
    words = next(tensor for key, tensor in state.items() if key.endswith("word_embeddings.weight"))
    save_file(state | {decoder: words.clone()}, folder / "model.safetensors")
    assert load_pretrained(str(folder), "qa").mlm_head is not None
    save_file(state | {decoder: words + 1}, folder / "model.safetensors")
    assert load_pretrained(str(folder), "qa").mlm_head is None


def test_a_misshapen_head_is_named(tmp_path):
    folder, _ = save_checkpoint("BertForMaskedLM", tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"cls.predictions.bias": torch.zeros(7)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"cls\.predictions\.bias: has shape \(7,\), config\.json says \(120,\)"):
        load_pretrained(str(folder), "qa")


def test_the_decoder_uses_the_given_word_embeddings():
    head = MlmHead(EncoderConfig(vocab_size=30, hidden_size=16, heads=2))
    words = torch.randn(30, 16, requires_grad=True)
    head(torch.randn(4, 16), words).sum().backward()
    assert words.grad.abs().sum() > 0
    assert not any(parameter.shape == (30, 16) for parameter in head.parameters())
