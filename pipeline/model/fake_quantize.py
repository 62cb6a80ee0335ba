"""int8 as it will be, felt in training: linear layers that compute with rounded weights and inputs, and pass gradients as if they did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fake_quantize_activations(inputs: Tensor) -> Tensor:
    """Rounds to int8 with a scale and a zero point per token, as the programs do at run time; the gradient passes unchanged.

    Args:
        inputs: [..., features]; each row of features is a token.
    """
    values = inputs.detach().float()
    low, high = values.amin(dim=-1, keepdim=True).clamp(max=0.0), values.amax(dim=-1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=torch.finfo(torch.float32).eps)
    zero = torch.round(-128.0 - low / scale).clamp(-128, 127)
    rounded = ((torch.round(values * (1.0 / scale)) + zero).clamp(-128, 127) - zero) * scale
    return inputs + (rounded.to(inputs.dtype) - inputs.detach())


def fake_quantize_weights(weight: Tensor) -> Tensor:
    """Rounds to int8 with a scale per output channel, symmetric; the gradient passes unchanged. weight: [out, in]."""
    values = weight.detach()
    scale = (values.abs().amax(dim=1, keepdim=True) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    # Times the inverse, as torchao computes it: each row's largest value lies half way between two steps, and a last bit decides.
    rounded = torch.round(values * (1.0 / scale)).clamp(-128, 127) * scale
    return weight + (rounded - values)


@contextmanager
def quantized_linears(module: nn.Module) -> Iterator[None]:
    """All linear layers inside compute as int8 ones (Jacob et al. 2018, section 3: simulated quantization) while the context lasts.

    The weights themselves stay float32 and are what is trained and saved.
    """
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]

    def replace(linear: nn.Linear) -> None:
        def forward(inputs: Tensor) -> Tensor:
            return F.linear(fake_quantize_activations(inputs), fake_quantize_weights(linear.weight), linear.bias)

        linear.forward = forward

    for linear in linears:
        replace(linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward
