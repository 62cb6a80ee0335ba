"""Weights in four bits: whole steps from -7 to 7 of a scale that `INT4_GROUP` inputs of an output share.

`int4` of both targets, ExecuTorch and Core ML, has these weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_STEP = 7  # on either side; -8 is left out, so that a group and its negative are rounded alike
# The scales that are tried for a group, as shares of the scale whose last step is the group's largest value. Those
# below 1 cut the largest values a little, which costs less than coarse steps when there are 15. Those above 1 keep
# weights as they are that are whole steps already and do not use the last ones.
SHARES = (*torch.linspace(1.0, 0.7, 7).tolist(), MAX_STEP / 6, MAX_STEP / 5, MAX_STEP / 4)


def best_scales(groups: Tensor, dtype: torch.dtype, importance: Tensor | None = None) -> Tensor:
    """Returns the scale with the least squared error for each group of values, among those of `SHARES`.

    Args:
        groups: [..., values] float32.
        dtype: the type that scales are stored in; the scale of a group of zeros is its smallest normal number.
        importance: weights the squared errors of the values; broadcasts to `groups`.

    Returns:
        [..., 1] in `dtype`.
    """
    peak = groups.abs().amax(dim=-1, keepdim=True)
    least = torch.full_like(peak, torch.inf)
    scales = torch.empty_like(peak, dtype=dtype)
    for share in SHARES:
        candidates = stored_scale(peak * share / MAX_STEP, dtype)
        error = (nearest_steps(groups, candidates) * candidates.float() - groups).square_()
        error = (error if importance is None else error.mul_(importance)).sum(dim=-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, candidates, scales)
    return scales


def stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns scales in the type that they are stored in, at least its smallest normal number."""
    return scale.clamp(min=torch.finfo(dtype).tiny).to(dtype)


def nearest_steps(values: Tensor, scales: Tensor) -> Tensor:
    """Returns the nearest whole steps, in float32, of scales in their stored type."""
    return torch.round(values / scales.float()).clamp_(-MAX_STEP, MAX_STEP)
