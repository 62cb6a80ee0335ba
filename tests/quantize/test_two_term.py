"""A layer with two int8 terms is close to one with float inputs; with one term the error is a hundred times larger."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.export.executorch import export_executorch
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.quiet import import_quietly
from quantize.schemes import apply_scheme, int8_dynamic
from quantize.two_term import HIGHEST, LOWEST, STEP, TwoTermLinear


def int8(module: nn.Module) -> nn.Module:
    module = nn.Sequential(copy.deepcopy(module))
    import_quietly("torchao.quantization").quantize_(module, int8_dynamic())
    return module


@pytest.fixture(scope="module")
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64)


def relative(error: Tensor, reference: Tensor) -> float:
    return float(error.norm() / reference.norm())


def errors(linear: nn.Linear, inputs: Tensor) -> tuple[float, float]:
    """Returns the relative errors of int8 inputs and of inputs in two terms, against float inputs."""
    one, two = int8(linear), int8(TwoTermLinear(linear))
    weight = one[0].weight.dequantize()
    expected = nn.functional.linear(inputs, weight, linear.bias)
    return relative(one(inputs) - expected, expected), relative(two(inputs) - expected, expected)


@torch.no_grad()
def test_two_terms_are_far_closer_to_float_inputs(linear):
    inputs = torch.randn(5, 7, 96, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 3, 7)[:, None]
    one, two = errors(linear, inputs)
    assert one > 3e-3 and two < one / 30


@torch.no_grad()
def test_inputs_beyond_the_coarse_grid_are_kept(linear):
    inputs = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    inputs[:, 3], inputs[:, 50] = 30.0, -45.0
    one, two = errors(linear, inputs)
    assert two < 1.1 * one < 0.1


def test_the_coarse_term_is_exact_in_int8():
    """torchao rounds a token with the grid's range to the same values."""
    primitives = import_quietly("torchao.quantization.quant_primitives")
    coarse = torch.cat([torch.randint(-128, 128, (4, 50)) * STEP, torch.tensor([[LOWEST, HIGHEST]] * 4)], dim=1)
    scale, zero = primitives.choose_qparams_affine(
        coarse, primitives.MappingType.ASYMMETRIC, (1, 52), torch.int8, eps=torch.finfo(torch.float32).eps
    )
    rounded = primitives.quantize_affine(coarse, (1, 52), scale, zero, torch.int8)
    assert torch.equal(primitives.dequantize_affine(rounded, (1, 52), scale, zero, torch.int8), coarse)


@torch.no_grad()
def test_a_difference_in_the_last_bit_stays_small(tmp_path: Path):
    """Moving the embeddings by a millionth moves the hidden states ten times less than with int8.

    The exported program agrees with PyTorch as closely.
    """
    torch.manual_seed(3)
    config = EncoderConfig(vocab_size=100, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=32)
    model = ExitModel("classification", config, 3, "pooled", (1, 2)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(4.0)
    several = torch.randint(0, 100, (6, 1, 24))
    bias = torch.zeros(1, 1, 24)

    def last(programs: Programs, ids: Tensor, moved: float) -> Tensor:
        hidden = programs.embed(ids)
        hidden = hidden + moved * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4))
        for segment in programs.segments:
            hidden, *_ = segment(hidden, bias)
        return hidden

    def disturbance(programs: Programs) -> float:
        """Returns the greatest of several inputs: it is chance whether a millionth crosses an int8 step."""
        return max(
            relative(last(programs, ids, 1e-6) - last(programs, ids, 0.0), last(programs, ids, 0.0)) for ids in several
        )

    one, two = (apply_scheme(Programs.of(model), scheme, "int8") for scheme in ("int8", "int8-a16"))
    assert disturbance(one) > 1e-3 and disturbance(two) < disturbance(one) / 10
    export_executorch(two, tmp_path / "model.pte", 32, "int8-a16")
    program = import_quietly("executorch.runtime").Runtime.get().load_program(tmp_path / "model.pte")
    for ids in several:
        hidden = program.load_method("embed").execute([ids])[0]
        for segment in range(2):
            hidden = program.load_method(f"segment_{segment}").execute([hidden, bias])[0]
        assert relative(hidden - last(two, ids, 0.0), last(two, ids, 0.0)) < disturbance(one) / 10
