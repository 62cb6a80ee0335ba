"""Simulated int8 for training: linear layers that round weights and inputs, with gradients that ignore the rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fake_quantize_activations(inputs: Tensor) -> Tensor:
    """Rounds to int8 with a scale and a zero point per token, as the exported programs do at run time.

    The gradient passes unchanged (straight-through estimator).

    Args:
        inputs: [..., features]; each row of features is a token.

    Returns:
        the rounded values, same shape and dtype.
    """
    values = inputs.detach().float()
    low, high = values.amin(dim=-1, keepdim=True).clamp(max=0.0), values.amax(dim=-1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=torch.finfo(torch.float32).eps)
    zero = torch.round(-128.0 - low / scale).clamp(-128, 127)
    rounded = ((torch.round(values * (1.0 / scale)) + zero).clamp(-128, 127) - zero) * scale
    return inputs + (rounded.to(inputs.dtype) - inputs.detach())


def fake_quantize_weights(weight: Tensor) -> Tensor:
    """Rounds to int8, symmetric, with a scale per output channel. The gradient passes unchanged.

    Args:
        weight: [out_features, in_features].

    Returns:
        the rounded weights, same shape and dtype.
    """
    values = weight.detach()
    scale = (values.abs().amax(dim=1, keepdim=True) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    # Multiplied by the inverse, as torchao does. Each row's largest value lies half way between two steps, so the
    # last bit decides how it rounds.
    rounded = torch.round(values * (1.0 / scale)).clamp(-128, 127) * scale
    return weight + (rounded - values)


@contextmanager
def quantized_linears(module: nn.Module) -> Iterator[None]:
    """Makes all linear layers of a module compute in simulated int8 inside the context (Jacob et al. 2018, section 3).

    The weights stay float32; training updates and saves those.
    """
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]

    def replace_forward(linear: nn.Linear) -> None:
        def forward(inputs: Tensor) -> Tensor:
            return F.linear(fake_quantize_activations(inputs), fake_quantize_weights(linear.weight), linear.bias)

        # nn.Module calls the instance's own `forward` if it has one; deleting it restores the class's.
        linear.forward = forward  # type: ignore[method-assign, assignment]

    for linear in linears:
        replace_forward(linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward
