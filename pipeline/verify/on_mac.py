"""On a Mac, Core ML itself: what it computes on each processor, held against the evaluator, and its plan, which operator runs where.

Elsewhere nothing here runs, and a report says so with the reason: there are no numbers of Core ML's but Core ML's own. `AppleCoreML` is all that
touches Apple's runtime; it has not been run where this is written (no Mac), while everything on this side of it is tested without one.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.bundle.manifest import Manifest, Program, read_manifest
from pipeline.export.fingerprints import fingerprint_inputs
from pipeline.names import APPLE_BACKENDS, Backend, Task
from pipeline.schemes import FLOAT16_DEVICE_FLOOR_DB, INT8_DEVICE_FLOOR_DB
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.tasks import get_task
from pipeline.verify.checks import MOST_DB, Check, signal_to_noise_db
from pipeline.verify.coreml_fingerprints import has_int8_inputs
from pipeline.verify.coreml_parity import finite, runner
from pipeline.verify.evaluator.delegate import load_delegate_file
from pipeline.verify.evaluator.evaluator import read_spec
from pipeline.verify.machine import this_machine

# What Core ML may use, by the name that checks have for it, and coremltools' name (`coremltools.ComputeUnit`).
Units = Literal["cpu", "cpu_gpu", "cpu_ne"]
UNITS: dict[Units, str] = {"cpu": "CPU_ONLY", "cpu_gpu": "CPU_AND_GPU", "cpu_ne": "CPU_AND_NE"}
UNCERTAINTY_FLOOR = 0.99
RUNS = 4  # of `embed`, whose fingerprint takes the whole vocabulary


@dataclass(frozen=True)
class Placed:
    """One operator of a plan: its type and the name of its result, the processor that Core ML prefers, all that it could take, and the share of the
    model's work that Core ML estimates, None where it does not say.
    """

    operator: str
    name: str
    device: str
    supported: tuple[str, ...]
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """Where Core ML means to run one program, with all processors allowed; `reason` says why there is no plan, if there is none."""

    program: str
    backend: Backend
    length: int
    operators: tuple[Placed, ...]
    reason: str = ""

    @property
    def devices(self) -> dict[str, int]:
        """How many operators each processor has, the most first."""
        return dict(Counter(placed.device for placed in self.operators).most_common())

    def to_json(self) -> dict:
        return {**asdict(self), "devices": self.devices}


@dataclass(frozen=True)
class MacReport:
    """Whether Core ML itself ran; `reason` says why not, `machine` on what it did."""

    ran: bool
    reason: str = ""
    machine: str = ""
    plans: tuple[Plan, ...] = ()

    def to_json(self) -> dict:
        """What `pocketbert verify --json` has under `mac`."""
        return {**asdict(self), "plans": [plan.to_json() for plan in self.plans]}


class Device(Protocol):
    """The border to Apple's runtime. A UserError from it says, in one line, that a program does not load or run there."""

    def predict(
        self, package: Path, function: str, units: Units, inputs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A package's function, run by Core ML on some processors."""

    def plan(self, package: Path, function: str) -> tuple[Placed, ...]:
        """Which operator would run where."""

    def run_method(self, file: Path, method: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A method of a `.pte`, run by ExecuTorch with its Core ML delegate."""


def verify_on_mac(bundle: str | Path, on_step: OnStep = silent) -> tuple[list[Check], MacReport]:
    """On a Mac, `check_on_mac` of all that Core ML computes in a bundle; elsewhere no checks, and the reason.

    Raises:
        UserError: a program's file cannot be read.
    """
    bundle, machine = Path(bundle), this_machine()
    manifest = read_manifest(bundle, check_files=False)
    files = dict.fromkeys(
        (program.file, program.backend) for program in manifest.programs if program.backend in APPLE_BACKENDS
    )
    if not files:
        return [], MacReport(False, "the bundle has no programs for Core ML")
    if reason := machine.obstacle():
        return [], MacReport(False, reason)
    newest = max(specification_version(bundle / file, backend) for file, backend in files)
    if reason := machine.obstacle(newest):
        return [], MacReport(False, reason)
    checks, plans = check_on_mac(bundle, manifest, AppleCoreML(), on_step)
    return checks, MacReport(True, machine=platform.platform(), plans=tuple(plans))


def specification_version(path: Path, backend: Backend) -> int:
    return (
        read_spec(path).specificationVersion if backend == "coreml" else load_delegate_file(path).specification_version
    )


def check_on_mac(
    bundle: Path, manifest: Manifest, device: Device, on_step: OnStep = silent
) -> tuple[list[Check], list[Plan]]:
    """Runs every program that Core ML computes on its fingerprint's inputs, and compares with the evaluator in float32.

    For every program and bucket, better when higher; WHERE is `cpu`, `cpu_gpu` and `cpu_ne` for a package, `delegate` for a method:
        `WHERE_snr_db_LENGTH`: the evaluator's output over the difference, the worst of the outputs but the uncertainty.
        `WHERE_uncertainty_LENGTH`: 1 - the greatest difference (where there is an `uncertainty`).

    A program that does not load or run there fails by name, with the reason as the note.

    Returns:
        the checks, and the plan of every package's function.
    """
    programs = [program for program in manifest.programs if program.backend in APPLE_BACKENDS]
    evaluate = {backend: runner(bundle, backend) for backend in APPLE_BACKENDS}
    checks, plans = [], []
    for done, program in enumerate(programs, start=1):
        inputs = fingerprint_inputs(program, manifest.model.vocab_size)[:RUNS]
        expected = [evaluate[program.backend](program, each, "float32").outputs for each in inputs]
        for where in UNITS if program.backend == "coreml" else ("delegate",):
            try:
                got = [run(device, bundle / program.file, program, where, each) for each in inputs]
            except UserError as error:
                metric = f"{where}_snr_db_{program.lengths[0]}"
                checks.append(
                    Check(program.name, program.backend, metric, -MOST_DB, floor_of(program), False, str(error))
                )
            else:
                checks += compare(program, manifest.task, where, expected, got)
        if program.backend == "coreml":
            plans.append(plan_of(device, bundle / program.file, program))
        on_step("Core ML itself", done, len(programs))
    return checks, plans


def run(
    device: Device, path: Path, program: Program, where: Units | Literal["delegate"], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One run of a program; its outputs by the manifest's names."""
    if where != "delegate":
        return device.predict(path, program.method, where, inputs)
    outputs = device.run_method(path, program.method, [inputs[tensor.name] for tensor in program.inputs])
    return {tensor.name: value for tensor, value in zip(program.outputs, outputs)}


def plan_of(device: Device, path: Path, program: Program) -> Plan:
    """The plan of one package's function."""
    try:
        operators, reason = device.plan(path, program.method), ""
    except UserError as error:
        operators, reason = (), str(error)
    return Plan(program.name, program.backend, program.lengths[0], operators, reason)


def compare(
    program: Program,
    task: Task,
    where: str,
    expected: Sequence[dict[str, np.ndarray]],
    got: Sequence[dict[str, np.ndarray]],
) -> list[Check]:
    """One program's checks on one choice of processors; both lists have a run's outputs by name."""
    (length,), ratios, checks = program.lengths, {}, []
    for name in (tensor.name for tensor in program.outputs):
        if not all(
            name in outputs and np.shape(outputs[name]) == right[name].shape for right, outputs in zip(expected, got)
        ):
            ratios[name] = -MOST_DB
            continue
        right, value = (
            np.concatenate([np.asarray(outputs[name], dtype=np.float64) for outputs in side])
            for side in (expected, got)
        )
        if name == "uncertainty":
            least = finite(1.0 - float(np.abs(right - value).max()))
            metric = f"{where}_uncertainty_{length}"
            checks.append(
                Check(program.name, program.backend, metric, least, UNCERTAINTY_FLOOR, least >= UNCERTAINTY_FLOOR)
            )
        else:
            ratios[name] = signal_to_noise_db(right, value, get_task(task).signal_level if name == "logits" else None)
    worst = min(ratios, key=ratios.__getitem__)
    floor = floor_of(program)
    passed = ratios[worst] >= floor
    note = "" if passed else f"output {worst}"
    return [
        Check(program.name, program.backend, f"{where}_snr_db_{length}", ratios[worst], floor, passed, note),
        *checks,
    ]


def floor_of(program: Program) -> float:
    """What a program's outputs but the uncertainty must reach."""
    int8_inputs = program.name != "embed" and has_int8_inputs(program)
    return INT8_DEVICE_FLOOR_DB if int8_inputs else FLOAT16_DEVICE_FLOOR_DB


# Apple's side.


@contextmanager
def one_line(file: Path, method: str) -> Iterator[None]:
    """Whatever Apple's frameworks or their bindings raise, RuntimeError for the most part, as a UserError that names the program."""
    try:
        with quiet_stderr(), quiet_logging():
            yield
    except UserError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"Core ML does not run it ({said})", file=file, field=method) from None


class AppleCoreML:
    """`Device` of this Mac."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple, Any] | None = None  # the last model, which is asked several times in a row

    def predict(
        self, package: Path, function: str, units: Units, inputs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        ct, key = import_quietly("coremltools"), (package, function, units)
        with one_line(package, function):
            if self._loaded is None or self._loaded[0] != key:
                name = None if function == "main" else function
                self._loaded = (
                    key,
                    ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[UNITS[units]], function_name=name),
                )
            return {name: np.asarray(value) for name, value in self._loaded[1].predict(dict(inputs)).items()}

    def plan(self, package: Path, function: str) -> tuple[Placed, ...]:
        ct = import_quietly("coremltools")
        plans = import_quietly("coremltools.models.compute_plan")
        with tempfile.TemporaryDirectory() as folder, one_line(package, function):
            single = single_function(package, function, Path(folder))
            compiled = ct.models.utils.compile_model(str(single), str(Path(folder) / "plan.mlmodelc"))
            plan = plans.MLComputePlan.load_from_path(path=str(compiled), compute_units=ct.ComputeUnit.ALL)
            return tuple(placed(plan, "main"))

    def run_method(self, file: Path, method: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        from pipeline.runtime.programs import MethodFile

        key = (file, method)
        with one_line(file, method):
            if self._loaded is None or self._loaded[0] != key:
                loaded = MethodFile(file)
                loaded.load(method)
                self._loaded = (key, loaded)
            return [
                output.numpy() for output in self._loaded[1].run(method, [torch.from_numpy(each) for each in inputs])
            ]


def single_function(package: Path, function: str, folder: Path) -> Path:
    """The package with that function alone, as its `main`: coremltools' way to a compute plan takes no function's name."""
    if function == "main":
        return package
    ct, single = import_quietly("coremltools"), folder / "single.mlpackage"
    shutil.rmtree(single, ignore_errors=True)
    functions = ct.utils.MultiFunctionDescriptor()
    functions.add_function(str(package), src_function_name=function, target_function_name="main")
    functions.default_function_name = "main"
    ct.utils.save_multifunction(functions, str(single))
    return single


def placed(plan: Any, function: str) -> Iterator[Placed]:
    """The operators of a function in a `coremltools.models.compute_plan.MLComputePlan`, those that no processor runs (constants) left out."""
    blocks = [plan.model_structure.program.functions[function].block]
    while blocks:
        for operation in blocks.pop().operations:
            blocks += operation.blocks
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            yield Placed(
                operation.operator_name.split(".")[
                    -1
                ],  # Core ML puts the operator set's name before it, "ios18.linear"
                operation.outputs[0].name if operation.outputs else "",
                device_name(usage.preferred_compute_device),
                tuple(device_name(device) for device in usage.supported_compute_devices),
                None if cost is None else float(cost.weight),
            )


def device_name(device: Any) -> str:
    """ "CPU", "GPU" or "Neural Engine"; the class' name for a device that came later."""
    kind = type(device).__name__
    return {
        "MLCPUComputeDevice": "CPU",
        "MLGPUComputeDevice": "GPU",
        "MLNeuralEngineComputeDevice": "Neural Engine",
    }.get(kind, kind)
