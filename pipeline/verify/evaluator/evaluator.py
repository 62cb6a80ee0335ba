"""Evaluates a saved Core ML package on any machine, by coremltools' own definition of its operators.

Core ML runs only on Apple's systems. But coremltools defines what most operators compute on numpy arrays
(`value_inference`, which folds constants during conversion), and `pipeline.verify.evaluator.operators` defines the
others. The package is read back from the disk, so the file itself is checked, not what was in memory when it was
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.support.errors import UserError
from pipeline.verify.evaluator.faults import Fault, FaultRecorder
from pipeline.verify.evaluator.loading import unknown_operator
from pipeline.verify.evaluator.mil import shapes_fit
from pipeline.verify.evaluator.operators import OPERATORS, SMOOTH_OPERATORS, Operator
from pipeline.verify.evaluator.precision import Precision, round_to_float16, to_float32
from pipeline.verify.evaluator.program import EXPORT_AGAIN, Function, Package
from pipeline.verify.evaluator.steps import Rounding, Step


@dataclass(frozen=True)
class Evaluation:
    """What one run of a function gave.

    Attributes:
        outputs: by name.
        faults: the first value with an infinity and the first with a NaN, in the order in which they arose.
    """

    outputs: dict[str, np.ndarray]
    faults: tuple[Fault, ...]


def evaluate(
    package: Package, function_name: str, inputs: Mapping[str, np.ndarray], precision: Precision = "float32"
) -> Evaluation:
    """Runs one function of a package.

    Args:
        inputs: an array for every input, of its dtype and shape.
        precision: "float32" computes everything in float32 from the saved weights: this is what the program means.
            "float16" also rounds every constant and every operator's result to float16, so that overflows and NaNs
            show. Inside an operator (a dot product, a layer norm's variance) it still sums in float32; a device may
            round there, too. "smooth" is float32 in which `quantize` scales and clips but does not round, so that
            weights can be compared more exactly.

    Returns:
        the outputs, of the dtypes that the package declares, and the faults.

    Raises:
        UserError: for an unknown function, an input that is missing, unknown or of another dtype or shape, or an
            operator that the evaluator does not know.
    """
    function = package.function(function_name)
    check_inputs(package, function, inputs)
    rounding = round_to_float16 if precision == "float16" else to_float32
    operators = SMOOTH_OPERATORS if precision == "smooth" else OPERATORS
    values = {name: rounding(value) for name, value in inputs.items()}
    recorder = FaultRecorder()
    for name, value in values.items():
        recorder.inspect("input", name, value)
    # A constant beyond float16 becomes infinite, which is harmless as the bound of a clip. So constants are not
    # inspected: if the infinity matters, an operator's result shows it.
    with np.errstate(all="ignore"):
        values |= function.float16_constants if precision == "float16" else function.constants
        for step in function.steps:
            operator = step.operation.op_type
            results = run_step(package, step, values, rounding, operators)
            for (name, declared), result in zip(step.outputs, results):
                if not shapes_fit(np.shape(result), declared):
                    raise UserError(
                        f"gives shape {np.shape(result)}, the program says {declared}; {EXPORT_AGAIN}",
                        file=package.path,
                        field=f"{operator} {name}",
                    )
                values[name] = result if step.moves else rounding(result)
                recorder.inspect(operator, name, values[name])
        outputs = {output.name: np.asarray(values[output.name]).astype(output.dtype) for output in function.outputs}
    return Evaluation(outputs, tuple(recorder.faults.values()))


def check_inputs(package: Package, function: Function, inputs: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless `inputs` has one array for every input, of its dtype and shape, and nothing else."""
    names = [spec.name for spec in function.inputs]
    for name in inputs:
        if name not in names:
            raise UserError(
                f"is not an input of {function.name}; it takes {', '.join(names)}", file=package.path, field=name
            )
    for spec in function.inputs:
        if spec.name not in inputs:
            raise UserError(
                f"{function.name} needs this input; it takes {', '.join(names)}", file=package.path, field=spec.name
            )
        value = inputs[spec.name]
        if not spec.accepts(value):
            raise UserError(
                f"{function.name} takes {spec.dtype} {list(spec.shape)}, not {value.dtype.name} {list(value.shape)}; "
                "pad the input to the function's length",
                file=package.path,
                field=spec.name,
            )


def run_step(
    package: Package, step: Step, values: Mapping[str, Any], rounding: Rounding, operators: Mapping[str, Operator]
) -> tuple[Any, ...]:
    """Returns the results of one operation, by `operators` or else by coremltools' definition.

    Raises:
        UserError: neither defines the operator.
    """
    operation = step.operation
    if operation.blocks:  # loops and branches contain programs of their own
        raise unknown_operator(package.path, operation.op_type)
    define = operators.get(operation.op_type)
    step.bind(values, rounding)
    try:
        results = operation.value_inference() if define is None else define(operation)
    except NotImplementedError:
        results = None
    finally:
        step.release()
    results = tuple(results) if isinstance(results, (list, tuple)) else (results,)
    if len(results) != len(operation.outputs) or any(result is None for result in results):
        raise unknown_operator(package.path, operation.op_type)
    return results
