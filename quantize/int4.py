"""Weights in four bits: whole steps from -7 to 7 of a scale that `INT4_GROUP` inputs of an output share. Both targets' `int4` are these."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 7  # steps to either side; -8 is left out, so that a group and its negative are rounded alike
# Scales that are tried for every group, as shares of the one whose last step is the group's largest value: with 15 steps a little clipping costs
# less than coarse steps. Those above 1 are there for weights that are whole steps already, of which the last may be unused: they stay as they are.
SHARES = (*torch.linspace(1.0, 0.7, 7).tolist(), MOST / 6, MOST / 5, MOST / 4)


def scales_of(groups: Tensor, dtype: torch.dtype, importance: Tensor | None = None) -> Tensor:
    """Of some scales for each group of values, the one with the least squared error.

    Args:
        groups: [..., values] float32.
        dtype: in which a scale is stored; a group of zeros has its smallest normal number.
        importance: weights the values' errors; broadcasts to `groups`.

    Returns:
        [..., 1] in `dtype`.
    """
    peak = groups.abs().amax(dim=-1, keepdim=True)
    least = torch.full_like(peak, torch.inf)
    scales = torch.empty_like(peak, dtype=dtype)
    for share in SHARES:
        tried = stored(peak * share / MOST, dtype)
        error = (steps_of(groups, tried) * tried.float() - groups).square_()
        error = (error if importance is None else error.mul_(importance)).sum(dim=-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, tried, scales)
    return scales


def stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they are stored; the smallest normal number in place of less."""
    return scale.clamp(min=torch.finfo(dtype).tiny).to(dtype)


def steps_of(values: Tensor, scales: Tensor) -> Tensor:
    """The nearest steps of scales as they are stored, in float32."""
    return torch.round(values / scales.float()).clamp_(-MOST, MOST)
