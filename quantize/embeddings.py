"""Embedding tables in fewer bits, as plain lookups and arithmetic, which lower to operators that ExecuTorch has.

torchao's quantized embedding is not used: it leaves an operator that ExecuTorch cannot run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.schemes import INT4_GROUP


class HalfEmbedding(nn.Module):
    """An embedding table in float16.

    Args:
        weight: [vocabulary, hidden_size].
    """

    table: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("table", weight.to(torch.float16))  # [vocabulary, hidden_size]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, length] integers. Returns [batch, length, hidden_size] float32."""
        return F.embedding(ids, self.table).to(torch.float32)


class Int8Embedding(nn.Module):
    """An embedding table of int8 rows with a float scale each.

    Args:
        weight: [vocabulary, hidden_size].
    """

    table: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        # The smallest normal number keeps a row of zeros (padding) at 0 instead of 0 / 0.
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=torch.finfo(weight.dtype).tiny)
        self.register_buffer("table", torch.round(weight / scale).to(torch.int8))  # [vocabulary, hidden_size]
        self.register_buffer("scale", scale)  # [vocabulary, 1]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, length] integers. Returns [batch, length, hidden_size] float32."""
        return F.embedding(ids, self.table).to(self.scale.dtype) * F.embedding(ids, self.scale)


class Int4Embedding(nn.Module):
    """An embedding table of integers from -8 to 7, two to a byte, with a float16 scale per `INT4_GROUP` values.

    A byte holds a value of the row's first half in its low four bits and one of the second half in its high four
    bits, so that unpacking is one concatenation. It is arithmetic on floats, which is exact here: delegates have no
    shifts.

    Args:
        weight: [vocabulary, hidden_size], hidden_size a multiple of `INT4_GROUP`.
    """

    table: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        rows, width = weight.shape
        groups = weight.view(rows, width // INT4_GROUP, INT4_GROUP)
        # float16's smallest normal number is the scale of a group of zeros. Values are rounded to the scale as it is
        # stored.
        scale = (groups.abs().amax(dim=-1) / 7.5).clamp(min=torch.finfo(torch.float16).tiny).to(torch.float16)
        steps = torch.round(groups / scale.unsqueeze(-1).to(weight.dtype)).clamp(-8, 7) + 8
        low, high = steps.view(rows, width).chunk(2, dim=1)
        self.register_buffer("table", (low + 16 * high).to(torch.uint8))  # [vocabulary, hidden_size / 2]
        self.register_buffer("scale", scale)  # [vocabulary, hidden_size / INT4_GROUP]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, length] integers. Returns [batch, length, hidden_size] float32."""
        pairs = F.embedding(ids, self.table).to(torch.float32)
        high = torch.floor(pairs / 16)
        steps = torch.cat([pairs - 16 * high, high], dim=-1) - 8
        scale = F.embedding(ids, self.scale).to(torch.float32)
        return (steps.view(*ids.shape, -1, INT4_GROUP) * scale.unsqueeze(-1)).view(*ids.shape, -1)
