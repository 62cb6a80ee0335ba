"""Rounding to int4 in which the weights of an output make up for each other's errors.

Weights rounded to the nearest step change MiniLM's matrix products by 0.5 % of their power. Rounding one column after
the other, and adjusting the columns that are left through the inverse of the inputs' second moments, changes them by
0.11 % (Frantar et al. 2022, "GPTQ", section 3). Nothing is trained and no labels are needed, only texts like those to
come.

The result is a float model whose matrices are whole steps already. `int4` of either target finds the same steps
again. Its scales are exact except for rows of a query whose folded scale is not a power of two: those are off by 0.2
% at most.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.items import Item
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import MIN_ROUNDING_TEXTS
from pipeline.schemes import INT4_GROUP, SCHEMES
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.int4 import best_scales, nearest_steps
from quantize.observe import observe_inputs
from quantize.schemes import named_linears

# Share of the second moments' mean that is added to their diagonal: the paper's 1 %. A tenth or ten times as much
# makes less difference than other texts do.
DAMPING = 0.01
SCALE_TYPE = torch.bfloat16  # as ExecuTorch stores scales; Core ML's float16 holds whole steps of these exactly


@torch.no_grad()
def round_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> ExitModel:
    """Returns a copy of a float32 model with the matrices that `int4` applies to rounded for the inputs of some texts.

    Args:
        items: at least `MIN_ROUNDING_TEXTS`; each runs by itself, without padding.

    Raises:
        UserError: there are fewer.
    """
    if len(items) < MIN_ROUNDING_TEXTS:
        raise UserError(
            f"{len(items)} texts to round int4 by, at least {MIN_ROUNDING_TEXTS} are needed; give more, or set it to 0",
            field="quantize.rounding_texts",
        )
    rounded, moments_by_name = copy.deepcopy(model), second_moments(Programs.of(model), items, on_step)
    for done, (name, moments) in enumerate(moments_by_name.items(), start=1):
        weight = find_linear(rounded, name).weight
        weight.copy_(round_to_moments(weight, moments))
        on_step("rounding to int4", done, len(moments_by_name))
    return rounded


@torch.no_grad()
def with_rounded(model: ExitModel, rounded: ExitModel, schemes: Mapping[str, str]) -> ExitModel:
    """Returns a copy of a model that takes the int4 matrices of a mix from `rounded`.

    Args:
        rounded: the result of `round_model`.
        schemes: the scheme of each matrix by its name in `named_linears`; other names are ignored.
    """
    mixed = copy.deepcopy(model)
    for name in named_linears(Programs.of(model)):
        if name in schemes and SCHEMES[schemes[name]].rounded_by_texts:
            find_linear(mixed, name).weight.copy_(find_linear(rounded, name).weight)
    return mixed


def find_linear(model: ExitModel, name: str) -> nn.Linear:
    """Returns a model's linear layer by its name in `named_linears`."""
    kind, path = name.split(".", 1)
    linear = model.encoder.get_submodule(name) if kind == "layers" else model.heads.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    return linear


def second_moments(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> dict[str, Tensor]:
    """Returns the mean product of every two input channels, [inputs, inputs] float32, by matrix.

    Matrices whose inputs are not a multiple of `INT4_GROUP` are left out: int4 does not apply to them.
    """
    linears = {name: linear for name, linear in named_linears(programs).items() if linear.in_features % INT4_GROUP == 0}
    moments = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}
    tokens = sum(len(item.ids) for item in items)

    def add(name: str, rows: Tensor) -> None:
        moments[name].addmm_(rows.T, rows, alpha=1 / tokens)

    observe_inputs(programs, linears, items, add, "inputs to round by", on_step)
    return moments


def round_to_moments(weight: Tensor, moments: Tensor) -> Tensor:
    """Returns a matrix of whole steps whose outputs are near the weight's, for inputs with some second moments.

    Columns are rounded one after the other. Each error is subtracted from the later columns, as far as their inputs
    can stand in for this column's. A group's scales are chosen when its turn comes. Its own columns are adjusted one
    by one, all later groups once for the whole group.

    Args:
        weight: [outputs, inputs] float32, inputs a multiple of `INT4_GROUP`.
        moments: [inputs, inputs].

    Returns:
        [outputs, inputs] float32.
    """
    left, importance = weight.detach().double(), moments.diagonal()
    damped = moments.double() + torch.diag(
        torch.full_like(importance, DAMPING * float(importance.mean()) or 1.0).double()
    )
    # Row i of the upper factor of the inverse says how the error of input i goes to the later inputs once all before
    # are fixed.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rounded = torch.empty_like(left)
    for start in range(0, weight.shape[1], INT4_GROUP):
        end = start + INT4_GROUP
        group, errors = left[:, start:end].clone(), torch.empty_like(left[:, start:end])
        scales = best_scales(group.float(), SCALE_TYPE, importance[start:end])
        for index in range(INT4_GROUP):
            column = group[:, index, None]
            rounded[:, start + index, None] = nearest_steps(column, scales) * scales
            errors[:, index, None] = (column - rounded[:, start + index, None]) / factor[start + index, start + index]
            group[:, index:] -= errors[:, index, None] * factor[start + index, start + index : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return rounded.to(weight.dtype)
