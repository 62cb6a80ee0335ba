"""Reads the methods of a `.pte` that ExecuTorch hands to its Core ML delegate, so that the evaluator can run them.

The file is read back from the disk by ExecuTorch's own reader. The Core ML models inside the delegates are packages.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.manifest import Program
from pipeline.export.executorch_coreml import DELEGATE, METADATA_FILE, PACKAGE, REFERENCE
from pipeline.export.payload import unpack, write_files
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from pipeline.verify.evaluator.evaluator import Evaluation, evaluate
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.evaluator.precision import Precision
from pipeline.verify.evaluator.program import EXPORT_AGAIN, ArraySpec, Function, Package

# ExecuTorch's flatbuffer classes have no types.
ProgramFile = Any  # executorch.exir._serialize._program.PTEFile
ExecutionPlan = Any  # executorch.exir.schema.ExecutionPlan, one method of the file


@dataclass(frozen=True)
class Method:
    """One method of a `.pte`, and the function of the Core ML model that computes it.

    Attributes:
        function: its inputs and outputs have the method's types; the delegate converts between the two.
        inputs, outputs: the method's own, in order and without names.
        input_positions, output_positions: for each input or output of the function, by name, its place in the method's.
    """

    name: str
    function: Function
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    input_positions: dict[str, int]
    output_positions: dict[str, int]


@dataclass(frozen=True)
class DelegateFile:
    """A `.pte` in which Core ML computes every method."""

    path: Path
    specification_version: int
    methods: dict[str, Method]

    @property
    def package(self) -> Package:
        """The methods as the functions of one package, for the evaluator and the lint."""
        functions = {name: method.function for name, method in self.methods.items()}
        return Package(self.path, self.specification_version, functions)

    def run(self, program: Program, inputs: Mapping[str, np.ndarray], precision: Precision) -> Evaluation:
        """Runs a program's method; inputs and outputs have the manifest's names.

        Raises:
            UserError: there is no such method, or its inputs and outputs differ from the manifest's.
        """
        if program.method not in self.methods:
            raise UserError(f"has no method {program.method!r}; {EXPORT_AGAIN}", file=self.path)
        method = self.methods[program.method]
        self.check_signature(method, program)
        given = {name: inputs[program.inputs[place].name] for name, place in method.input_positions.items()}
        evaluation = evaluate(self.package, method.name, given, precision)
        outputs = {
            program.outputs[place].name: evaluation.outputs[name] for name, place in method.output_positions.items()
        }
        return replace(evaluation, outputs=outputs)

    def check_signature(self, method: Method, program: Program) -> None:
        """Raises UserError unless the method's inputs and outputs are the manifest's, in that order."""
        for side, declared, found in (
            ("inputs", program.inputs, method.inputs),
            ("outputs", program.outputs, method.outputs),
        ):
            expected = [describe(spec.dtype, spec.shape) for spec in declared]
            actual = [describe(spec.dtype, spec.shape) for spec in found]
            if expected != actual:
                raise UserError(
                    f"{method.name} has {', '.join(actual) or 'none'}, the manifest says "
                    f"{', '.join(expected) or 'none'}; {EXPORT_AGAIN}",
                    file=self.path,
                    field=f"{program.name}.{side}",
                )


def describe(dtype: str, shape: Sequence[object]) -> str:
    return f"{dtype} {list(shape)}"


def load_delegate_file(path: str | Path) -> DelegateFile:
    """Reads a `.pte`: its methods, and the Core ML models inside their delegates, including the weights.

    Raises:
        UserError: naming the file and the method, if the file is cut, a method is not exactly one call of the Core ML
            delegate, or the model in the delegate is cut, too new for coremltools, or has an unknown operator.
    """
    path = Path(path)
    file = read_pte(path)
    models: dict[str, tuple[Package, dict[str, Any]]] = {}
    methods = {}
    for plan in file.program.execution_plan:
        arguments, processed = delegate_call(path, file, plan)
        try:
            key, function, payload = find_model(file, plan.name, processed)
            if key not in models:
                models[key] = load_model(payload)
            methods[plan.name] = match_method(plan, arguments, function, *models[key])
        except UserError as error:
            raise UserError(str(error), file=path, field=plan.name) from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"the delegate's contents are cut or altered ({error}); {EXPORT_AGAIN}", file=path, field=plan.name
            ) from None
    return DelegateFile(path, max(package.specification_version for package, _ in models.values()), methods)


def read_pte(path: Path) -> ProgramFile:
    """Reads a `.pte` with ExecuTorch's reader. Raises UserError if it is cut or no such file."""
    reader = import_quietly("executorch.exir._serialize._program")
    try:
        file = reader.deserialize_pte_binary(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except Exception as error:  # struct, Unicode, value or index errors, depending on where the file is cut
        raise UserError(f"is no whole ExecuTorch program ({error}); {EXPORT_AGAIN}", file=path) from None
    if not file.program.execution_plan:
        raise UserError(f"has no methods; {EXPORT_AGAIN}", file=path)
    return file


def delegate_call(path: Path, file: ProgramFile, plan: ExecutionPlan) -> tuple[list[int], bytes]:
    """Returns the arguments of a method's only instruction, a delegate call, and the delegate's contents.

    The arguments are indices of the method's values, inputs first and then outputs.

    Raises:
        UserError: the method does anything else.
    """
    schema = import_quietly("executorch.exir.schema")
    instructions = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    others = [f"{operator.name}.{operator.overload}".strip(".") for operator in plan.operators]
    others += [delegate.id for delegate in plan.delegates if delegate.id != DELEGATE]
    is_one_call = len(instructions) == 1 and isinstance(instructions[0], schema.DelegateCall)
    if others or len(plan.delegates) != 1 or not is_one_call:
        raise UserError(
            f"is not one call of {DELEGATE}, but {len(instructions)} steps, with "
            f"{', '.join(others) or 'no operator beside it'}; {EXPORT_AGAIN}",
            file=path,
            field=plan.name,
        )
    return instructions[0].args, bytes(file.program.backend_delegate_data[plan.delegates[0].processed.index].data)


def find_model(file: ProgramFile, method: str, processed: bytes) -> tuple[str, str, bytes]:
    """Returns a method's model: a key that identifies it, the name of the function in it, and its bytes.

    The bytes are the delegate's own, or those that the delegate refers to elsewhere in the file.
    """
    if not processed.startswith(REFERENCE):
        return method, "main", processed
    reference = json.loads(processed[len(REFERENCE) :])
    buffer = file.named_data.pte_data[reference["key"]].buffer_index
    return reference["key"], reference["functionName"], file.named_data.buffers[buffer]


def load_model(payload: bytes) -> tuple[Package, dict[str, Any]]:
    """Reads the package in a delegate's file system, and the description of its inputs and outputs.

    Raises:
        UserError: without the file's name, which the caller adds.
    """
    files = unpack(payload)
    with tempfile.TemporaryDirectory() as folder:
        write_files(files, Path(folder))
        try:
            package = load_package(Path(folder) / PACKAGE)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return package, json.loads(files[METADATA_FILE])


def match_method(
    plan: ExecutionPlan, arguments: Sequence[int], function_name: str, package: Package, metadata: dict[str, Any]
) -> Method:
    """Matches a method's inputs and outputs with its function's by the order of the delegate's arguments.

    Raises:
        UserError: the two do not fit each other.
    """
    names = metadata["methods"][plan.name] if "methods" in metadata else metadata
    inputs, outputs = names["inputNames"], names["outputNames"]
    function = package.function(function_name)
    given, returned = arguments[: len(inputs)], arguments[len(inputs) :]
    if (
        len(returned) != len(outputs)
        or not set(given) <= set(plan.inputs)
        or set(returned) != set(plan.outputs)
        or set(inputs) != {spec.name for spec in function.inputs}
        or set(outputs) != {spec.name for spec in function.outputs}
    ):
        raise UserError(f"takes and gives other tensors than the delegate's model; {EXPORT_AGAIN}")
    method_inputs = tuple(array_spec(plan.values[index].val) for index in plan.inputs)
    method_outputs = tuple(array_spec(plan.values[index].val) for index in plan.outputs)
    input_positions = {name: plan.inputs.index(index) for name, index in zip(inputs, given)}
    output_positions = {name: plan.outputs.index(index) for name, index in zip(outputs, returned)}
    with_method_types = replace(
        function,
        name=plan.name,
        inputs=tuple(with_type(spec, method_inputs[input_positions[spec.name]]) for spec in function.inputs),
        outputs=tuple(with_type(spec, method_outputs[output_positions[spec.name]]) for spec in function.outputs),
    )
    return Method(plan.name, with_method_types, method_inputs, method_outputs, input_positions, output_positions)


def array_spec(value: Any) -> ArraySpec:
    """Describes a tensor of a method's plan."""
    dtypes = {"FLOAT": "float32", "HALF": "float16", "INT": "int32", "LONG": "int64"}
    kind = value.scalar_type.name
    return ArraySpec("", dtypes.get(kind, kind.lower()), tuple(value.sizes))


def with_type(spec: ArraySpec, method: ArraySpec) -> ArraySpec:
    """Returns the function's input or output with the method's type.

    Raises:
        UserError: the shapes differ, or only one of the two holds integers.
    """
    if spec.shape != method.shape or np.dtype(spec.dtype).kind != np.dtype(method.dtype).kind:
        raise UserError(
            f"{spec.name} is {describe(spec.dtype, spec.shape)} in the delegate's model, "
            f"{describe(method.dtype, method.shape)} in the method; {EXPORT_AGAIN}"
        )
    return replace(spec, dtype=method.dtype)
