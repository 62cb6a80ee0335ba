"""Evaluates one saved package, or a `.pte` for ExecuTorch's Core ML delegate, without its bundle.

The inputs are given or random. Every function runs in float32 and in simulated float16.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.support.errors import UserError
from pipeline.support.workspace import write_bytes
from pipeline.verify.comparison import signal_to_noise_db
from pipeline.verify.evaluator.delegate import load_delegate_file
from pipeline.verify.evaluator.evaluator import check_inputs, evaluate
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.evaluator.mil import is_constant, variables_read
from pipeline.verify.evaluator.precision import Precision
from pipeline.verify.evaluator.program import Function, Package

SEED = 0
RANDOM_INPUTS = f"random (seed {SEED})"
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")


@dataclass(frozen=True)
class OutputReport:
    """One output in the chosen precision, and how well float16 agrees with float32.

    Attributes:
        minimum, maximum: of its finite numbers; None if it has none.
        float16_snr_db: signal to noise of float16 against float32, in decibels.
    """

    name: str
    dtype: str
    shape: list[int]
    minimum: float | None
    maximum: float | None
    finite: bool
    float16_snr_db: float


@dataclass(frozen=True)
class FunctionReport:
    """One function, usually a bucket.

    Attributes:
        passed: whether all outputs are finite in both precisions.
        faults: the first overflow and the first NaN, by precision.
    """

    function: str
    passed: bool
    outputs: list[OutputReport]
    faults: dict[Precision, list[str]]


@dataclass(frozen=True)
class PackageReport:
    """What `pocketbert verify FILE.mlpackage` found.

    Attributes:
        inputs: "random ..." or the inputs' file.
        precision: the precision of the outputs in the report.
        values: the outputs by function and name.
    """

    package: str
    specification_version: int
    inputs: str
    precision: Precision
    functions: list[FunctionReport]
    values: dict[str, dict[str, np.ndarray]]

    @property
    def passed(self) -> bool:
        return all(function.passed for function in self.functions)

    def to_json(self) -> dict[str, Any]:
        """Returns what `--json` prints. The values are included if the inputs were given."""
        fields = {name: value for name, value in asdict(self).items() if name != "values"}
        document: dict[str, Any] = {"passed": self.passed, **fields}
        if self.inputs != RANDOM_INPUTS:
            document["values"] = {
                function: {name: to_lists(value) for name, value in outputs.items()}
                for function, outputs in self.values.items()
            }
        return document

    def save(self, file: Path) -> None:
        """Writes the outputs as an `.npz` file, completely or not at all.

        The keys are the outputs' names, with several functions "function/name".
        """
        single = len(self.values) == 1
        arrays: dict[str, Any] = {  # Any: savez also has a keyword of another type
            name if single else f"{function}/{name}": value
            for function, outputs in self.values.items()
            for name, value in outputs.items()
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            write_bytes(file, buffer.getvalue())
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", file=file) from None


def to_lists(value: np.ndarray) -> list[Any]:
    """Returns an array as nested lists; null stands for infinity and NaN, which JSON cannot express."""
    if value.dtype.kind != "f":
        return value.tolist()
    numbers = value.astype(object)
    numbers[~np.isfinite(value)] = None
    return numbers.tolist()


def examine_package(
    path: str | Path, inputs: str | Path | None = None, function: str | None = None, precision: Precision = "float32"
) -> tuple[PackageReport, Package]:
    """Evaluates the functions of a package, or the methods of a `.pte` for the Core ML delegate, in both precisions.

    Args:
        inputs: an `.npz` or `.json` file with an array for each input. By default they are random.
        function: the function to run, by default all. Given inputs fit only one function, so with several it is needed.
        precision: the precision of the outputs in the report.

    Raises:
        UserError: for a file that cannot be read or evaluated, an unknown function, and inputs that do not fit.
    """
    package = load_delegate_file(path).package if Path(path).suffix == ".pte" else load_package(path)
    names = [package.function(function).name] if function else list(package.functions)
    if inputs is not None and len(names) > 1:
        raise UserError(
            f"the package has {', '.join(names)}; say with --function which one the inputs are for", file=path
        )
    reports, values = [], {}
    for name in names:
        arrays = inputs_for(package, package.functions[name], inputs)
        evaluations = {used: evaluate(package, name, arrays, used) for used in PRECISIONS}
        values[name] = evaluations[precision].outputs
        exact, rounded = evaluations["float32"].outputs, evaluations["float16"].outputs
        outputs = [
            report_output(spec.name, values[name][spec.name], signal_to_noise_db(exact[spec.name], rounded[spec.name]))
            for spec in package.functions[name].outputs
        ]
        passed = all(np.isfinite(value).all() for side in (exact, rounded) for value in side.values())
        faults = {used: [str(fault) for fault in evaluation.faults] for used, evaluation in evaluations.items()}
        reports.append(FunctionReport(name, passed, outputs, faults))
    source = RANDOM_INPUTS if inputs is None else str(inputs)
    return PackageReport(str(path), package.specification_version, source, precision, reports, values), package


def report_output(name: str, value: np.ndarray, snr_db: float) -> OutputReport:
    """Summarizes an output's numbers."""
    finite = value[np.isfinite(value)]
    minimum, maximum = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    is_finite = finite.size == value.size
    return OutputReport(name, value.dtype.name, list(value.shape), minimum, maximum, is_finite, snr_db)


def inputs_for(package: Package, function: Function, file: str | Path | None) -> dict[str, np.ndarray]:
    """Returns a function's inputs from a file, or random ones without a file. Raises UserError if they do not fit."""
    if file is None:
        return random_inputs(function)
    inputs = read_inputs(Path(file), function)
    try:
        check_inputs(package, function, inputs)
    except UserError as error:  # what has to be corrected is the inputs' file, not the package
        raise UserError(str(error).removeprefix(f"{package.path}: "), file=file) from None
    return inputs


def random_inputs(function: Function) -> dict[str, np.ndarray]:
    """Returns seeded inputs of the declared types and shapes; a flexible shape has its default size.

    Floats are normally distributed. Integers are uniform over the rows of the table that they look up.
    """
    random, inputs = np.random.default_rng(SEED), {}
    for spec in function.inputs:
        if np.dtype(spec.dtype).kind == "f":
            inputs[spec.name] = random.standard_normal(spec.default_shape).astype(spec.dtype)
        else:
            rows = rows_looked_up(function, spec.name)
            inputs[spec.name] = random.integers(0, rows, spec.default_shape).astype(spec.dtype)
    return inputs


def rows_looked_up(function: Function, name: str) -> int:
    """Returns the rows of the smallest table that an input, or what is computed from it, looks up.

    Without any table the input is taken for a flag, so the answer is 2.
    """
    reached, rows = {name}, math.inf
    for operation in function.operations:
        if is_constant(operation):
            continue
        indices = getattr(operation, "indices", None)
        if operation.op_type in ("gather", "gather_along_axis") and indices is not None and indices.name in reached:
            rows = min(rows, int(operation.x.shape[int(operation.axis.val)]))
        elif any(variable.name in reached for variable in variables_read(operation)):
            reached.update(output.name for output in operation.outputs)
    return 2 if rows == math.inf else int(rows)


def read_inputs(path: Path, function: Function) -> dict[str, np.ndarray]:
    """Reads the inputs of a function from an `.npz` file, or from a JSON object of nested lists.

    JSON's numbers get the types that the function declares.

    Raises:
        UserError: if the file cannot be read, or a JSON value is not an array of numbers that the declared type holds.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", file=path) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"is neither an .npz file of arrays nor JSON ({error})", file=path) from None
    if not isinstance(raw, dict):
        raise UserError('is no JSON object such as {"input_ids": [[101, 102]]}', file=path)
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in function.inputs}
    return {name: from_json(path, name, value, dtypes.get(name)) for name, value in raw.items()}


def from_json(path: Path, name: str, value: Any, dtype: np.dtype | None) -> np.ndarray:
    """Converts a JSON value to an array of `dtype`; without one, for an unknown input, numpy chooses the type."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise UserError("its lists are not all of one length", file=path, field=name) from None
    if array.dtype.kind not in "iuf":
        raise UserError("is not an array of numbers", file=path, field=name)
    if dtype is None:
        return array
    if dtype.kind != "f" and (array.dtype.kind == "f" or array.size and not np.array_equal(array.astype(dtype), array)):
        raise UserError(f"holds numbers that {dtype.name} does not", file=path, field=name)
    return array.astype(dtype)
