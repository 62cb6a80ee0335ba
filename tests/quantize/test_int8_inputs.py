"""Gains bring calibrated inputs into int8's range, change no product, and let one scale fit unequal channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.run.preconditions import check_calibration_size
from pipeline.support.errors import UserError
from quantize.int8_inputs import (
    STEP,
    Int8InputLinear,
    Int8Inputs,
    gains_from_ranges,
    input_gains,
    layer_linears,
    reciprocals,
    set_rounding,
    with_int8_inputs,
)

CONFIG = EncoderConfig(vocab_size=100, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=32)


@pytest.fixture(scope="module")
def programs() -> Programs:
    """Two layers whose hidden states have one channel a hundred times larger than the others, as in trained models."""
    torch.manual_seed(0)
    model = ExitModel("qa", CONFIG, 2, "attention", [1, 2]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
        for norm, readers in zip(
            (model.encoder.embeddings.norm, *(layer.ffn_norm for layer in model.encoder.layers[:1])),
            model.encoder.layers,
        ):
            norm.weight[7] = 100.0
            readers.qkv.weight[:, 7] /= 100.0
    return Programs.of(model)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    random = np.random.default_rng(0)
    sizes = random.integers(5, 30, 40)
    return [Item(random.integers(0, 100, size), np.zeros(size, int), None, np.arange(size) > 2) for size in sizes]


@torch.no_grad()
def hidden(programs: Programs, items: list[Item]) -> torch.Tensor:
    """Returns the last hidden states of all items, flattened."""
    runs = [
        programs(torch.from_numpy(item.ids)[None], torch.zeros(1, 1, len(item.ids)), torch.zeros(1, len(item.ids)))
        for item in items
    ]
    return torch.cat([run[-1][0].flatten() for run in runs])


def test_without_rounding_the_outputs_and_the_programs_stay_the_same(programs, items):
    before = {name: value.clone() for name, value in programs.state_dict().items()}
    gains = input_gains(programs, items)
    assert list(gains) == [
        f"layers.{layer}.{part}" for layer in range(2) for part in ("qkv", "attention_out", "ffn_in", "ffn_out")
    ]
    rewritten = set_rounding(with_int8_inputs(programs, gains), "none")
    torch.testing.assert_close(hidden(rewritten, items), hidden(programs, items), rtol=1e-4, atol=1e-4)
    assert len(reciprocals(rewritten)) == 8 and reciprocals(programs) == []
    assert all(torch.equal(value, before[name]) for name, value in programs.state_dict().items())


def test_calibrated_inputs_fill_the_range_of_int8(programs, items):
    rewritten, seen = set_rounding(with_int8_inputs(programs, input_gains(programs, items)), "none"), {}
    for name, module in rewritten.named_modules():
        if isinstance(module, Int8Inputs):
            module.register_forward_hook(
                lambda _, __, output, name=name: seen.setdefault(name, []).append(float(output.abs().max()))
            )
    hidden(rewritten, items)
    assert len(seen) == 8
    for name, values in seen.items():
        assert 0.99 < max(values) < 1.0 - STEP / 2, name  # rounds to at most 127 steps


def test_rounding_equals_torchs_fake_quantization():
    inputs, gains = torch.randn(3, 20, 8) * 3, torch.linspace(0.5, 4, 8)
    module = Int8Inputs(gains)
    expected = torch.fake_quantize_per_tensor_affine(inputs * (1 / gains).half().float(), STEP, 0, -128, 127)
    assert torch.equal(module(inputs), expected) and not torch.equal(expected, inputs * module.reciprocal)
    in_range = (inputs * module.reciprocal).clamp(-1, 1 - STEP)
    assert torch.equal(set_rounding(module, "range")(inputs), in_range) and not torch.equal(
        in_range, inputs * module.reciprocal
    )
    assert torch.equal(set_rounding(module, "none")(inputs), inputs * module.reciprocal)


def test_gains_beat_one_scale_for_unequal_channels():
    torch.manual_seed(0)
    inputs, linear = torch.randn(200, 32), torch.nn.Linear(32, 16).requires_grad_(False)
    inputs[:, 7] *= 100.0
    linear.weight[:, 7] /= 100.0
    peaks = inputs.abs().amax(dim=0)
    with_gains, with_one_scale = (
        float((Int8InputLinear(linear, gains)(inputs) - linear(inputs)).norm())
        for gains in (gains_from_ranges(peaks, linear.weight, 0.9), peaks.max().expand(32) / (1 - STEP))
    )
    assert with_gains < 0.05 * with_one_scale


def test_balance_shares_the_ranges_between_inputs_and_weights():
    """The paper's equation 4, up to one factor for all channels: at 1/2 the ratio of both peaks is equal everywhere."""
    peaks, weight = torch.tensor([1.0, 100.0, 4.0]), torch.tensor([[1.0, 0.01, -2.0], [-0.5, 0.02, 1.0]])
    gains = gains_from_ranges(peaks, weight, 0.5)
    quotients, columns = peaks / gains, weight.abs().amax(dim=0) * gains
    torch.testing.assert_close(quotients / columns, (quotients / columns)[:1].expand(3))
    assert float(quotients.max()) == pytest.approx(1 - STEP)
    torch.testing.assert_close(peaks / gains_from_ranges(peaks, weight, 1.0), torch.full((3,), 1 - STEP))


@pytest.mark.parametrize("balance", [0.5, 0.9, 1.0])
def test_unused_channels_have_finite_gains(balance):
    for peaks, weight in ((torch.tensor([0.0, 2.0]), torch.ones(3, 2)), (torch.zeros(2), torch.zeros(3, 2))):
        module = Int8Inputs(gains_from_ranges(peaks, weight, balance))
        assert torch.isfinite(module.reciprocal).all() and (module.reciprocal > 0).all()


def test_the_inputs_of_heads_stay_float(programs, items):
    rewritten = with_int8_inputs(programs, input_gains(programs, items))
    assert set(layer_linears(programs)) and all("head" not in name for name in reciprocals(rewritten))


def test_too_few_texts_are_refused_in_one_line(programs, items):
    with pytest.raises(
        UserError, match=r"^export.coreml_calibration: has 15 texts .* at least 16 .* set data.calibration higher"
    ):
        input_gains(programs, items[:15])


def test_a_split_too_small_for_ranges_is_refused_before_anything_is_trained():
    def recipe(calibration: int, precision: str) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "tiny",
                "task": "qa",
                "data": {"calibration": calibration},
                "exits": {"exact": 0.5, "balanced": 0.5, "fast": 0.5},
                "export": {"coreml_precision": precision},
            }
        )

    with pytest.raises(
        UserError,
        match=r"data.calibration: 79 examples leave 15 .* export.coreml_precision=int8-a8, at least 16 .* set it to 80",
    ):
        check_calibration_size(recipe(79, "int8-a8"))
    check_calibration_size(recipe(80, "int8-a8"))
    check_calibration_size(recipe(79, "int8"))
