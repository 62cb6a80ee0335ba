"""BERT's and DistilBERT's masked-LM heads load into one, which scores as Hugging Face's do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.distill.pretrain import teacher_of
from pipeline.model.checkpoint import load_pretrained
from pipeline.model.encoder import EncoderConfig
from pipeline.model.mlm import MlmHead
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


def saved(name: str, folder, **options):
    """A checkpoint folder, and Hugging Face's model that wrote it, with weights that are not the initial ones."""
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
    (folder / "vocab.txt").write_text(
        "".join(
            f"{word}\n"
            for word in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{at}" for at in range(VOCAB - 5))]
        )
    )
    return folder, model


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining", "DistilBertForMaskedLM"])
@torch.no_grad()
def test_logits_are_hugging_faces(tmp_path, name):
    folder, theirs = saved(name, tmp_path)
    ours = teacher_of(load_pretrained(str(folder), "classification"))
    ids = torch.randint(5, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([20, 6, 13])[:, None]).float()
    output = theirs(input_ids=ids, attention_mask=mask.long())
    expected = output.prediction_logits if name == "BertForPreTraining" else output.logits
    chosen = mask.bool() & (torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.4)
    given = ours.logits(ours.encoder(ids, mask)[-1], chosen)
    assert given.shape == (int(chosen.sum()), VOCAB)
    torch.testing.assert_close(given, expected[chosen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "BertForSequenceClassification"])
def test_a_checkpoint_without_a_head_has_none(tmp_path, name):
    folder, _ = saved(name, tmp_path)
    assert load_pretrained(str(folder), "classification").mlm_head is None


@pytest.mark.parametrize("name", ["BertForMaskedLM", "DistilBertForMaskedLM"])
def test_a_decoder_that_is_not_tied_is_no_head(tmp_path, name):
    folder, _ = saved(name, tmp_path)
    state = load_file(folder / "model.safetensors")
    decoder = "cls.predictions.decoder.weight" if name.startswith("Bert") else "vocab_projector.weight"
    words = next(tensor for key, tensor in state.items() if key.endswith("word_embeddings.weight"))
    save_file(state | {decoder: words.clone()}, folder / "model.safetensors")
    assert load_pretrained(str(folder), "qa").mlm_head is not None
    save_file(state | {decoder: words + 1}, folder / "model.safetensors")
    assert load_pretrained(str(folder), "qa").mlm_head is None


def test_a_misshapen_head_is_named(tmp_path):
    folder, _ = saved("BertForMaskedLM", tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"cls.predictions.bias": torch.zeros(7)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"cls\.predictions\.bias: has shape \(7,\), config\.json says \(120,\)"):
        load_pretrained(str(folder), "qa")


def test_the_decoder_is_tied_to_the_words_it_is_given():
    head = MlmHead(EncoderConfig(vocab_size=30, hidden_size=16, heads=2))
    words = torch.randn(30, 16, requires_grad=True)
    head(torch.randn(4, 16), words).sum().backward()
    assert words.grad.abs().sum() > 0
    assert not any(parameter.shape == (30, 16) for parameter in head.parameters())
