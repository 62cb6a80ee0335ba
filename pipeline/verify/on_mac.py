"""On a Mac, compares Core ML itself with the evaluator on each processor, and reads Core ML's compute plans.

On other systems nothing here runs, and the report gives the reason: only Core ML can produce Core ML's numbers. All
calls of Apple's runtime are in `pipeline.verify.apple`, which has not run on a Mac yet. The rest is tested without one.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.bundle.manifest import Manifest, Program, read_manifest
from pipeline.export.fingerprints import fingerprint_inputs, only_length
from pipeline.names import APPLE_BACKENDS, Backend, Task
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.apple import UNITS, AppleCoreML, Device, Units
from pipeline.verify.checks import Check, MacReport, PlannedOperator, ProgramPlan
from pipeline.verify.comparison import MAX_DB, check_outputs, check_uncertainty
from pipeline.verify.coreml_programs import program_runner
from pipeline.verify.evaluator.delegate import load_delegate_file
from pipeline.verify.evaluator.loading import read_spec
from pipeline.verify.floors import DEVICE_UNCERTAINTY_FLOOR, device_floor_db
from pipeline.verify.machine import this_machine

# Where a program runs: on some processors in Core ML, or in ExecuTorch with its Core ML delegate.
Place = Units | Literal["delegate"]
MAX_RUNS = 4  # the fingerprint of `embed` takes the whole vocabulary, which is many runs


def verify_on_mac(bundle: str | Path, on_step: OnStep = silent) -> tuple[list[Check], MacReport]:
    """Checks all programs of a bundle that Core ML computes, on a Mac. Elsewhere returns no checks, and the reason.

    Raises:
        UserError: a program's file cannot be read.
    """
    bundle, machine = Path(bundle), this_machine()
    manifest = read_manifest(bundle, check_files=False)
    files = dict.fromkeys(
        (program.file, program.backend) for program in manifest.programs if program.backend in APPLE_BACKENDS
    )
    if not files:
        return [], MacReport(ran=False, reason="the bundle has no programs for Core ML")
    if reason := machine.obstacle():
        return [], MacReport(ran=False, reason=reason)
    newest = max(specification_version(bundle / file, backend) for file, backend in files)
    if reason := machine.obstacle(newest):
        return [], MacReport(ran=False, reason=reason)
    checks, plans = check_on_mac(bundle, manifest, AppleCoreML(), on_step)
    return checks, MacReport(ran=True, machine=platform.platform(), plans=tuple(plans))


def specification_version(path: Path, backend: Backend) -> int:
    if backend == "coreml":
        return read_spec(path).specificationVersion
    return load_delegate_file(path).specification_version


def check_on_mac(
    bundle: Path, manifest: Manifest, device: Device, on_step: OnStep = silent
) -> tuple[list[Check], list[ProgramPlan]]:
    """Runs every program on the inputs of its fingerprint, and compares the outputs with the evaluator's in float32.

    The checks of a program and bucket, of which more is better; PLACE is `cpu`, `cpu_gpu` and `cpu_ne` for a package,
    and `delegate` for a method:
        `PLACE_snr_db_LENGTH`: signal to noise of the worst output other than the uncertainty.
        `PLACE_uncertainty_LENGTH`: 1 - the greatest difference of the uncertainty, if the program has one.

    A program that does not load or run fails under its name, with the reason as the note.

    Returns:
        the checks, and the compute plan of every package's function.
    """
    programs = [program for program in manifest.programs if program.backend in APPLE_BACKENDS]
    run_program = {backend: program_runner(bundle, backend) for backend in APPLE_BACKENDS}
    checks: list[Check] = []
    plans: list[ProgramPlan] = []
    for done, program in enumerate(programs, start=1):
        path, length = bundle / program.file, only_length(program)
        inputs = fingerprint_inputs(program, manifest.model.vocab_size)[:MAX_RUNS]
        expected = [run_program[program.backend](program, run_inputs, "float32").outputs for run_inputs in inputs]
        places: Sequence[Place] = tuple(UNITS) if program.backend == "coreml" else ("delegate",)
        for place in places:
            try:
                actual = [run_on_device(device, path, program, place, run_inputs) for run_inputs in inputs]
            except UserError as error:
                metric = f"{place}_snr_db_{length}"
                floor = device_floor_db(program)
                checks.append(Check.at_least(program.name, program.backend, metric, -MAX_DB, floor, str(error)))
            else:
                checks += compare_runs(program, manifest.task, place, expected, actual)
        if program.backend == "coreml":
            plans.append(plan_program(device, path, program))
        on_step("Core ML itself", done, len(programs))
    return checks, plans


def run_on_device(
    device: Device, path: Path, program: Program, place: Place, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs a program once; the outputs have the manifest's names."""
    if place != "delegate":
        return device.predict(path, program.method, place, inputs)
    outputs = device.run_method(path, program.method, [inputs[tensor.name] for tensor in program.inputs])
    return {tensor.name: value for tensor, value in zip(program.outputs, outputs)}


def plan_program(device: Device, path: Path, program: Program) -> ProgramPlan:
    """Reads the plan of one package's function."""
    operators: tuple[PlannedOperator, ...] = ()
    reason = ""
    try:
        operators = device.plan(path, program.method)
    except UserError as error:
        reason = str(error)
    return ProgramPlan.of(program.name, program.backend, only_length(program), operators, reason)


def compare_runs(
    program: Program,
    task: Task,
    place: Place,
    expected: Sequence[Mapping[str, np.ndarray]],
    actual: Sequence[Mapping[str, np.ndarray]],
) -> list[Check]:
    """Checks one program in one place; `expected` and `actual` have the outputs of each run by name."""
    reference, values = {}, {}
    for name in (tensor.name for tensor in program.outputs):
        reference[name] = join_runs([outputs[name] for outputs in expected])
        if all(
            name in outputs and np.shape(outputs[name]) == right[name].shape for right, outputs in zip(expected, actual)
        ):
            values[name] = join_runs([outputs[name] for outputs in actual])
    length, level = only_length(program), get_task(task).signal_level
    return [
        check_outputs(program, f"{place}_snr_db_{length}", reference, values, device_floor_db(program), level),
        *check_uncertainty(program, f"{place}_uncertainty_{length}", reference, values, DEVICE_UNCERTAINTY_FLOOR),
    ]


def join_runs(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(array, dtype=np.float64) for array in arrays])
