"""Linear layers with float inputs and smaller weights: int8 weights computed in float32, and float16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightOnlyLinear(nn.Module):
    """A linear layer with int8 weights, a scale per output channel, and float32 inputs, sums and outputs.

    The weights become floats each time the layer runs, so it is small in the file and not faster. XNNPACK has a
    kernel for such weights, but ExecuTorch only gives it layers whose inputs are quantized too. It does give it a
    batched product whose second input is the table.

    Args:
        linear: the layer, which is copied.
    """

    table: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = (weight.abs().amax(dim=1) / 127.0).clamp(min=torch.finfo(weight.dtype).tiny)
        self.outputs = linear.out_features
        # [1, in_features, out_features], as the product takes it
        self.register_buffer("table", torch.round(weight / scale[:, None]).to(torch.int8).t().contiguous().unsqueeze(0))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: [..., in_features]. Returns [..., out_features]."""
        rows = inputs.reshape(1, -1, inputs.shape[-1])
        outputs = torch.bmm(rows, self.table.to(torch.float32)) * self.scale + self.bias
        return outputs.reshape(*inputs.shape[:-1], self.outputs)


class HalfLinear(nn.Module):
    """A linear layer in float16 that rounds its inputs to it, adds the bias in float32 and returns float32.

    Args:
        linear: the layer, which is copied.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(torch.float16))
        self.register_buffer("bias", linear.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: [..., in_features]. Returns [..., out_features]."""
        return F.linear(inputs.to(torch.float16), self.weight).to(torch.float32) + self.bias
