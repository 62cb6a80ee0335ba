"""Calls Apple's Core ML: the only module that does, so that everything else is tested without a Mac."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.verify.checks import PlannedOperator

# The processors that Core ML may use, by the name in the checks, with the name in `coremltools.ComputeUnit`.
Units = Literal["cpu", "cpu_gpu", "cpu_ne"]
UNITS: dict[Units, str] = {"cpu": "CPU_ONLY", "cpu_gpu": "CPU_AND_GPU", "cpu_ne": "CPU_AND_NE"}


class Device(Protocol):
    """Runs and plans programs on a Mac. Its UserErrors say in one line that a program does not load or run there."""

    def predict(
        self, package: Path, function: str, units: Units, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs a package's function in Core ML on some processors."""

    def plan(self, package: Path, function: str) -> tuple[PlannedOperator, ...]:
        """Returns which operator would run where."""

    def run_method(self, file: Path, method: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs a method of a `.pte` in ExecuTorch with its Core ML delegate."""


class AppleCoreML:
    """The `Device` that is this Mac."""

    def __init__(self) -> None:
        # The model that was used last, since it is used several times in a row. Any: coremltools has no types.
        self._loaded: tuple[tuple[object, ...], Any] | None = None

    def predict(
        self, package: Path, function: str, units: Units, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        ct, key = import_quietly("coremltools"), (package, function, units)
        with errors_in_one_line(package, function):
            if self._loaded is None or self._loaded[0] != key:
                name = None if function == "main" else function
                compute_units = ct.ComputeUnit[UNITS[units]]
                model = ct.models.MLModel(str(package), compute_units=compute_units, function_name=name)
                self._loaded = (key, model)
            return {name: np.asarray(value) for name, value in self._loaded[1].predict(dict(inputs)).items()}

    def plan(self, package: Path, function: str) -> tuple[PlannedOperator, ...]:
        ct = import_quietly("coremltools")
        plans = import_quietly("coremltools.models.compute_plan")
        with tempfile.TemporaryDirectory() as folder, errors_in_one_line(package, function):
            single = single_function(package, function, Path(folder))
            compiled = ct.models.utils.compile_model(str(single), str(Path(folder) / "plan.mlmodelc"))
            plan = plans.MLComputePlan.load_from_path(path=str(compiled), compute_units=ct.ComputeUnit.ALL)
            return tuple(planned_operators(plan, "main"))

    def run_method(self, file: Path, method: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        from pipeline.runtime.programs import MethodFile

        key = (file, method)
        with errors_in_one_line(file, method):
            if self._loaded is None or self._loaded[0] != key:
                loaded = MethodFile(file)
                loaded.load(method)
                self._loaded = (key, loaded)
            outputs = self._loaded[1].run(method, [torch.from_numpy(value) for value in inputs])
            return [output.numpy() for output in outputs]


@contextmanager
def errors_in_one_line(file: Path, method: str) -> Iterator[None]:
    """Turns the errors of Apple's frameworks and their bindings, mostly RuntimeError, into UserErrors."""
    try:
        with quiet_stderr(), quiet_logging():
            yield
    except UserError:
        raise
    except Exception as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"Core ML does not run it ({message})", file=file, field=method) from None


def single_function(package: Path, function: str, folder: Path) -> Path:
    """Returns a package with only that function, as `main`: coremltools makes compute plans of no other function."""
    if function == "main":
        return package
    ct, single = import_quietly("coremltools"), folder / "single.mlpackage"
    shutil.rmtree(single, ignore_errors=True)
    functions = ct.utils.MultiFunctionDescriptor()
    functions.add_function(str(package), src_function_name=function, target_function_name="main")
    functions.default_function_name = "main"
    ct.utils.save_multifunction(functions, str(single))
    return single


def planned_operators(plan: Any, function: str) -> Iterator[PlannedOperator]:
    """Yields the operators of a function, without those that no processor runs (constants).

    Args:
        plan: a `coremltools.models.compute_plan.MLComputePlan`.
    """
    blocks = [plan.model_structure.program.functions[function].block]
    while blocks:
        for operation in blocks.pop().operations:
            blocks += operation.blocks
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            yield PlannedOperator(
                operator=operation.operator_name.split(".")[-1],  # Core ML prefixes the operator set, "ios18.linear"
                name=operation.outputs[0].name if operation.outputs else "",
                device=device_name(usage.preferred_compute_device),
                supported=tuple(device_name(device) for device in usage.supported_compute_devices),
                cost=None if cost is None else float(cost.weight),
            )


def device_name(device: Any) -> str:
    """Returns "CPU", "GPU" or "Neural Engine", or the class' name if the kind of device is newer than this list."""
    kind = type(device).__name__
    names = {
        "MLCPUComputeDevice": "CPU",
        "MLGPUComputeDevice": "GPU",
        "MLNeuralEngineComputeDevice": "Neural Engine",
    }
    return names.get(kind, kind)
