"""Rounding to four bits that makes up for its own errors: what one weight of an output loses, the next ones take over.

Rounded to the nearest step, MiniLM's matrices are off by 0.5 % of their outputs' power; rounded so (Frantar et al. 2022, "GPTQ", section 3: one
column after the other, the rest of the row adjusted through the inverse of the inputs' second moments) by 0.11 %. Nothing is trained and no labels are
needed, only texts like those that will come.

The result is a float model whose matrices are whole steps already. `int4` of either target finds these steps again, with scales that are exact but
for the rows of a query whose folded scale is no power of two: there they are off by their own rounding, 0.2 % at most.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.items import Item
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias
from pipeline.recipe import FEWEST_TO_ROUND_BY
from pipeline.schemes import INT4_GROUP, SCHEMES
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.int4 import scales_of, steps_of
from quantize.schemes import named_linears

# Added to the diagonal of the second moments, as a share of its mean: the paper's 1 %. A tenth and ten times of it differ by less than texts do.
DAMPING = 0.01
# As ExecuTorch stores them; float16, which Core ML has, holds whole steps of these exactly.
SCALES = torch.bfloat16


@torch.no_grad()
def round_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> ExitModel:
    """A copy of a float32 model whose matrices that `int4` applies to are whole steps, chosen for the inputs that they have in some texts.

    Args:
        items: at least `FEWEST_TO_ROUND_BY`; each runs by itself, without padding.

    Raises:
        UserError: there are fewer.
    """
    if len(items) < FEWEST_TO_ROUND_BY:
        raise UserError(
            f"{len(items)} texts to round int4 by, at least {FEWEST_TO_ROUND_BY} are needed; give more, or set it to 0",
            field="quantize.rounding_texts",
        )
    rounded, moments = copy.deepcopy(model), second_moments(Programs.of(model), items, on_step)
    for done, (name, of_inputs) in enumerate(moments.items(), start=1):
        weight = linear_of(rounded, name).weight
        weight.copy_(round_to_moments(weight, of_inputs))
        on_step("rounding to int4", done, len(moments))
    return rounded


@torch.no_grad()
def with_rounded(model: ExitModel, rounded: ExitModel, schemes: Mapping[str, str]) -> ExitModel:
    """A copy of a model whose int4 matrices are those of `rounded`; `schemes` of each by its name in `named_linears`, of more if need be."""
    mixed = copy.deepcopy(model)
    for name in named_linears(Programs.of(model)):
        if name in schemes and SCHEMES[schemes[name]].rounded_by_texts:
            linear_of(mixed, name).weight.copy_(linear_of(rounded, name).weight)
    return mixed


def linear_of(model: ExitModel, name: str) -> nn.Linear:
    """A model's linear layer by its name in `named_linears`."""
    kind, path = name.split(".", 1)
    return model.encoder.get_submodule(name) if kind == "layers" else model.heads.get_submodule(path)


def second_moments(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> dict[str, Tensor]:
    """The mean product of any two input channels, [inputs, inputs] float32, of every matrix whose inputs make whole groups, by name."""
    linears = {name: linear for name, linear in named_linears(programs).items() if linear.in_features % INT4_GROUP == 0}
    moments = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}
    tokens = sum(len(item.ids) for item in items)

    def watch(name: str):
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            moments[name].addmm_(rows.T, rows, alpha=1 / tokens)

        return look

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        for done, item in enumerate(items, start=1):
            ids = torch.from_numpy(item.ids).long()[None]
            answers = None if item.answer_mask is None else answer_bias(torch.from_numpy(item.answer_mask)[None])
            programs(ids, attention_bias(torch.ones_like(ids)), answers)
            on_step("inputs to round by", done, len(items))
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def round_to_moments(weight: Tensor, moments: Tensor) -> Tensor:
    """A matrix in whole steps whose outputs are near the weight's, for inputs of these second moments.

    Column after column is rounded, and the error, as far as later columns' inputs can stand in for this one's, subtracted from them. A
    group's scales are chosen when its turn comes, and its columns are adjusted one by one, all later groups once for the whole group.

    Args:
        weight: [outputs, inputs] float32, inputs a multiple of `INT4_GROUP`.
        moments: [inputs, inputs].

    Returns:
        as `weight`.
    """
    left, importance = weight.detach().double(), moments.diagonal()
    damped = moments.double() + torch.diag(
        torch.full_like(importance, DAMPING * float(importance.mean()) or 1.0).double()
    )
    # Row i of the upper factor of the inverse: how errors of input i go to the later inputs, when all before are settled.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rounded = torch.empty_like(left)
    for start in range(0, weight.shape[1], INT4_GROUP):
        end = start + INT4_GROUP
        group, errors = left[:, start:end].clone(), torch.empty_like(left[:, start:end])
        scales = scales_of(group.float(), SCALES, importance[start:end])
        for at in range(INT4_GROUP):
            column = group[:, at, None]
            rounded[:, start + at, None] = steps_of(column, scales) * scales
            errors[:, at, None] = (column - rounded[:, start + at, None]) / factor[start + at, start + at]
            group[:, at:] -= errors[:, at, None] * factor[start + at, start + at : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded.to(weight.dtype)
