"""Linear layers whose int8 inputs keep 16 bits: a coarse and a fine int8 term go through the same int8 weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.schemes import INT8_TERM_ENDS

# The coarse term has steps of 1/8, from -16 to just below 16. Hidden states after a layer norm lie within, and the
# fine term takes the few values that do not. Steps and scale are powers of two, so that a kernel computes with them
# exactly.
STEP = 2.0**-3
LOWEST, HIGHEST = -128 * STEP, 127 * STEP
# Floats of this size are a STEP apart: adding it rounds to whole steps, in plain additions that every delegate
# computes alike.
ROUNDER = 1.5 * 2.0**23 * STEP


class TwoTermLinear(nn.Module):
    """A linear layer, to be quantized to int8, that sees its input in two terms.

    An input quantized at run time has 256 steps between its token's extremes. A difference in the last bit moves some
    values by a whole step, and more from layer to layer, until two correct implementations are as far apart as int8
    and float32. Here the coarse term lies on a grid that int8 holds exactly. The fine term is at most half a step,
    which leaves an error of 1/255 of a step. It costs a second product. TensorFlow Lite's 16x8 quantization strikes
    the same balance with int16 inputs and int8 weights; XNNPACK has no such kernel.

    Args:
        linear: the layer, which is copied.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        # The added inputs have weight 0. They hold the ends of the grid, so that every token's range is the grid's.
        self.linear = nn.Linear(linear.in_features + INT8_TERM_ENDS, linear.out_features)
        with torch.no_grad():
            self.linear.weight.copy_(F.pad(linear.weight, (0, INT8_TERM_ENDS)))
            self.linear.bias.copy_(linear.bias / 2)  # it is added twice

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: [..., in_features]. Returns [..., out_features]."""
        coarse = ((inputs + ROUNDER) - ROUNDER).clamp(LOWEST, HIGHEST)
        fine = F.pad(inputs - coarse, (0, INT8_TERM_ENDS))
        return self.linear(F.pad(F.pad(coarse, (0, 1), value=LOWEST), (0, 1), value=HIGHEST)) + self.linear(fine)
