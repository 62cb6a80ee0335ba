"""Simulated int8 computes what torchao's dynamic int8 computes and passes gradients through."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.model.fake_quantize import fake_quantize_activations, fake_quantize_weights, quantized_linears
from quantize.schemes import int8_dynamic


def test_a_linear_layer_computes_what_torchao_computes():
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    inputs = torch.randn(5, 7, 64) * torch.rand(5, 7, 1) * 4 + 0.5
    inputs[0, 0, 3] = 30.0  # an outlier makes its token's rounding coarse
    expected = copy.deepcopy(model)
    quantize_(expected, int8_dynamic())
    plain = model(inputs)
    with quantized_linears(model):
        simulated = model(inputs)
    goal = expected(inputs)
    assert (goal - plain).abs().max() > 0.01  # rounding has an effect
    # The two may round a value half way between two steps differently. Nearly all outputs are equal, none differs by
    # more than one step of an input.
    assert ((simulated - goal).abs() < 1e-4).float().mean() > 0.98
    assert (simulated - goal).abs().max() < 0.2 * (goal - plain).abs().max()
    assert torch.equal(model(inputs), plain)  # outside the context nothing is rounded


def test_gradients_ignore_the_rounding():
    torch.manual_seed(0)
    inputs, weight = torch.randn(4, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    goal = torch.randn(4, 8)
    out = F.linear(fake_quantize_activations(inputs), fake_quantize_weights(weight))
    (out * goal).sum().backward()
    with torch.no_grad():  # the chain rule with the rounded values
        assert torch.allclose(inputs.grad, goal @ fake_quantize_weights(weight), atol=1e-5)
        assert torch.allclose(weight.grad, goal.T @ fake_quantize_activations(inputs), atol=1e-5)


def test_constant_tokens_are_not_changed():
    for row in (torch.zeros(1, 8), torch.full((1, 8), 3.0), torch.full((1, 8), -2.0)):
        assert torch.allclose(fake_quantize_activations(row), row, atol=1e-6)
