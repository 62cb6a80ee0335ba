"""Evaluates a saved Core ML package on any machine: what Core ML would run, in coremltools' own operator semantics.

Core ML runs on Apple's systems only. coremltools, however, defines for its operators what they compute on numpy arrays
(`value_inference`, which folds constants during conversion). Here a package is read back from the disk, its weights included, and
those definitions are applied to real inputs. So it is the file that is checked, not what was in memory when it was written.

Some operators are computed by this module (`OWN`): coremltools' definition of them is missing, scalar (GELU), or would round
where "float32" must not (cast, and what widens to float64). tests/verify/test_mil_evaluator.py holds them against torch. To teach the
evaluator an operator, register a function for it with `@own(...)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging

SPEC_FILE = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS_FOLDER = Path("Data/com.apple.CoreML/weights")
AGAIN = "export the bundle again"

# "smooth" is float32 in which activations in int8 have its range and not its steps.
Precision = Literal["float32", "float16", "smooth"]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a function; dtype is numpy's name ("int32", "float32", ...).

    A flexible dimension is None in `shape`; in `default_shape`, of inputs, it has the size that the package names first.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    default_shape: tuple[int, ...] = ()

    def fits(self, value: np.ndarray) -> bool:
        """Whether an array has the type, and the shape where it is fixed."""
        return value.dtype.name == self.dtype and shapes_fit(value.shape, self.shape)


@dataclass(frozen=True)
class Function:
    """One function of a package: its inputs and outputs in order."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operations: tuple[Any, ...] = field(repr=False)  # coremltools operations, in an order in which they can run

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The values of the constants by name, compressed weights expanded, floats as float32; kept, since every call needs them."""
        values = {}
        for operation in self.operations:
            name = operation.outputs[0].name
            if operation.op_type == "const":
                values[name] = widened(operation.outputs[0].val)
            elif is_constant(operation):
                values[name] = widened(
                    DECOMPRESSED.get(operation.op_type, type(operation).materialized_val_inference)(operation)
                )
        return values

    @cached_property
    def float16_constants(self) -> dict[str, Any]:
        """The same rounded to float16; those that are float16 already, a program's weights for the most part, are the same arrays."""
        values = {}
        for name, value in self.constants.items():
            each = rounded(value)
            unchanged = isinstance(value, np.ndarray) and np.array_equal(each, value)
            values[name] = value if unchanged else each
        return values


@dataclass(frozen=True)
class Fault:
    """Where a program's numbers first leave the finite ones.

    `kind` is "input" or the operator's type; `name` is that of its value. `what` says whether it has an infinity or a NaN.
    """

    kind: str
    name: str
    what: Literal["overflows", "makes NaN"]

    def __str__(self) -> str:
        if self.kind == "input":
            return f"input {self.name} {'is infinite' if self.what == 'overflows' else 'is NaN'}"
        return f"{self.kind} {self.name} {self.what}"


@dataclass(frozen=True)
class Evaluation:
    """A function's outputs by name, and the first value with an infinity and the first with a NaN, in the order they came; none is best."""

    outputs: dict[str, np.ndarray]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Package:
    """A package read from the disk; `functions` by name ("main" where there is one only)."""

    path: Path
    specification_version: int
    functions: dict[str, Function]

    def function(self, name: str) -> Function:
        """The function of that name. Raises UserError when there is none."""
        if name not in self.functions:
            raise UserError(
                f"there is no such function; the package has {', '.join(self.functions)}", file=self.path, field=name
            )
        return self.functions[name]


def load_package(path: str | Path) -> Package:
    """Reads an `.mlpackage`: its program, every function of it, and the weights.

    Raises:
        UserError: naming the file, when the package is not whole, is of a newer version than coremltools knows, or holds an operator
            that coremltools does not know.
    """
    path = Path(path)
    spec = read_spec(path)
    import_quietly("coremltools")
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    check_operators(path, spec)
    try:
        with quiet_logging():
            program = load_program(spec, spec.specificationVersion, str(path / WEIGHTS_FOLDER))
    except (
        Exception
    ) as error:  # coremltools raises whatever its parts raise; each means that the package does not hold together
        raise UserError(f"does not hold together ({type(error).__name__}: {error}); {AGAIN}", file=path) from None
    names = sorted(
        program.functions, key=lambda name: (len(name), name)
    )  # length_32 before length_128; the file has no order
    functions = {name: read_function(name, program.functions[name], default_shapes(spec, name)) for name in names}
    return Package(path, spec.specificationVersion, functions)


def read_spec(path: Path):
    """The package's specification, a protocol buffer, checked as far as it can be without the weights' values."""
    ct = import_quietly("coremltools")
    if not path.is_dir():
        raise UserError(f"is not a Core ML package (a folder); {AGAIN}", file=path)
    try:
        raw = (path / SPEC_FILE).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror}), the package is not whole; {AGAIN}", file=path / SPEC_FILE
        ) from None
    spec = ct.proto.Model_pb2.Model()
    try:
        spec.ParseFromString(raw)
    except Exception:  # google.protobuf.message.DecodeError; protobuf is coremltools' dependency, not ours
        raise UserError(f"is cut or altered; {AGAIN}", file=path / SPEC_FILE) from None
    newest = max(ct.target).value
    if spec.specificationVersion > newest:
        raise UserError(
            f"specification version {spec.specificationVersion} is newer than {newest}, the newest that coremltools {ct.__version__} "
            "reads; install a newer coremltools",
            file=path / SPEC_FILE,
        )
    if spec.WhichOneof("Type") != "mlProgram":
        raise UserError(f"is not an ML program; {AGAIN}", file=path / SPEC_FILE)
    check_weights(path, spec)
    return spec


def check_weights(path: Path, spec) -> None:
    """Every weights file that the program reads from must be there and reach as far as the program reads.

    coremltools' reader maps the file into memory and says little of where it failed, so the ends are looked at first.
    """
    sizes: dict[str, int] = {}
    for operation in operations_of(spec):
        values = [*operation.attributes.values()]
        for argument in operation.inputs.values():
            values += [binding.value for binding in argument.arguments if binding.WhichOneof("binding") == "value"]
        for value in values:
            if value.WhichOneof("value") != "blobFileValue":
                continue
            name = value.blobFileValue.fileName.split("/")[-1]
            file = path / WEIGHTS_FOLDER / name
            if name not in sizes:
                if not file.is_file():
                    raise UserError(f"is missing, the package is not whole; {AGAIN}", file=file)
                sizes[name] = file.stat().st_size
            if value.blobFileValue.offset >= sizes[name]:
                raise UserError(f"is cut at {sizes[name]} bytes; {AGAIN}", file=file)


def operations_of(spec) -> list:
    """The operations of all functions, as protocol buffers."""
    return [
        operation
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
    ]


def check_operators(path: Path, spec) -> None:
    """Raises UserError for an operator that coremltools itself does not know."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    for operation in operations_of(spec):
        if operation.type not in SSAOpRegistry.core_ops:
            raise unknown_operator(path, operation.type)


def unknown_operator(path: Path, operator: str) -> UserError:
    return UserError(
        f"operator {operator!r} is not known to the evaluator; teach it in pipeline/verify/mil_evaluator.py", file=path
    )


def is_constant(operation) -> bool:
    """Whether an operation is a value of the file, plain or compressed."""
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def shape_of(var) -> tuple[int | None, ...]:
    """A coremltools variable's shape; a flexible dimension is None."""
    from coremltools.converters.mil.mil.types.symbolic import is_symbolic

    return tuple(None if is_symbolic(size) else int(size) for size in var.shape)


def shapes_fit(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(said in (None, size) for size, said in zip(shape, declared))


def default_shapes(spec, function: str) -> dict[str, tuple[int, ...]]:
    """The shapes that the package's description gives for a function's inputs."""
    described = next(
        (each.input for each in spec.description.functions if each.name == function), spec.description.input
    )
    return {each.name: tuple(each.type.multiArrayType.shape) for each in described}


def read_function(name: str, function, defaults: dict[str, tuple[int, ...]]) -> Function:
    """Our description of a coremltools function."""
    from coremltools.converters.mil.mil import types

    def tensor(name: str, var) -> Tensor:
        return Tensor(name, np.dtype(types.nptype_from_builtin(var.dtype)).name, shape_of(var), defaults.get(name, ()))

    return Function(
        name,
        tuple(tensor(name, var) for name, var in function.inputs.items()),
        tuple(tensor(var.name, var) for var in function.outputs),
        tuple(function.operations),
    )


def evaluate(
    package: Package, function: str, inputs: dict[str, np.ndarray], precision: Precision = "float32"
) -> dict[str, np.ndarray]:
    """Runs one function of a package.

    Args:
        inputs: an array for every input, with its dtype and shape.
        precision: "float32" computes everything in float32 from the weights as they are saved: what the program means. "float16"
            also rounds every constant and every operator's result to float16, so that what overflows or becomes NaN there does so
            here. Within an operator (a dot product's sum, a layer norm's variance) it is float32; a device may round there, too.
            "smooth" is float32 in which `quantize` scales and cuts off but does not round, so that weights can be told more exactly.

    Returns:
        Outputs by name, with the dtypes that the package declares.

    Raises:
        UserError: for an unknown function, an input that is missing, unknown or of another dtype or shape, or an operator that
            the evaluator does not know.
    """
    return watch(package, function, inputs, precision).outputs


def watch(
    package: Package, function: str, inputs: dict[str, np.ndarray], precision: Precision = "float32"
) -> Evaluation:
    """`evaluate`, which also says which operator was the first to overflow and which the first to make a NaN."""
    described = package.function(function)
    check_inputs(package, described, inputs)
    rounding = rounded if precision == "float16" else widened
    values = {name: rounding(value) for name, value in inputs.items()}
    watched = Watched()
    for name, value in values.items():
        watched.look("input", name, value)
    # A constant that does not fit float16 becomes inf, which does no harm as the bound of a clip, say: an operator's result shows whether it does.
    with np.errstate(all="ignore"):
        constants = described.float16_constants if precision == "float16" else described.constants
        values |= constants
        for operation in described.operations:
            if not is_constant(operation):
                results = run(package, operation, values, rounding, SMOOTH if precision == "smooth" else OWN)
                for output, result in zip(operation.outputs, results):
                    if not shapes_fit(np.shape(result), shape_of(output)):
                        raise UserError(
                            f"gives shape {np.shape(result)}, the program says {shape_of(output)}; {AGAIN}",
                            file=package.path,
                            field=f"{operation.op_type} {output.name}",
                        )
                    values[output.name] = rounding(result)
                    watched.look(operation.op_type, output.name, values[output.name])
        outputs = {output.name: np.asarray(values[output.name]).astype(output.dtype) for output in described.outputs}
    return Evaluation(outputs, tuple(watched.faults.values()))


class Watched:
    """The first value that has an infinity, and the first that has a NaN."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}

    def look(self, kind: str, name: str, value: Any) -> None:
        if len(self.faults) == 2 or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return
        # The sum is finite unless a value is not, or finite ones overflow it: then, seldom, each is looked at.
        if np.isfinite(value.sum(dtype=np.float32)) or np.isfinite(value).all():
            return
        for what, has in (("overflows", np.isinf), ("makes NaN", np.isnan)):
            if what not in self.faults and has(value).any():
                self.faults[what] = Fault(kind, name, what)


def check_inputs(package: Package, function: Function, inputs: dict[str, np.ndarray]) -> None:
    """Raises UserError unless there is, for every input, an array of its dtype and shape, and nothing else."""
    names = [tensor.name for tensor in function.inputs]
    for name in inputs:
        if name not in names:
            raise UserError(
                f"is no input of {function.name}; it takes {', '.join(names)}", file=package.path, field=name
            )
    for tensor in function.inputs:
        if tensor.name not in inputs:
            raise UserError(
                f"{function.name} needs this input; it takes {', '.join(names)}", file=package.path, field=tensor.name
            )
        given = inputs[tensor.name]
        if not tensor.fits(given):
            raise UserError(
                f"{function.name} takes {tensor.dtype} {list(tensor.shape)}, not {given.dtype.name} {list(given.shape)}; "
                "pad the input to the function's length",
                file=package.path,
                field=tensor.name,
            )


def widened(value: Any) -> Any:
    """Floats as float32; everything else (integers, arrays of booleans, strings) as it is."""
    if isinstance(value, np.bool_):  # coremltools hands flags to numpy, which from 2.0 on takes Python's own only
        return bool(value)
    if isinstance(value, (float, np.ndarray, np.generic)) and np.asarray(value).dtype.kind == "f":
        return np.asarray(value, dtype=np.float32)
    return value


def rounded(value: Any) -> Any:
    """Floats rounded to the nearest float16 (what is too large becomes infinite) and kept as float32, in which numpy is fast.

    By torch, which rounds as numpy does and ten times as fast.
    """
    import torch

    value = widened(value)
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return torch.from_numpy(np.require(value, requirements=("C", "W"))).half().float().numpy()
    return value


class Bound:
    """A coremltools variable with a value: an operator's `value_inference` reads `val`, and everything else from the variable."""

    def __init__(self, var, value: Any):
        self._var, self.val, self.sym_val = var, value, value

    def __getattr__(self, name: str):
        return getattr(self._var, name)


Operator = Callable[[Any], Any]
OWN: dict[str, Operator] = {}


def own(*names: str) -> Callable[[Operator], Operator]:
    """Registers how this module computes an operator: a function of an operation whose inputs have `.val`."""

    def add(function: Operator) -> Operator:
        OWN.update(dict.fromkeys(names, function))
        return function

    return add


def run(
    package: Package, operation, values: dict[str, Any], rounding: Callable[[Any], Any], own: dict[str, Operator]
) -> tuple:
    """The results of one operation, by `own` or by coremltools' definition. Raises UserError when neither knows it."""

    def bind(var):
        if isinstance(var, (list, tuple)):
            return tuple(bind(each) for each in var)
        # A parameter that the file leaves out has a default that coremltools filled in; it is no operation of the function.
        return Bound(var, values[var.name] if var.name in values else rounding(var.val))

    bound = {name: bind(var) for name, var in operation.inputs.items()}
    # A copy, since what is loaded stays as it is: only the copy's inputs have values.
    operation = copy.copy(operation)
    operation._input_vars = {**operation._input_vars, **bound}
    for name, var in bound.items():
        setattr(operation, name, var)
    if operation.blocks:  # loops and branches hold programs of their own
        raise unknown_operator(package.path, operation.op_type)
    try:
        results = own[operation.op_type](operation) if operation.op_type in own else operation.value_inference()
    except NotImplementedError:
        results = None
    results = tuple(results) if isinstance(results, (list, tuple)) else (results,)
    if len(results) != len(operation.outputs) or any(result is None for result in results):
        raise unknown_operator(package.path, operation.op_type)
    return results


def look_up(operation) -> np.ndarray:
    """A palettized weight; coremltools' definition repeats a table for every index, gigabytes for a vocabulary.

    Before iOS 18 there is one table, and the indices are packed bits, the lowest first.
    """
    table = operation.lut.val
    if "shape" in operation.inputs:
        shape, bits = tuple(int(size) for size in operation.shape.val), int(table.size).bit_length() - 1
        return table[unpacked(operation.indices.val, bits, int(np.prod(shape)))].reshape(shape)
    *tables, size, width = table.shape
    indices = operation.indices.val.astype(np.int64)
    if width != 1:  # one index for several values
        return operation.materialized_val_inference()
    offsets = np.arange(int(np.prod(tables))).reshape(tables)  # which table is for which part of the weight
    for axis, (length, count) in enumerate(zip(indices.shape, tables)):
        offsets = np.repeat(offsets, length // count, axis)
    return table.ravel()[offsets * size + indices]


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """`count` integers of so many bits each from bytes, the lowest bits first."""
    each = np.unpackbits(packed.view(np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return each @ (1 << np.arange(bits))


# How this module decompresses a weight, in place of coremltools' `materialized_val_inference`.
DECOMPRESSED: dict[str, Operator] = {"constexpr_lut_to_dense": look_up}


@own("cast")
def cast(operation) -> np.ndarray:
    """Between float types a cast changes nothing but the rounding, and rounding is the caller's; to integers it cuts, as C does."""
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    value, dtype = np.asarray(operation.x.val), np.dtype(string_to_nptype(operation.dtype.val))
    return value.astype(np.float32 if dtype.kind == "f" else dtype)


@own("gelu")
def gelu(operation) -> np.ndarray:
    """Hendrycks and Gimpel 2016; coremltools' definition of the exact mode calls `math.erf` once per number."""
    if operation.mode.val != "EXACT":
        return type(operation).value_inference(operation)
    import torch

    x = torch.from_numpy(np.ascontiguousarray(operation.x.val))
    return (0.5 * x * (1.0 + torch.erf(x * 0.5**0.5))).numpy()


@own("conv")
def conv(operation) -> np.ndarray:
    """Convolution without padding, which coremltools does not define on arrays; torch's, whose order of dimensions and groups is the same."""
    if operation.pad_type.val != "valid":
        raise NotImplementedError
    import torch

    x, weight = (torch.from_numpy(np.ascontiguousarray(each.val)) for each in (operation.x, operation.weight))
    bias = (
        None
        if operation.bias is None or operation.bias.val is None
        else torch.from_numpy(np.ascontiguousarray(operation.bias.val))
    )
    options = {name: tuple(int(size) for size in getattr(operation, name).val) for name in ("strides", "dilations")}
    rank = x.dim() - 2
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[rank]
    return function(x, weight, bias, options["strides"], 0, options["dilations"], int(operation.groups.val)).numpy()


@own("batch_norm")
def batch_norm(operation) -> np.ndarray:
    """With the statistics that it holds, over dimension 1; coremltools makes it of a product and a sum with a constant per channel."""

    def by_channel(parameter, missing: float) -> np.ndarray:
        value = (
            np.full(operation.mean.val.shape, missing, np.float32)
            if parameter is None or parameter.val is None
            else parameter.val
        )
        return np.reshape(value, (1, -1, *[1] * (operation.x.val.ndim - 2)))

    mean, variance = by_channel(operation.mean, 0.0), by_channel(operation.variance, 1.0)
    scale = by_channel(operation.gamma, 1.0) / np.sqrt(variance + operation.epsilon.val)
    return (operation.x.val - mean) * scale + by_channel(operation.beta, 0.0)


@own("dequantize")
def dequantize(operation) -> np.ndarray:
    """coremltools defines it for constants, under another name."""
    return operation.materialized_val_inference()


def by_scale(operation) -> np.ndarray:
    """The scale of `quantize` and `dequantize`, in as many dimensions as the input."""
    scale = np.asarray(operation.scale.val, dtype=np.float32)
    if scale.ndim == 0:
        return scale
    shape = [1] * np.ndim(operation.input.val)
    shape[int(operation.axis.val)] = -1
    return scale.reshape(shape)


def zero_of(operation) -> np.ndarray | float:
    """The zero point likewise; none is 0."""
    if operation.zero_point is None or operation.zero_point.val is None:
        return 0.0
    zero = np.asarray(operation.zero_point.val, dtype=np.float32)
    return zero if zero.ndim == 0 else zero.reshape(by_scale(operation).shape)


def without_steps(operation) -> np.ndarray:
    """`quantize` to real numbers within the integers' range."""
    ends = np.iinfo(operation.output_dtype.val)
    return np.clip(operation.input.val / by_scale(operation) + zero_of(operation), ends.min, ends.max)


# In place of `OWN`: activations keep what int8's steps would take from them.
SMOOTH: dict[str, Operator] = {
    **OWN,
    "quantize": without_steps,
    "dequantize": lambda operation: (operation.input.val - zero_of(operation)) * by_scale(operation),
}
