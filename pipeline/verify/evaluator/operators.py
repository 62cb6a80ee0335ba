"""The operators that the evaluator computes itself, because coremltools' definition is missing, too slow or rounds.

coremltools does not define `conv` on arrays. Its GELU calls `math.erf` once per number. Its cast rounds to float16
where "float32" must not. Its products, softmax and layer norm are right, but take several times as long as torch's.
tests/verify/evaluator compares all of these with torch, or with coremltools' own definition on random inputs.

To teach the evaluator an operator, add a function for it here with `@defines("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.verify.evaluator.mil import Operation

if TYPE_CHECKING:
    import torch

# Computes an operation from the `val` of its inputs.
Operator = Callable[[Operation], Any]
OPERATORS: dict[str, Operator] = {}


def defines(*names: str) -> Callable[[Operator], Operator]:
    """Registers a function as the definition of the named operators."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def to_torch(value: np.ndarray) -> torch.Tensor:
    """Returns an array as a tensor, without a copy where torch can share it."""
    import torch

    flags = value.flags
    return torch.from_numpy(value if flags.c_contiguous and flags.writeable else np.require(value, None, ("C", "W")))


def torch_functions() -> Any:
    """Returns `torch.nn.functional`, which is imported when it is first needed."""
    import torch.nn.functional

    return torch.nn.functional


@defines("cast")
def cast(operation: Operation) -> np.ndarray:
    """Casts to integers by truncation, as C does. A cast between float types only rounds, which the caller does."""
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    value, dtype = np.asarray(operation.x.val), np.dtype(string_to_nptype(operation.dtype.val))
    return value.astype(np.float32 if dtype.kind == "f" else dtype, copy=False)


@defines("gelu")
def gelu(operation: Operation) -> np.ndarray:
    """Computes GELU (Hendrycks and Gimpel 2016); modes other than the exact one are coremltools' own."""
    if operation.mode.val != "EXACT":
        return type(operation).value_inference(operation)
    x = to_torch(operation.x.val)
    return (x * 0.5**0.5).erf_().add_(1.0).mul_(x).mul_(0.5).numpy()


@defines("linear")
def linear(operation: Operation) -> np.ndarray:
    """Computes x weight^T + bias in float32; only the order of the sums differs from coremltools' definition."""
    bias = None if operation.bias is None or operation.bias.val is None else to_torch(operation.bias.val)
    return torch_functions().linear(to_torch(operation.x.val), to_torch(operation.weight.val), bias).numpy()


@defines("matmul")
def matmul(operation: Operation) -> np.ndarray:
    """Computes the product of two stacks of matrices; only the order of the sums differs from coremltools'."""
    x, y = np.asarray(operation.x.val), np.asarray(operation.y.val)
    if x.dtype != np.float32 or y.dtype != np.float32 or min(x.ndim, y.ndim) < 2:
        return type(operation).value_inference(operation)
    factors = [
        to_torch(value).transpose(-1, -2) if transpose is not None and transpose.val else to_torch(value)
        for value, transpose in ((x, operation.transpose_x), (y, operation.transpose_y))
    ]
    return (factors[0] @ factors[1]).numpy()


@defines("transpose")
def transpose(operation: Operation) -> np.ndarray:
    """Reorders the dimensions, as coremltools does, without its checks at each call."""
    return np.transpose(operation.x.val, [int(axis) for axis in operation.perm.val])


@defines("softmax")
def softmax(operation: Operation) -> np.ndarray:
    """Computes the softmax along one axis, as coremltools defines it."""
    return to_torch(operation.x.val).softmax(int(operation.axis.val)).numpy()


@defines("layer_norm")
def layer_norm(operation: Operation) -> np.ndarray:
    """Normalizes the given dimensions, as coremltools defines it; only the order of the sums differs."""
    x = to_torch(operation.x.val)
    axes = sorted(int(axis) % x.dim() for axis in (range(x.dim()) if operation.axes is None else operation.axes.val))
    last = list(range(x.dim() - len(axes), x.dim()))
    shape = tuple(x.shape[axis] for axis in axes)
    gamma, beta = (
        None if parameter is None or parameter.val is None else to_torch(parameter.val).reshape(shape)
        for parameter in (operation.gamma, operation.beta)
    )
    moved = x.movedim(axes, last)
    return (
        torch_functions()
        .layer_norm(moved, shape, gamma, beta, float(operation.epsilon.val))
        .movedim(last, axes)
        .contiguous()
        .numpy()
    )


@defines("conv")
def conv(operation: Operation) -> np.ndarray:
    """Computes a convolution without padding by torch, whose order of dimensions and groups is the same."""
    if operation.pad_type.val != "valid":
        raise NotImplementedError
    import torch

    x, weight = to_torch(operation.x.val), to_torch(operation.weight.val)
    has_bias = operation.bias is not None and operation.bias.val is not None
    bias = to_torch(operation.bias.val) if has_bias else None
    strides, dilations = (tuple(map(int, sizes.val)) for sizes in (operation.strides, operation.dilations))
    convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[x.dim() - 2]
    return convolve(x, weight, bias, strides, 0, dilations, int(operation.groups.val)).numpy()


@defines("batch_norm")
def batch_norm(operation: Operation) -> np.ndarray:
    """Normalizes dimension 1 with the stored statistics; coremltools writes a per-channel scale and offset this way."""

    def by_channel(parameter: Any, default: float) -> np.ndarray:
        missing = parameter is None or parameter.val is None
        value = np.full(operation.mean.val.shape, default, np.float32) if missing else parameter.val
        return np.reshape(value, (1, -1, *[1] * (operation.x.val.ndim - 2)))

    mean, variance = by_channel(operation.mean, 0.0), by_channel(operation.variance, 1.0)
    scale = by_channel(operation.gamma, 1.0) / np.sqrt(variance + operation.epsilon.val)
    return (operation.x.val - mean) * scale + by_channel(operation.beta, 0.0)


@defines("dequantize")
def dequantize(operation: Operation) -> np.ndarray:
    """Applies coremltools' definition, which it gives only for constants and under another name."""
    return operation.materialized_val_inference()


def scale_of(operation: Operation) -> np.ndarray:
    """Returns the scale of `quantize` or `dequantize`, in as many dimensions as the input has."""
    scale = np.asarray(operation.scale.val, dtype=np.float32)
    if scale.ndim == 0:
        return scale
    shape = [1] * np.ndim(operation.input.val)
    shape[int(operation.axis.val)] = -1
    return scale.reshape(shape)


def zero_point_of(operation: Operation) -> np.ndarray | float:
    """Returns the zero point in the same dimensions; 0 if the operation has none."""
    if operation.zero_point is None or operation.zero_point.val is None:
        return 0.0
    zero_point = np.asarray(operation.zero_point.val, dtype=np.float32)
    return zero_point if zero_point.ndim == 0 else zero_point.reshape(scale_of(operation).shape)


def quantize_without_rounding(operation: Operation) -> np.ndarray:
    """Scales and clips to the integers' range as `quantize` does, but does not round."""
    limits = np.iinfo(operation.output_dtype.val)
    return np.clip(operation.input.val / scale_of(operation) + zero_point_of(operation), limits.min, limits.max)


def dequantize_reals(operation: Operation) -> np.ndarray:
    """Undoes the scaling of `quantize_without_rounding`."""
    return (operation.input.val - zero_point_of(operation)) * scale_of(operation)


# For the precision "smooth".
SMOOTH_OPERATORS: dict[str, Operator] = {
    **OPERATORS,
    "quantize": quantize_without_rounding,
    "dequantize": dequantize_reals,
}
