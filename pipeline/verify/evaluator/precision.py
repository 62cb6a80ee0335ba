"""The precisions in which programs are evaluated, and how values are rounded to them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

# "float16" is simulated: every value is rounded to float16. "smooth" is float32 in which int8 activations are clipped
# to int8's range but not rounded to its steps.
Precision = Literal["float32", "float16", "smooth"]


def to_float32(value: Any) -> Any:
    """Returns floats as float32, and everything else (integers, booleans, strings) unchanged."""
    if isinstance(value, np.bool_):  # coremltools passes flags to numpy, which since 2.0 accepts only Python's bool
        return bool(value)
    if isinstance(value, (float, np.ndarray, np.generic)) and np.asarray(value).dtype.kind == "f":
        return np.asarray(value, dtype=np.float32)
    return value


def round_to_float16(value: Any) -> Any:
    """Returns floats rounded to the nearest float16 but stored as float32, in which numpy is fast.

    Numbers beyond float16's range become infinite. torch rounds as numpy does, ten times as fast.
    """
    import torch

    value = to_float32(value)
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return torch.from_numpy(np.require(value, requirements=("C", "W"))).half().float().numpy()
    return value
