"""Operators that the evaluator computes itself give what coremltools' own definition gives, on random inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.support.quiet import import_quietly
from pipeline.verify.comparison import signal_to_noise_db
from pipeline.verify.evaluator.operators import OPERATORS

CASES = {
    "linear": [
        {"x": (1, 48, 64), "weight": (96, 64), "bias": (96,)},
        {"x": (7, 64), "weight": (3, 64), "bias": None},
    ],
    "matmul": [
        {"x": (1, 4, 32, 16), "y": (1, 4, 32, 16), "transpose_x": False, "transpose_y": True},
        {"x": (1, 4, 16, 32), "y": (16, 24), "transpose_x": True, "transpose_y": False},
        {"x": (8,), "y": (8, 5), "transpose_x": False, "transpose_y": False},
    ],
    "softmax": [{"x": (1, 4, 32, 32), "axis": -1}, {"x": (1, 5, 1, 9), "axis": 1}],
    "layer_norm": [
        {"x": (1, 32, 64), "axes": [-1], "gamma": (64,), "beta": (64,), "epsilon": 1e-12},
        {"x": (2, 3, 4, 8), "axes": [2, 3], "gamma": (4, 8), "beta": None, "epsilon": 1e-5},
        {"x": (1, 64, 1, 32), "axes": [1], "gamma": (64,), "beta": (64,), "epsilon": 1e-5},
    ],
    "transpose": [{"x": (1, 32, 4, 16), "perm": [0, 2, -1, 1]}],
    "gelu": [{"x": (1, 32, 64), "mode": "EXACT"}],
}


def operation_of(operator: str, arguments: dict[str, Any], seed: int) -> Any:
    """Returns an operation of coremltools' class whose inputs have values; a shape stands for random numbers."""
    import_quietly("coremltools")
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    random, kind = np.random.default_rng(seed), next(iter(SSAOpRegistry.core_ops[operator].values()))
    operation = object.__new__(kind)  # its __init__ wants the variables of a program
    operation._input_types, operation._input_vars = kind.input_spec.input_types, {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            value = random.normal(0.0, 3.0, value).astype(np.float32)
        operation._input_vars[name] = None if value is None else SimpleNamespace(val=value, sym_val=value)
        setattr(operation, name, operation._input_vars[name])
    return operation


@pytest.mark.parametrize(
    ("operator", "arguments"), [(name, case) for name, cases in CASES.items() for case in cases], ids=str
)
def test_an_operator_is_that_of_coremltools_up_to_the_order_of_sums(operator, arguments):
    for seed in range(3):
        operation = operation_of(operator, arguments, seed)
        expected = np.asarray(operation.value_inference())
        actual = OPERATORS[operator](operation)
        assert actual.shape == expected.shape and actual.dtype == np.float32
        # A relative error of 1e-6; float32 has steps of 6e-8. The floor of fingerprints is 30 dB lower.
        assert signal_to_noise_db(expected, actual) > 120
