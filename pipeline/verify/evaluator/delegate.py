"""Reads the methods of a `.pte` that ExecuTorch hands to its Core ML delegate, so that the evaluator runs what the delegate would.

The file is read back from the disk with ExecuTorch's own reader; the Core ML models that the delegates hold are packages, read as all others are.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.manifest import Program
from pipeline.export.executorch_coreml import DELEGATE, METADATA_FILE, PACKAGE, REFERENCE
from pipeline.export.payload import unpack
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from pipeline.verify.evaluator.evaluator import (
    AGAIN,
    Evaluation,
    Function,
    Package,
    Precision,
    Tensor,
    load_package,
    watch,
)


@dataclass(frozen=True)
class Method:
    """One method: the function of the Core ML model that computes it, and its own tensors, which have no names, in order.

    `takes` says of each of the function's inputs, by name, which of the method's it is; `gives` the same of the outputs. The function's tensors
    have the method's types: the delegate converts between them.
    """

    name: str
    function: Function
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    takes: dict[str, int]
    gives: dict[str, int]


@dataclass(frozen=True)
class DelegateFile:
    """A `.pte` of which Core ML computes every method."""

    path: Path
    specification_version: int
    methods: dict[str, Method]

    @property
    def package(self) -> Package:
        """The methods as the functions of one package, for the evaluator and the lint."""
        return Package(
            self.path, self.specification_version, {name: method.function for name, method in self.methods.items()}
        )

    def run(self, program: Program, inputs: dict[str, np.ndarray], precision: Precision) -> Evaluation:
        """Runs a method on the program's inputs by the manifest's names; its outputs have the manifest's names.

        Raises:
            UserError: there is no such method, or its inputs and outputs are not the manifest's.
        """
        if program.method not in self.methods:
            raise UserError(f"has no method {program.method!r}; {AGAIN}", file=self.path)
        method = self.methods[program.method]
        self.check_signature(method, program)
        given = {name: inputs[program.inputs[at].name] for name, at in method.takes.items()}
        evaluation = watch(self.package, method.name, given, precision)
        outputs = {program.outputs[at].name: evaluation.outputs[name] for name, at in method.gives.items()}
        return replace(evaluation, outputs=outputs)

    def check_signature(self, method: Method, program: Program) -> None:
        """Raises UserError unless the method takes and gives what the manifest says, in that order."""
        for side, said, found in (
            ("inputs", program.inputs, method.inputs),
            ("outputs", program.outputs, method.outputs),
        ):
            expected, got = (
                [(each.dtype, tuple(each.shape)) for each in said],
                [(each.dtype, each.shape) for each in found],
            )
            if expected != got:
                raise UserError(
                    f"{method.name} has {described(got)}, the manifest says {described(expected)}; {AGAIN}",
                    file=self.path,
                    field=f"{program.name}.{side}",
                )


def described(tensors: list[tuple[str, tuple]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in tensors) or "none"


def load_delegate_file(path: str | Path) -> DelegateFile:
    """Reads a `.pte`: its methods, and the Core ML models that their delegates hold, weights included.

    Raises:
        UserError: naming the file and the method, when the file is cut, a method is more or less than one call of the Core ML delegate, or what
            the delegate holds is cut, of a newer version than coremltools knows, or has an operator that coremltools does not know.
    """
    path = Path(path)
    file = read_pte(path)
    models: dict[str, tuple[Package, dict]] = {}
    methods = {}
    for plan in file.program.execution_plan:
        arguments, processed = delegate_call(path, file, plan)
        try:
            key, function, payload = find_model(file, plan.name, processed)
            if key not in models:
                models[key] = load_model(payload)
            methods[plan.name] = method_of(plan, arguments, function, *models[key])
        except UserError as error:
            raise UserError(str(error), file=path, field=plan.name) from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"what the delegate holds is cut or altered ({error}); {AGAIN}", file=path, field=plan.name
            ) from None
    return DelegateFile(path, max(package.specification_version for package, _ in models.values()), methods)


def read_pte(path: Path) -> Any:
    """The file as ExecuTorch's reader gives it. UserError when it is cut, or none."""
    reader = import_quietly("executorch.exir._serialize._program")
    try:
        file = reader.deserialize_pte_binary(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except Exception as error:  # struct, Unicode, value and index errors: whatever the place of the cut gives
        raise UserError(f"is no whole ExecuTorch program ({error}); {AGAIN}", file=path) from None
    if not file.program.execution_plan:
        raise UserError(f"has no methods; {AGAIN}", file=path)
    return file


def delegate_call(path: Path, file: Any, plan: Any) -> tuple[list[int], bytes]:
    """The one call that a method is: the values that the delegate is given, inputs then outputs, and what it holds.

    Raises:
        UserError: the method does anything else.
    """
    schema = import_quietly("executorch.exir.schema")
    instructions = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    others = [f"{operator.name}.{operator.overload}".strip(".") for operator in plan.operators]
    others += [delegate.id for delegate in plan.delegates if delegate.id != DELEGATE]
    if (
        others
        or len(plan.delegates) != 1
        or len(instructions) != 1
        or not isinstance(instructions[0], schema.DelegateCall)
    ):
        raise UserError(
            f"is not one call of {DELEGATE}, but {len(instructions)} steps, with {', '.join(others) or 'no operator beside it'}; {AGAIN}",
            file=path,
            field=plan.name,
        )
    return instructions[0].args, bytes(file.program.backend_delegate_data[plan.delegates[0].processed.index].data)


def find_model(file: Any, method: str, processed: bytes) -> tuple[str, str, bytes]:
    """A key of its own for the model, the function in it, and its bytes: those of the delegate, or where the delegate refers to."""
    if not processed.startswith(REFERENCE):
        return method, "main", processed
    reference = json.loads(processed[len(REFERENCE) :])
    return (
        reference["key"],
        reference["functionName"],
        file.named_data.buffers[file.named_data.pte_data[reference["key"]].buffer_index],
    )


def load_model(payload: bytes) -> tuple[Package, dict]:
    """The package in a delegate's file system, and what is said of its inputs and outputs. Errors name no file, which is the caller's."""
    files = unpack(payload)
    with tempfile.TemporaryDirectory() as folder:
        for name, contents in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(contents)
        try:
            package = load_package(Path(folder) / PACKAGE)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return package, json.loads(files[METADATA_FILE])


def method_of(plan: Any, arguments: list[int], function: str, package: Package, metadata: dict) -> Method:
    """A method, its tensors matched with the function's by the order of the delegate's arguments.

    Raises:
        UserError: the two do not fit each other.
    """
    names = metadata["methods"][plan.name] if "methods" in metadata else metadata
    inputs, outputs = names["inputNames"], names["outputNames"]
    computed = package.function(function)
    given, taken = arguments[: len(inputs)], arguments[len(inputs) :]
    fits = len(taken) == len(outputs) and set(given) <= set(plan.inputs) and set(taken) == set(plan.outputs)
    if (
        not fits
        or set(inputs) != {each.name for each in computed.inputs}
        or set(outputs) != {each.name for each in computed.outputs}
    ):
        raise UserError(f"takes and gives other tensors than the delegate's model; {AGAIN}")
    of_method = tuple(tuple(tensor_of(plan.values[at].val) for at in side) for side in (plan.inputs, plan.outputs))
    takes = {name: plan.inputs.index(at) for name, at in zip(inputs, given)}
    gives = {name: plan.outputs.index(at) for name, at in zip(outputs, taken)}
    tensors = []
    for found, places, own in ((computed.inputs, takes, of_method[0]), (computed.outputs, gives, of_method[1])):
        tensors.append(tuple(converted(tensor, own[places[tensor.name]]) for tensor in found))
    return Method(
        plan.name, replace(computed, name=plan.name, inputs=tensors[0], outputs=tensors[1]), *of_method, takes, gives
    )


def tensor_of(value: Any) -> Tensor:
    """A tensor of a method's plan."""
    dtypes = {"FLOAT": "float32", "HALF": "float16", "INT": "int32", "LONG": "int64"}
    kind = value.scalar_type.name
    return Tensor("", dtypes.get(kind, kind.lower()), tuple(value.sizes))


def converted(tensor: Tensor, method: Tensor) -> Tensor:
    """The function's tensor with the method's type. UserError where the shapes differ, or one is of integers and the other is not."""
    if tensor.shape != method.shape or (np.dtype(tensor.dtype).kind != np.dtype(method.dtype).kind):
        raise UserError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)} in the delegate's model, {method.dtype} {list(method.shape)} in the method; {AGAIN}"
        )
    return replace(tensor, dtype=method.dtype)
