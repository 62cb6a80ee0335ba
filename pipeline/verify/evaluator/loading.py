"""Reads Core ML packages from the disk, and refuses those that are damaged or not known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging
from pipeline.verify.evaluator.mil import Specification, Variable, shape_of
from pipeline.verify.evaluator.program import EXPORT_AGAIN, ArraySpec, Function, Package
from pipeline.verify.evaluator.weights import SharedConstants

SPEC_FILE = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS_FOLDER = Path("Data/com.apple.CoreML/weights")


def load_package(path: str | Path) -> Package:
    """Reads an `.mlpackage`: every function of its program, and the weights.

    Raises:
        UserError: naming the file, if the package is incomplete, newer than coremltools knows, or has an operator that
            coremltools does not know.
    """
    path = Path(path)
    spec = read_spec(path)
    import_quietly("coremltools")
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    check_operators(path, spec)
    try:
        with quiet_logging():
            program = load_program(spec, spec.specificationVersion, str(path / WEIGHTS_FOLDER))
    except Exception as error:  # coremltools raises errors of many types; each means that the package is inconsistent
        raise UserError(
            f"does not hold together ({type(error).__name__}: {error}); {EXPORT_AGAIN}", file=path
        ) from None
    # The file has no order; this one puts length_32 before length_128.
    names = sorted(program.functions, key=lambda name: (len(name), name))
    shared = SharedConstants()
    functions = {
        name: read_function(name, program.functions[name], default_shapes(spec, name), shared) for name in names
    }
    return Package(path, spec.specificationVersion, functions)


def read_spec(path: Path) -> Specification:
    """Reads a package's specification, and checks it as far as that is possible without the weights' values."""
    ct = import_quietly("coremltools")
    if not path.is_dir():
        raise UserError(f"is not a Core ML package (a folder); {EXPORT_AGAIN}", file=path)
    file = path / SPEC_FILE
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror}), the package is incomplete; {EXPORT_AGAIN}", file=file
        ) from None
    spec = ct.proto.Model_pb2.Model()
    try:
        spec.ParseFromString(raw)
    except Exception:  # protobuf's DecodeError; protobuf is coremltools' dependency, not this project's
        raise UserError(f"is cut or altered; {EXPORT_AGAIN}", file=file) from None
    newest = max(ct.target).value
    if spec.specificationVersion > newest:
        raise UserError(
            f"specification version {spec.specificationVersion} is newer than {newest}, the newest that coremltools "
            f"{ct.__version__} reads; install a newer coremltools",
            file=file,
        )
    if spec.WhichOneof("Type") != "mlProgram":
        raise UserError(f"is not an ML program; {EXPORT_AGAIN}", file=file)
    check_weights(path, spec)
    return spec


def check_weights(path: Path, spec: Specification) -> None:
    """Raises UserError if a weights file is missing, or ends before the place that the program reads.

    coremltools maps the file into memory and hardly says where reading failed, so this is checked first.
    """
    sizes: dict[str, int] = {}
    for operation in saved_operations(spec):
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
                    raise UserError(f"is missing, the package is incomplete; {EXPORT_AGAIN}", file=file)
                sizes[name] = file.stat().st_size
            if value.blobFileValue.offset >= sizes[name]:
                raise UserError(f"is cut at {sizes[name]} bytes; {EXPORT_AGAIN}", file=file)


def saved_operations(spec: Specification) -> Iterator[Any]:
    """Yields the operations of all functions as protocol buffers."""
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations


def check_operators(path: Path, spec: Specification) -> None:
    """Raises UserError for an operator that coremltools does not know."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    for operation in saved_operations(spec):
        if operation.type not in SSAOpRegistry.core_ops:
            raise unknown_operator(path, operation.type)


def unknown_operator(path: Path, operator: str) -> UserError:
    """Returns the error for an operator that neither coremltools nor this project can evaluate."""
    return UserError(
        f"operator {operator!r} is not known to the evaluator; define it in pipeline/verify/evaluator/operators.py",
        file=path,
    )


def default_shapes(spec: Specification, function: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that the package's description gives for a function's inputs."""
    described = (entry.input for entry in spec.description.functions if entry.name == function)
    inputs = next(described, spec.description.input)
    return {entry.name: tuple(entry.type.multiArrayType.shape) for entry in inputs}


def read_function(name: str, function: Any, defaults: dict[str, tuple[int, ...]], shared: SharedConstants) -> Function:
    """Describes a coremltools function."""
    from coremltools.converters.mil.mil import types

    def array_spec(name: str, variable: Variable) -> ArraySpec:
        dtype = np.dtype(types.nptype_from_builtin(variable.dtype)).name
        return ArraySpec(name, dtype, shape_of(variable), defaults.get(name, ()))

    return Function(
        name,
        tuple(array_spec(name, variable) for name, variable in function.inputs.items()),
        tuple(array_spec(variable.name, variable) for variable in function.outputs),
        tuple(function.operations),
        shared,
    )
