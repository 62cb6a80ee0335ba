"""Linear layers whose int8 inputs keep 16 bits: a coarse and a fine int8 term of the same input, through the same int8 weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.schemes import INT8_TERM_ENDS

# The coarse term's steps, an eighth, reach from -16 to just below 16: hidden states after a layer norm lie within, and the few values that
# do not are left to the fine term. Powers of two, so that every multiple is exact, and so is the scale that a kernel finds for them.
STEP = 2.0**-3
LOWEST, HIGHEST = -128 * STEP, 127 * STEP
# Floats of this size are a STEP apart: adding it rounds to whole steps, in plain additions that every delegate computes alike.
ROUNDER = 1.5 * 2.0**23 * STEP


class TwoTermLinear(nn.Module):
    """A linear layer to be quantized to int8, which sees its input twice.

    Inputs quantized at run time have 256 steps between their token's extremes. A difference in the last bit moves some of them by a whole
    step, and from layer to layer more, so that two correct implementations end as far apart as int8 and float are. Here the coarse term is
    on a grid that int8 holds exactly, and the fine term is at most half a step large, which leaves 1/255 of a step as the error. It costs a second
    product. TensorFlow Lite knows the same balance as 16x8 quantization: int16 inputs, int8 weights; XNNPACK has no such kernel.

    Args:
        linear: is copied.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = nn.Linear(linear.in_features + INT8_TERM_ENDS, linear.out_features)
        with torch.no_grad():
            self.linear.weight.copy_(F.pad(linear.weight, (0, INT8_TERM_ENDS)))
            self.linear.bias.copy_(linear.bias / 2)  # is added twice

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: [..., in_features]. Returns [..., out_features]."""
        coarse = ((inputs + ROUNDER) - ROUNDER).clamp(LOWEST, HIGHEST)
        fine = F.pad(inputs - coarse, (0, INT8_TERM_ENDS))
        return self.linear(F.pad(F.pad(coarse, (0, 1), value=LOWEST), (0, 1), value=HIGHEST)) + self.linear(fine)
