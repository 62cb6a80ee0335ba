"""Heads, uncertainty and segments: a bundle's programs give the same answers as the trained model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.model.encoder import Encoder, EncoderConfig, attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.heads import build_head
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias, normalised_entropy, span_uncertainty
from pipeline.tasks import get_task

CONFIG = EncoderConfig(
    vocab_size=200, hidden_size=64, layers=3, heads=4, intermediate_size=128, max_positions=64, layer_norm_eps=1e-6
)
# Regression uses classification's heads.
KINDS = [(task, kind) for task in ("classification", "qa") for kind in get_task(task).heads]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Changes weights and biases so that answers are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_((0.15 if parameter.ndim > 1 else 0.3) * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_inputs(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ids, mask and answer mask, [batch, length] each."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(max(lengths))
    mask = (positions < torch.tensor(lengths)[:, None]).float()
    ids = torch.randint(0, CONFIG.vocab_size, mask.shape, generator=generator)
    return ids, mask, mask.bool() & (positions > 3)


def numpy_entropy(logits: np.ndarray) -> float:
    """Returns the entropy of one softmax over log(classes), computed by the definition in float64."""
    scores = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    p = scores / scores.sum()
    return float(-sum(q * math.log(q) for q in p if q > 0) / math.log(len(p)))


# Heads


@pytest.mark.parametrize(("task", "kind"), KINDS)
@torch.no_grad()
def test_a_head_gives_the_shape_of_its_task_and_ignores_padding(task, kind):
    head = randomise(build_head(task, kind, CONFIG, 5), seed=1)
    hidden = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(20) < torch.tensor([20, 8])[:, None]).float()
    logits = head(hidden, attention_bias(mask))
    assert logits.shape == ((2, 5) if task == "classification" else (2, 20, 2))
    alone = head(hidden[1:, :8], attention_bias(torch.ones(1, 8)))
    padded = logits[1:] if task == "classification" else logits[1:, :8]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def fastbert_by_torch(head, hidden: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Computes FastBERT's student classifier with torch's attention. padding: [batch, length], true at padding."""
    width = head.out.in_features
    attention = torch.nn.MultiheadAttention(width, 1, batch_first=True)
    attention.in_proj_weight.copy_(torch.cat([head.query.weight, head.key_value.weight]))
    attention.in_proj_bias.copy_(torch.cat([head.query.bias, head.key_value.bias]))
    attention.out_proj.load_state_dict(head.mix.state_dict())
    narrow = torch.tanh(head.narrow(hidden))
    seen, _ = attention(narrow, narrow, narrow, key_padding_mask=padding)
    return head.out(torch.tanh(head.dense(seen)))


@pytest.mark.parametrize("task", ["classification", "qa"])
@torch.no_grad()
def test_the_fastbert_head_equals_torchs_attention_between_linear_layers(task):
    head = randomise(build_head(task, "fastbert", CONFIG, 5), seed=1)
    hidden = torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(20) < torch.tensor([20, 8, 1])[:, None]).float()
    expected = fastbert_by_torch(head, hidden, mask == 0)
    logits = head(hidden, attention_bias(mask))
    torch.testing.assert_close(logits, expected[:, 0] if task == "classification" else expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "qa"])
@torch.no_grad()
def test_a_new_fastbert_heads_logits_have_a_usable_variance(task):
    """Hidden states after a layer norm have variance 1, and the narrow layers should about keep it."""
    torch.manual_seed(0)
    logits = build_head(task, "fastbert", CONFIG.with_(hidden_size=384), 3)(
        torch.randn(64, 30, 384), torch.zeros(64, 1, 30)
    )
    assert 0.05 < float(logits.std()) < 2


def test_an_unknown_head_is_a_key_error():
    with pytest.raises(KeyError):
        build_head("qa", "pooled", CONFIG, 2)


@pytest.mark.parametrize("exits", [[], [1, 2], [2, 1, 3], [1, 1, 3], [1, 4]], ids=str)
def test_exit_layers_must_ascend_and_end_with_the_last_layer(exits):
    with pytest.raises(ValueError, match="must ascend and end with the last layer, 3"):
        ExitModel("qa", CONFIG, 2, "linear", exits)


# Uncertainty


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_normalised_entropy_equals_numpys(classes):
    logits = 3 * torch.randn(50, classes, generator=torch.Generator().manual_seed(classes))
    expected = [numpy_entropy(row) for row in logits.numpy()]
    np.testing.assert_allclose(normalised_entropy(logits).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("classes", [2, 7])
def test_normalised_entropy_ranges_from_0_to_1(classes, dtype):
    tolerance = 1e-6 if dtype is torch.float32 else 2e-3
    assert float(normalised_entropy(torch.full((classes,), 3.5, dtype=dtype))) == pytest.approx(1.0, abs=tolerance)
    one_hot = torch.zeros(classes, dtype=dtype)
    one_hot[0] = 50
    assert float(normalised_entropy(one_hot)) == pytest.approx(0.0, abs=1e-6)
    masked = torch.full((classes,), -1e4, dtype=dtype)
    masked[0] = 0
    assert float(normalised_entropy(masked)) == 0.0  # 0 * -inf would be NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_span_uncertainty_equals_numpys_over_the_answer_tokens(dtype):
    generator = torch.Generator().manual_seed(0)
    start, end = ((2 * torch.randn(4, 30, generator=generator)).to(dtype) for _ in range(2))
    mask = torch.rand(4, 30, generator=generator) < 0.5
    mask[:, :2] = True
    uncertainty = span_uncertainty(start, end, answer_bias(mask).to(dtype))
    expected = [
        (numpy_entropy(start[row][mask[row]].numpy()) + numpy_entropy(end[row][mask[row]].numpy())) / 2
        for row in range(4)
    ]
    np.testing.assert_allclose(uncertainty.float().numpy(), expected, atol=1e-5 if dtype is torch.float32 else 5e-3)


def test_span_uncertainty_ignores_padding_and_tokens_outside_the_answer_mask():
    start, end = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(3)).unbind(0)
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[:, 4:9] = True
    expected = span_uncertainty(start, end, answer_bias(mask))
    loud = torch.where(mask, start, torch.tensor(40.0))
    torch.testing.assert_close(span_uncertainty(loud, end, answer_bias(mask)), expected)

    def pad(tensor):
        return torch.cat([tensor, torch.full((1, 50), 9).to(tensor.dtype)], dim=1)

    longer = torch.cat([mask, torch.zeros(1, 50, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(span_uncertainty(pad(start), pad(end), answer_bias(longer)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("candidates", [1, 2, 40])
def test_span_uncertainty_ranges_from_0_to_1(candidates, dtype):
    mask = torch.zeros(1, 60, dtype=torch.bool)
    mask[:, 5 : 5 + candidates] = True
    bias = answer_bias(mask).to(dtype)
    flat, peak = torch.zeros(1, 60, dtype=dtype), torch.zeros(1, 60, dtype=dtype)
    peak[:, 5] = 60
    assert float(span_uncertainty(flat, flat, bias)) == pytest.approx(0.0 if candidates == 1 else 1.0, abs=3e-3)
    assert float(span_uncertainty(peak, peak, bias)) == pytest.approx(0.0, abs=1e-6)


# Segments


@pytest.mark.parametrize("exits", [(1, 2, 3), (2, 3), (3,)], ids=str)
@pytest.mark.parametrize(("task", "kind"), KINDS)
@torch.no_grad()
def test_programs_equal_the_model(task, kind, exits):
    torch.manual_seed(1)
    model = randomise(ExitModel(task, CONFIG, 3 if task == "classification" else 2, kind, exits))
    model.temperatures = [1.0, 2.0, 0.5][: len(exits)]
    programs = Programs.of(model)
    assert len(programs.segments) == len(exits)
    for lengths in ([2], [23], [30, 7, 19]):
        ids, mask, answers = make_inputs(lengths)
        answers[:, :2] = True  # at least one token of every row may answer
        bias = answer_bias(answers)
        expected = model(ids, mask)
        outputs = programs(ids, attention_bias(mask), None if task == "classification" else bias)
        real = mask.bool()
        for output, logits, layer, temperature in zip(outputs, expected.logits, exits, model.temperatures, strict=True):
            torch.testing.assert_close(output[0][real], expected.hidden[layer][real], rtol=1e-5, atol=1e-5)
            if task == "classification":
                uncertainty = [numpy_entropy(row / temperature) for row in logits.numpy()]
                torch.testing.assert_close(output[1], logits, rtol=1e-5, atol=2e-5)
            else:
                spans = torch.stack(output[1:3], dim=-1)
                torch.testing.assert_close(spans[real], logits[real], rtol=1e-5, atol=2e-5)
                uncertainty = [
                    np.mean([numpy_entropy(row[allowed, side].numpy() / temperature) for side in (0, 1)])
                    if allowed.sum() > 1
                    else 0.0
                    for row, allowed in zip(logits, answers)
                ]
            np.testing.assert_allclose(output[-1].numpy(), uncertainty, atol=1e-4)


@torch.no_grad()
def test_programs_share_no_layer_weights_with_the_model():
    model = randomise(ExitModel("classification", CONFIG, 2, "linear", (1, 3)))
    before = {name: value.clone() for name, value in model.encoder.layers.state_dict().items()}
    for segment in Programs.of(model).segments:
        for parameter in segment.layers.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.layers.state_dict().items())


def test_logits_are_computed_from_the_exits_layer():
    model = randomise(ExitModel("qa", CONFIG, 2, "linear", (2, 3)))
    ids, mask, _ = make_inputs([11])
    with torch.no_grad():
        output = model(ids, mask)
        assert torch.equal(output.logits[0], model.heads[0].out(output.hidden[2]))
        assert torch.equal(output.logits[1], model.heads[1].out(output.hidden[3]))
        assert torch.equal(output.hidden[3], Encoder.forward(model.encoder, ids, mask)[-1])
