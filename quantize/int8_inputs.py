"""int8 inputs of the layers' linear layers for Core ML: a gain for each channel from calibration, and one constant scale for all.

One scale for all channels of an input is as coarse as its largest channel, and a transformer has some that are a hundred times the others. So
the work of those is moved into the weights, which have a scale for each output: an input is divided by a gain for each of its channels, and the
weights' columns are multiplied by it, which alters no product (Xiao et al. 2022, "SmoothQuant", section 4). There the quotient's range is what
calibration finds next; here the gains already bring every input within -1 to 1, so that the scale is the same everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.data.items import Item
from pipeline.model.encoder import attention_bias
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.schemes import named_linears

STEP = 2.0**-7  # of the quotients; a power of two, so that float16 divides by it without rounding
FEWEST = 16  # texts; of fewer, the channels' ranges say little of other texts
# The paper's migration strength, alpha: what share of the ranges' differences goes into the weights. MiniLM's last hidden states on
# SST-2's dev, 256 texts for the gains: 21.0 dB at 1, 21.9 at 0.85, 19.5 at 0.75, 8.0 at 0.5 on 100 sentences, 22.0 at 0.9 and 20.9 at 0.8 on 60 of
# them. Another for each kind of matrix adds 0.3.
BALANCE = 0.9
# A channel's gain is no less than this share of the largest, so that one that calibration hardly saw does not become huge.
LEAST_GAIN = 1e-3

Rounding = Literal["int8", "range", "none"]


class Int8Inputs(nn.Module):
    """Divides each channel by its gain and rounds to the multiples of `STEP` that int8 holds.

    Args:
        gains: [channels] or any shape that broadcasts to an input's, float32, above 0. The quotient is a product with the reciprocal in float16,
            since a package has that.

    Attributes:
        rounding: "int8"; "range" only cuts at the ends of what int8 holds, to be compared more exactly than rounding allows; "none", for the
            converter, does neither.
    """

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
    """A linear layer whose inputs are int8: what it computes but for the rounding.

    Args:
        linear: is left as it is.
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
    """The module, in place, with that rounding of all `Int8Inputs` in it."""
    for each in module.modules():
        if isinstance(each, Int8Inputs):
            each.rounding = rounding
    return module


def reciprocals(module: nn.Module) -> list[str]:
    """The names of the buffers whose products with the inputs are rounded."""
    return [f"{name}.reciprocal" for name, each in module.named_modules() if isinstance(each, Int8Inputs)]


def layer_linears(programs: Programs) -> dict[str, nn.Linear]:
    """The linear layers whose inputs become int8, by the names of `quantize.schemes.named_linears`: the encoder's.

    A head's are a few per cent of the products, and give the answer that people see.
    """
    return {name: linear for name, linear in named_linears(programs).items() if name.startswith("layers.")}


def with_int8_inputs(programs: Programs, gains: Mapping[str, Tensor]) -> Programs:
    """A copy of float programs whose layers' linear layers are `Int8InputLinear`; `gains` of each by its name."""
    programs = copy.deepcopy(programs)
    named = {linear: name for name, linear in layer_linears(programs).items()}
    for parent in list(programs.modules()):
        for name, module in list(parent.named_children()):
            if module in named:
                setattr(parent, name, Int8InputLinear(module, gains[named[module]]))
    return programs.requires_grad_(False)


@torch.no_grad()
def input_gains(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> dict[str, Tensor]:
    """The gain of every input channel of the layers' linear layers, [inputs] each, by the layers' names.

    It is the greatest magnitude that the channel has in any token of the items, times a balance with the greatest weight that reads it: the
    paper's migration strength alpha, `BALANCE`, is what the inputs' share is. All of a layer's gains are then scaled so that the greatest
    quotient is what int8 holds.

    Args:
        programs: in float32.
        items: of texts that nothing is promised about; each runs by itself, without padding.

    Raises:
        UserError: there are fewer than `FEWEST` items.
    """
    if len(items) < FEWEST:
        raise UserError(
            f"has {len(items)} texts to find the activations' ranges on, at least {FEWEST} are needed; "
            "set data.calibration higher, or take another export.coreml_precision",
            field="export.coreml_calibration",
        )
    linears = layer_linears(programs)
    peaks = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}

    def watch(name: str):
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peaks[name] = torch.maximum(peaks[name], inputs[0].flatten(0, -2).abs().amax(dim=0))

        return look

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        for done, item in enumerate(items, start=1):
            ids = torch.from_numpy(item.ids).long()[None]
            answers = None if item.answer_mask is None else answer_bias(torch.from_numpy(item.answer_mask)[None])
            programs(ids, attention_bias(torch.ones_like(ids)), answers)
            on_step("ranges of activations", done, len(items))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: gains_of(peaks[name], linear.weight, BALANCE) for name, linear in linears.items()}


def gains_of(peaks: Tensor, weight: Tensor, balance: float) -> Tensor:
    """[inputs] gains from the inputs' greatest magnitudes, [inputs], and a weight [outputs, inputs] that reads them."""
    peaks = peaks.clamp(min=LEAST_GAIN * float(peaks.max()) or 1.0)
    columns = weight.detach().abs().amax(dim=0)
    columns = columns.clamp(min=LEAST_GAIN * float(columns.max()) or 1.0)
    gains = peaks**balance / columns ** (1.0 - balance)
    return gains * ((peaks / gains).max() / (1.0 - STEP))
