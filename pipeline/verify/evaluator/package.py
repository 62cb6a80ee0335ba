"""One saved package, or a `.pte` for ExecuTorch's Core ML delegate, looked at without its bundle: what it computes in float32 and in simulated float16, on given or on random inputs."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.support.errors import UserError
from pipeline.support.workspace import write_bytes
from pipeline.verify.checks import signal_to_noise_db
from pipeline.verify.evaluator.delegate import load_delegate_file
from pipeline.verify.evaluator.evaluator import (
    Function,
    Package,
    Precision,
    check_inputs,
    is_constant,
    load_package,
    watch,
)

SEED = 0
RANDOM = f"random (seed {SEED})"


@dataclass(frozen=True)
class Output:
    """One output: what the chosen precision gives, and how well float16 agrees with float32.

    `minimum` and `maximum` are of its finite numbers, None where it has none. `float16_snr_db`: float32's output over the difference, in decibels.
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
    """One function, a bucket as a rule: `passed` when all outputs are finite in both precisions.

    `faults` has the first overflow and the first NaN in each.
    """

    function: str
    passed: bool
    outputs: list[Output]
    faults: dict[Precision, list[str]]


@dataclass(frozen=True)
class PackageReport:
    """What `pocketbert verify FILE.mlpackage` found; `inputs` is "random ..." or the file; `values` are the outputs by function and name."""

    package: str
    specification_version: int
    inputs: str
    precision: Precision
    functions: list[FunctionReport]
    values: dict[str, dict[str, np.ndarray]]

    @property
    def passed(self) -> bool:
        return all(function.passed for function in self.functions)

    def to_json(self) -> dict:
        """What `--json` prints; the values are there where inputs were given."""
        said = {"passed": self.passed, **{name: value for name, value in asdict(self).items() if name != "values"}}
        if self.inputs != RANDOM:
            said["values"] = {
                function: {name: jsonable(value) for name, value in of.items()} for function, of in self.values.items()
            }
        return said

    def save(self, file: Path) -> None:
        """Writes the outputs as an `.npz` file, whole or not at all: by name, or by "function/name" where there are several functions."""
        single = len(self.values) == 1
        arrays = {
            name if single else f"{function}/{name}": value
            for function, of in self.values.items()
            for name, value in of.items()
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            write_bytes(file, buffer.getvalue())
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", file=file) from None


def jsonable(value: np.ndarray) -> list:
    """Nested lists; what is not finite, which JSON has no number for, is null."""
    return (
        np.where(np.isfinite(value), value.astype(object), None).tolist() if value.dtype.kind == "f" else value.tolist()
    )


def examine_package(
    path: str | Path, inputs: str | Path | None = None, function: str | None = None, precision: Precision = "float32"
) -> tuple[PackageReport, Package]:
    """Evaluates in both precisions a package's functions, or the methods of a `.pte` that ExecuTorch hands to Core ML.

    Args:
        inputs: an `.npz` or `.json` file with an array for each input; random ones of the declared shapes and types without it.
        function: the one to run; all of them without it, but given inputs fit one: it has to be named where there are several.
        precision: whose outputs are shown.

    Raises:
        UserError: in one line, for a file that cannot be read or evaluated, an unknown function, and inputs that do not fit.
    """
    package = load_delegate_file(path).package if Path(path).suffix == ".pte" else load_package(path)
    names = [package.function(function).name] if function else list(package.functions)
    if inputs is not None and len(names) > 1:
        raise UserError(
            f"the package has {', '.join(names)}; say with --function which one the inputs are for", file=path
        )
    reports, values = [], {}
    for name in names:
        described = package.functions[name]
        given = random_inputs(described) if inputs is None else read_inputs(Path(inputs), described)
        if inputs is not None:
            try:
                check_inputs(package, described, given)
            except UserError as error:  # the inputs' file is what to mend
                raise UserError(str(error).removeprefix(f"{package.path}: "), file=inputs) from None
        evaluations = {each: watch(package, name, given, each) for each in ("float32", "float16")}
        exact, rounded = (evaluations[each].outputs for each in ("float32", "float16"))
        values[name] = evaluations[precision].outputs
        outputs = [
            summary(
                tensor.name, values[name][tensor.name], signal_to_noise_db(exact[tensor.name], rounded[tensor.name])
            )
            for tensor in described.outputs
        ]
        passed = all(np.isfinite(value).all() for of in (exact, rounded) for value in of.values())
        faults = {each: [str(fault) for fault in evaluation.faults] for each, evaluation in evaluations.items()}
        reports.append(FunctionReport(name, passed, outputs, faults))
    report = PackageReport(
        str(path), package.specification_version, RANDOM if inputs is None else str(inputs), precision, reports, values
    )
    return report, package


def summary(name: str, value: np.ndarray, snr_db: float) -> Output:
    finite = value[np.isfinite(value)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Output(name, value.dtype.name, list(value.shape), least, most, finite.size == value.size, snr_db)


def random_inputs(function: Function) -> dict[str, np.ndarray]:
    """Seeded inputs of the declared shapes (a flexible one's default) and types.

    Numbers are normally distributed, integers uniformly, over the rows of the table that they look up.
    """
    random, inputs = np.random.default_rng(SEED), {}
    for tensor in function.inputs:
        shape = tensor.default_shape
        if np.dtype(tensor.dtype).kind == "f":
            inputs[tensor.name] = random.standard_normal(shape).astype(tensor.dtype)
        else:
            inputs[tensor.name] = random.integers(0, rows_looked_up(function, tensor.name), shape).astype(tensor.dtype)
    return inputs


def rows_looked_up(function: Function, name: str) -> int:
    """How many rows the smallest table has that is looked up by what is computed from this input; 2, for a flag, where there is none."""
    reached, rows = {name}, math.inf
    for operation in function.operations:
        if is_constant(operation):
            continue
        indices = getattr(operation, "indices", None)
        if operation.op_type in ("gather", "gather_along_axis") and indices is not None and indices.name in reached:
            rows = min(rows, int(operation.x.shape[int(operation.axis.val)]))
        elif any(
            var.name in reached
            for value in operation.inputs.values()
            for var in (value if isinstance(value, (list, tuple)) else (value,))
        ):
            reached.update(output.name for output in operation.outputs)
    return 2 if rows == math.inf else int(rows)


def read_inputs(path: Path, function: Function) -> dict[str, np.ndarray]:
    """The arrays in an `.npz` file as they are, or in a JSON object of nested lists, with the types that the function declares.

    Raises:
        UserError: when the file cannot be read, or a JSON value is no array of numbers that the declared type holds.
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
    dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in function.inputs}
    return {name: from_json(path, name, value, dtypes.get(name)) for name, value in raw.items()}


def from_json(path: Path, name: str, value, dtype: np.dtype | None) -> np.ndarray:
    """A JSON value as an array of `dtype`; as numpy reads it where that is None, for an input that the function has not."""
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
