"""Rounding equals solving for the best remaining weights after every column, and beats rounding to the nearest step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.export.program_modules import program_modules
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.run.precision import rounds_by_texts
from pipeline.schemes import INT4_GROUP
from pipeline.support.errors import UserError
from quantize.coreml_schemes import compress
from quantize.int4 import best_scales, nearest_steps
from quantize.rounding import DAMPING, round_model, round_to_moments, second_moments, with_rounded
from quantize.schemes import apply_scheme, named_linears

CONFIG = EncoderConfig(vocab_size=100, hidden_size=64, layers=2, heads=2, intermediate_size=96, max_positions=32)
LAYERS = [f"layers.{layer}.{part}" for layer in range(2) for part in ("qkv", "attention_out", "ffn_in", "ffn_out")]


@pytest.fixture(scope="module")
def model() -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel("qa", CONFIG, 2, "attention", [1, 2]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return random_items(0)


def random_items(seed: int) -> list[Item]:
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 30, 40)
    return [Item(random.integers(0, 100, size), np.zeros(size, int), None, np.arange(size) > 2) for size in sizes]


@pytest.fixture(scope="module")
def rounded(model, items) -> ExitModel:
    return round_model(model, items)


def logits(programs: Programs, items: list[Item]) -> torch.Tensor:
    runs = [
        programs(torch.from_numpy(item.ids)[None], torch.zeros(1, 1, len(item.ids)), torch.zeros(1, len(item.ids)))
        for item in items
    ]
    return torch.cat([run[-1][1].flatten() for run in runs])


def correlated(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a weight, and the second moments of inputs of which some are nearly sums of others."""
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(outputs, inputs, generator=random)
    rows = torch.randn(500, inputs // 4, generator=random) @ torch.randn(inputs // 4, inputs, generator=random)
    rows += 0.3 * torch.randn(500, inputs, generator=random)
    return weight, rows.T @ rows / 500


def test_each_column_is_rounded_after_the_best_correction_of_earlier_errors():
    """The reference solves for the remaining columns after each rounding, for the least output error (equation 2)."""
    weight, moments = correlated(6, 3 * INT4_GROUP)
    damped = moments.double() + DAMPING * float(moments.diagonal().mean()) * torch.eye(
        3 * INT4_GROUP, dtype=torch.float64
    )
    expected, target = torch.empty_like(weight, dtype=torch.float64), weight.double()
    for column in range(weight.shape[1]):
        errors = expected[:, :column] - target[:, :column]
        left = target[:, column:] - errors @ damped[:column, column:] @ torch.linalg.inv(damped[column:, column:])
        if column % INT4_GROUP == 0:
            scales = best_scales(
                left[:, :INT4_GROUP].float(), torch.bfloat16, moments.diagonal()[column : column + INT4_GROUP]
            )
        expected[:, column] = (nearest_steps(left[:, :1], scales) * scales)[:, 0]
    # A value between two steps may fall to either side, and then all later ones of its row differ.
    same = (round_to_moments(weight, moments) == expected.float()).all(dim=1)
    assert same.float().mean() > 0.8


def test_outputs_are_closer_than_with_nearest_steps():
    weight, moments = correlated(64, 4 * INT4_GROUP)
    groups = weight.view(64, 4, INT4_GROUP)
    scales = best_scales(groups, torch.bfloat16)
    nearest = (nearest_steps(groups, scales) * scales).view_as(weight)

    def error(rounded: torch.Tensor) -> float:
        return float((((rounded - weight) @ moments) * (rounded - weight)).sum())

    assert error(round_to_moments(weight, moments)) < 0.35 * error(nearest)


def test_moments_are_those_of_the_inputs_of_the_matrices(model, items):
    """The first matrix reads the embeddings, with the token types that a separator gives them, as in the programs."""
    programs = Programs.of(model)
    found = second_moments(programs, items[:3])
    assert set(LAYERS) <= set(found) and all(moments.shape[0] == moments.shape[1] for moments in found.values())
    rows = torch.cat([programs.embed(torch.from_numpy(item.ids)[None])[0] for item in items[:3]]).detach()
    torch.testing.assert_close(found["layers.0.qkv"], rows.T @ rows / len(rows))


@torch.no_grad()
def test_a_model_rounded_on_some_texts_is_closer_on_other_texts(model, rounded):
    others, programs = random_items(1), Programs.of(model)
    full = logits(programs, others)

    def error(quantized: Programs) -> float:
        return float((logits(quantized, others) - full).norm() / full.norm())

    nearest = apply_scheme(programs, "int4", "fp32")
    corrected = apply_scheme(programs, "int4", "fp32", Programs.of(rounded))
    float_inputs = apply_scheme(Programs.of(rounded), "fp32", "fp32")
    assert error(corrected) < 0.9 * error(nearest)  # random layers can correct less than trained ones
    assert error(corrected) == pytest.approx(error(float_inputs), rel=0.3)  # int8 inputs add little


def test_both_targets_hold_the_same_steps(model, rounded):
    """A program scales the query's rows by 2 ** -2.5 here, which changes a scale by its rounding."""
    programs = Programs.of(rounded)
    quantized = named_linears(apply_scheme(Programs.of(model), "int4", "fp32", programs))
    for name, linear in named_linears(programs).items():
        exact = slice(64, None) if name.endswith("qkv") and name.startswith("layers") else slice(None)
        held = quantized[name].weight.dequantize()
        assert torch.equal(held[exact], linear.weight[exact]), name
        torch.testing.assert_close(held, linear.weight.detach(), rtol=0.004, atol=1e-6)
    for layout in ("standard", "ane"):
        for source in program_modules(rounded, layout)[1:]:
            for name, weight in source.weights(8).items():
                if (
                    name.startswith("layers.")
                    and name.endswith("weight")
                    and weight.dim() > 1
                    and weight.numel() > 2048
                ):
                    dense = torch.from_numpy(compress(weight, "int4").dense())
                    torch.testing.assert_close(dense, weight, rtol=0.004, atol=1e-6)


def test_a_mix_takes_the_rounded_weights_for_its_int4_matrices(model, rounded):
    mixed = with_rounded(
        model, rounded, {"layers.0.ffn_in": "int4", "layers.1.ffn_in": "int8", "embeddings.word": "int4"}
    )
    changed = {name for name, value in mixed.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"encoder.layers.0.ffn_in.weight"}
    assert torch.equal(mixed.encoder.layers[0].ffn_in.weight, rounded.encoder.layers[0].ffn_in.weight)


def test_too_few_texts_are_refused(model, items):
    with pytest.raises(
        UserError,
        match=r"quantize.rounding_texts: 15 texts to round int4 by, at least 16 are needed; give more, or set it to 0",
    ):
        round_model(model, items[:15])


@pytest.mark.parametrize(
    ("scheme", "precision", "texts", "wanted"),
    [
        ("int8", "int8", 128, False),
        ("int4", "int8", 128, True),
        ("int8", "int4", 128, True),
        ("int8", "palette4", 128, False),
        ("int4", "int4", 0, False),
    ],
)
def test_a_recipe_rounds_where_a_target_has_four_bits(scheme, precision, texts, wanted):
    export = {"coreml": True, "coreml_precision": precision, "coreml_target": "iOS18"}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "task": "classification",
            "quantize": {"scheme": scheme, "rounding_texts": texts},
            "export": export,
        }
    )
    assert rounds_by_texts(recipe) is wanted
