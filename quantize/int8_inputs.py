"""int8 inputs for Core ML: every input channel is divided by a gain, and then one constant scale fits all channels.

One scale for all channels of an input is as coarse as its largest channel, and some channels of a transformer are a
hundred times larger than the others. So the range of those moves into the weights, which have a scale per output: an
input is divided by a gain per channel and the weights' columns are multiplied by it. No product changes (Xiao et al.
2022, "SmoothQuant", section 4). The paper then calibrates the range of the quotient. Here the gains bring every input
into -1 to 1, so that the scale is the same everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.items import Item
from pipeline.model.segments import Programs
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.observe import observe_inputs
from quantize.schemes import named_linears

STEP = 2.0**-7  # between two int8 values of a quotient; a power of two, by which float16 divides without rounding
MIN_TEXTS = 16  # with fewer, the channels' ranges say little about other texts
# The share of the ranges' differences that moves into the weights: the paper's migration strength, alpha. MiniLM's
# last hidden states on SST-2's dev, 256 texts for the gains: 21.0 dB at 1, 21.9 at 0.85, 19.5 at 0.75, 8.0 at 0.5 on
# 100 sentences, 22.0 at 0.9 and 20.9 at 0.8 on 60 of them. A value per kind of matrix adds 0.3.
BALANCE = 0.9
# A channel's range counts as at least this share of the largest, so that a channel that calibration hardly saw is not
# multiplied by a huge number.
MIN_RANGE_SHARE = 1e-3

Rounding = Literal["int8", "range", "none"]


class Int8Inputs(nn.Module):
    """Divides each channel by its gain and rounds the quotient to int8 steps of `STEP`.

    Args:
        gains: [channels], or any shape that broadcasts to an input's; float32, above 0. The division is a product
            with the reciprocal in float16, as in a package.

    Attributes:
        rounding: "int8" rounds. "range" only cuts at the ends of int8's range, for comparisons that rounding would
            blur. "none", for the converter, does neither.
    """

    reciprocal: Tensor

    def __init__(self, gains: Tensor):
        super().__init__()
        self.register_buffer("reciprocal", (1.0 / gains.detach()).half().float())
        self.rounding: Rounding = "int8"

    def forward(self, inputs: Tensor) -> Tensor:
        quotients = inputs * self.reciprocal
        if self.rounding == "none":
            return quotients
        steps = quotients / STEP
        return (torch.round(steps) if self.rounding == "int8" else steps).clamp(-128, 127) * STEP


class Int8InputLinear(nn.Module):
    """A linear layer with int8 inputs. Apart from the rounding, it computes what the layer does.

    Args:
        linear: the layer, which stays as it is.
        gains: [inputs], see `Int8Inputs`.
    """

    def __init__(self, linear: nn.Linear, gains: Tensor):
        super().__init__()
        self.inputs, self.linear = Int8Inputs(gains), copy.deepcopy(linear)
        with torch.no_grad():
            self.linear.weight.div_(self.inputs.reciprocal)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.inputs(inputs))


def set_rounding(module: nn.Module, rounding: Rounding) -> nn.Module:
    """Sets the rounding of all `Int8Inputs` in a module, in place, and returns the module."""
    for part in module.modules():
        if isinstance(part, Int8Inputs):
            part.rounding = rounding
    return module


def reciprocals(module: nn.Module) -> list[str]:
    """Returns the names of the buffers whose products with the inputs are rounded."""
    return [f"{name}.reciprocal" for name, part in module.named_modules() if isinstance(part, Int8Inputs)]


def layer_linears(programs: Programs) -> dict[str, nn.Linear]:
    """Returns the linear layers whose inputs become int8, the encoder's, by their names in `named_linears`.

    A head's are a few per cent of the products, and give the answer that people see.
    """
    return {name: linear for name, linear in named_linears(programs).items() if name.startswith("layers.")}


def with_int8_inputs(programs: Programs, gains: Mapping[str, Tensor]) -> Programs:
    """Returns a copy of float programs with an `Int8InputLinear` in place of every linear layer of the encoder.

    Args:
        gains: of each of those layers, by its name in `layer_linears`.
    """
    programs = copy.deepcopy(programs)
    named = {linear: name for name, linear in layer_linears(programs).items()}
    for parent in list(programs.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.Linear) and module in named:
                setattr(parent, child, Int8InputLinear(module, gains[named[module]]))
    return programs.requires_grad_(False)


@torch.no_grad()
def input_gains(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> dict[str, Tensor]:
    """Returns a gain per input channel of the encoder's linear layers, [inputs] each, by the layers' names.

    A gain grows with the channel's greatest magnitude in any token of the items, and falls with the greatest weight
    that reads the channel; see `gains_from_ranges`.

    Args:
        programs: in float32.
        items: texts that no guarantee is tested on; each runs by itself, without padding.

    Raises:
        UserError: there are fewer than `MIN_TEXTS` items.
    """
    if len(items) < MIN_TEXTS:
        raise UserError(
            f"has {len(items)} texts to find the activations' ranges on, at least {MIN_TEXTS} are needed; "
            "set data.calibration higher, or take another export.coreml_precision",
            field="export.coreml_calibration",
        )
    linears = layer_linears(programs)
    peaks = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}

    def keep_peak(name: str, rows: Tensor) -> None:
        peaks[name] = torch.maximum(peaks[name], rows.abs().amax(dim=0))

    observe_inputs(programs, linears, items, keep_peak, "ranges of activations", on_step)
    return {name: gains_from_ranges(peaks[name], linear.weight, BALANCE) for name, linear in linears.items()}


def gains_from_ranges(peaks: Tensor, weight: Tensor, balance: float) -> Tensor:
    """Returns [inputs] gains; the greatest quotient of an input and its gain is the greatest that int8 holds.

    Args:
        peaks: [inputs], the inputs' greatest magnitudes.
        weight: [outputs, inputs], which reads them.
        balance: the migration strength, see `BALANCE`.
    """
    peaks = peaks.clamp(min=MIN_RANGE_SHARE * float(peaks.max()) or 1.0)
    columns = weight.detach().abs().amax(dim=0)
    columns = columns.clamp(min=MIN_RANGE_SHARE * float(columns.max()) or 1.0)
    gains = peaks**balance / columns ** (1.0 - balance)
    return gains * ((peaks / gains).max() / (1.0 - STEP))
