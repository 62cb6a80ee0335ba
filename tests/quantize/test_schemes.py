"""What a scheme does to the weights, the embeddings and the answers of programs."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.schemes import linear_layers
from pipeline.support.errors import UserError
from quantize.embeddings import HalfEmbedding, Int4Embedding, Int8Embedding
from quantize.schemes import LINEAR_ARITHMETIC, apply_scheme, named_linears

LENGTH = 12


def programs(hidden: int = 64, labels: int = 3) -> Programs:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=200, hidden_size=hidden, layers=2, heads=4, intermediate_size=2 * hidden, max_positions=32
    )
    model = ExitModel("classification", config, labels, "pooled", (1, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return Programs.of(model)


def logits(model: Programs, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([outputs[1] for outputs in model(ids, torch.zeros(1, 1, ids.shape[1]))])


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 200, (20, 1, LENGTH), generator=torch.Generator().manual_seed(1))


def test_int8_gives_nearly_the_same_answers_and_leaves_the_model_as_it_is(ids):
    full = programs()
    before = copy.deepcopy(full.state_dict())
    quantized = apply_scheme(full, "int8", "int8")
    expected, actual = (torch.stack([logits(model, row) for row in ids]) for model in (full, quantized))
    assert not torch.equal(expected, actual)
    assert float((actual - expected).norm() / expected.norm()) < 0.05
    assert float((actual.argmax(-1) == expected.argmax(-1)).float().mean()) > 0.9
    for name, value in full.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


# Relative errors of the logits, measured 0.0003, 0.006, 0.010, 0.006 and 0.13. A scheme that rounds twice, or not at
# all, is outside.
@pytest.mark.parametrize(
    ("scheme", "least", "most"),
    [
        ("fp16", 1e-5, 1e-3),
        ("int8-weight-only", 1e-3, 0.02),
        ("int8", 2e-3, 0.03),
        ("int8-a16", 1e-3, 0.02),
        ("int4", 0.03, 0.3),
    ],
)
def test_the_error_of_a_scheme_is_in_its_range(ids, scheme, least, most):
    full = programs()
    quantized = apply_scheme(full, scheme, "fp32")
    expected, actual = (torch.stack([logits(model, row) for row in ids]) for model in (full, quantized))
    assert least < float((actual - expected).norm() / expected.norm()) < most


@pytest.mark.parametrize("scheme", LINEAR_ARITHMETIC)
def test_a_batch_gives_the_same_as_its_inputs_one_by_one(ids, scheme):
    quantized = apply_scheme(programs(), scheme, "int4")
    batch = quantized(ids[:, 0], torch.zeros(len(ids), 1, LENGTH))
    together = torch.stack([outputs[1] for outputs in batch], dim=1)
    alone = torch.stack([logits(quantized, row) for row in ids])
    # A difference in the last bit may round an input to the next step.
    assert float((together - alone).norm() / alone.norm()) < (
        0.02 if linear_layers(scheme).activation_bits == 8 else 1e-3
    )


def test_each_matrix_can_have_a_scheme_of_its_own(ids):
    full = programs()
    mixed = apply_scheme(full, {"layers.0.qkv": "int8", "layers.1.ffn_in": "int4", "layers.1.ffn_out": "fp16"}, "fp32")
    for name in named_linears(full):
        *path, last = name.split(".")
        layer = mixed.segments[int(path[1])].layers[0]
        changed = name in ("layers.0.qkv", "layers.1.ffn_in", "layers.1.ffn_out")
        assert (
            type(getattr(layer, last)) is not nn.Linear or type(getattr(layer, last).weight) is not nn.Parameter
        ) == changed
    alone = apply_scheme(full, {"layers.1.ffn_in": "int4"}, "fp32")
    assert torch.equal(logits(alone, ids[0])[0], logits(full, ids[0])[0])  # the first exit comes before
    assert not torch.equal(logits(alone, ids[0])[1], logits(full, ids[0])[1])


def test_int4_weights_are_the_nearest_of_16_steps_in_their_group():
    weight = programs().segments[1].layers[0].qkv.weight.detach()
    quantized = apply_scheme(programs(), "int4", "fp32").segments[1].layers[0].qkv.weight
    assert quantized.scale.dtype == torch.bfloat16  # as XNNPACK stores them; only the program would round others
    groups, values = (matrix.reshape(-1, 32).float().numpy() for matrix in (weight, quantized.dequantize()))
    step = np.abs(groups).max(axis=1, keepdims=True) / 7.5
    assert float((np.abs(values - groups) / step).max()) < 0.55  # a bfloat16 scale is off by 1/256, eight steps out
    assert all(len(np.unique(group)) <= 16 for group in values) and max(len(np.unique(group)) for group in values) > 10


def test_fp32_is_an_equal_and_independent_copy(ids):
    full = programs()
    copied = apply_scheme(full, "fp32", "fp32")
    torch.testing.assert_close(logits(copied, ids[0]), logits(full, ids[0]), rtol=0, atol=0)
    with torch.no_grad():
        full.segments[0].head.out.bias.add_(1.0)
    assert not torch.equal(logits(copied, ids[0]), logits(full, ids[0]))


def test_int8_weights_are_the_nearest_of_255_steps_per_output_channel():
    full = programs()
    weight = full.segments[1].layers[0].qkv.weight.detach()
    quantized = apply_scheme(full, "int8", "fp32").segments[1].layers[0].qkv.weight
    step = weight.abs().amax(dim=1, keepdim=True) / 127.5
    values = quantized.dequantize()
    # The largest value of a row lies half a step above the largest int8.
    assert float(((values - weight).abs() / step).max()) <= 0.5 + 1e-4
    integers = values / step
    assert float((integers - integers.round()).abs().max()) < 1e-3
    assert len(integers.round().unique()) > 200


@pytest.mark.parametrize(("hidden", "quantized"), [(64, False), (256, True)])
def test_only_large_layers_of_a_head_are_quantized(hidden, quantized):
    full = programs(hidden=hidden)
    head = apply_scheme(full, "int8", "fp32").segments[0].head
    assert (type(head.value.weight) is not type(full.segments[0].head.value.weight)) == quantized  # hidden x 128
    assert type(head.out.weight) is type(full.segments[0].head.out.weight)  # 512 x 3


def test_int8_embeddings_are_within_half_a_step_of_their_row():
    table = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 1, 50)[:, None]
    table[7] = 0.0
    embedding = Int8Embedding(table)
    ids = torch.arange(50)[None]
    step = table.abs().amax(dim=1, keepdim=True) / 127
    assert embedding.table.dtype == torch.int8
    assert bool(((embedding(ids)[0] - table).abs() <= 0.5001 * step).all())
    assert embedding(ids)[0, 7].tolist() == [0.0] * 64


def test_int4_embeddings_pack_the_nearest_of_16_steps_two_to_a_byte():
    """The reference computes the steps in numpy."""
    table = torch.randn(50, 96, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 1, 50)[:, None]
    table[7] = 0.0
    embedding = Int4Embedding(table)
    assert embedding.table.dtype == torch.uint8 and embedding.table.shape == (50, 48)
    groups = table.numpy().reshape(50, 3, 32)
    scale = (
        np.maximum(np.abs(groups).max(axis=2, keepdims=True) / 7.5, np.finfo(np.float16).tiny)
        .astype(np.float16)
        .astype(np.float32)
    )
    expected = np.clip(np.round(groups / scale), -8, 7) * scale
    np.testing.assert_array_equal(embedding(torch.arange(50)[None])[0].numpy().reshape(50, 3, 32), expected)
    assert np.abs(expected - groups).max() <= 0.51 * scale.max()


def test_fp16_embeddings_are_rounded_once():
    table = torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(
        HalfEmbedding(table)(torch.arange(50)[None])[0], table.numpy().astype(np.float16).astype(np.float32)
    )


def test_positions_are_float16_unless_the_table_is_float32(ids):
    full = programs()
    table = full.embed.embeddings.position.weight
    for embeddings, dtype in (
        ("fp32", torch.float32),
        ("int4", torch.float16),
        ("int8", torch.float16),
        ("fp16", torch.float16),
    ):
        quantized = apply_scheme(full, "fp32", embeddings).embed.embeddings
        assert quantized.position.weight.dtype is dtype and torch.equal(quantized.position.weight, table.to(dtype))
        assert quantized(ids[0]).dtype is torch.float32


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"quantize.scheme: int4 has groups of 32, and layers.0.qkv is 48 wide"):
        apply_scheme(programs(hidden=48), "int4", "fp32")
    with pytest.raises(UserError, match=r"quantize.embeddings: int4 has groups of 32, and embeddings.word is 48 wide"):
        apply_scheme(programs(hidden=48), "fp32", "int4")


@pytest.mark.parametrize(
    ("scheme", "embeddings", "field"), [("int7", "fp32", "quantize.scheme"), ("fp32", "int7", "quantize.embeddings")]
)
def test_an_unknown_scheme_is_named_with_the_known_ones(scheme, embeddings, field):
    with pytest.raises(UserError, match=rf"{field}: 'int7' .*fp32, fp16, int8"):
        apply_scheme(programs(), scheme, embeddings)


def test_quantizing_prints_nothing():
    code = (
        "import torch; from pipeline.model.encoder import EncoderConfig\n"
        "from pipeline.model.exit_model import ExitModel\n"
        "from pipeline.model.segments import Programs; from quantize.schemes import apply_scheme\n"
        "sizes = {'vocab_size': 20, 'hidden_size': 32, 'intermediate_size': 32, 'max_positions': 8}\n"
        "config = EncoderConfig(layers=1, heads=2, **sizes)\n"
        "apply_scheme(Programs.of(ExitModel('classification', config, 2, 'linear', [1])), 'int8', 'int8')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
