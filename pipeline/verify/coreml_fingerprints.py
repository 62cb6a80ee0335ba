"""Checks each saved program that Core ML computes against its fingerprint in the bundle.

This tells which program of which bucket differs from its model, and by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.bundle.conformance import CONFORMANCE_FILE, ProgramVector
from pipeline.bundle.manifest import Manifest, Program
from pipeline.export.fingerprints import fingerprint, fingerprint_inputs
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.verify.checks import Check
from pipeline.verify.comparison import check_outputs, check_uncertainty
from pipeline.verify.coreml_programs import RunProgram
from pipeline.verify.evaluator.precision import Precision
from pipeline.verify.floors import (
    FINGERPRINT_FLOOR_DB,
    FINGERPRINT_UNCERTAINTY_FLOOR,
    ROUNDED_FINGERPRINT_FLOOR_DB,
    has_int8_inputs,
)


def check_fingerprints(
    manifest: Manifest,
    vectors: Sequence[ProgramVector],
    run_program: RunProgram,
    on_step: OnStep = silent,
    backend: Backend = "coreml",
) -> list[Check]:
    """Runs every program of a backend in float32, on the inputs from which its fingerprint was made.

    No program sees another's outputs, so a fault shows only in the program that has it. The checks of a program and
    bucket, of which more is better:
        `fingerprint_snr_db_LENGTH`: signal to noise of the worst output other than the uncertainty.
        `fingerprint_uncertainty_LENGTH`: 1 - the difference of the uncertainty, if the program has one.
        `fingerprint_rounded_snr_db_LENGTH`: as the first, but with activations rounded to int8. Only programs with int8
            activations have it; the other two checks then clip the activations without rounding.

    Raises:
        UserError: if programs and fingerprints do not belong together. No program passes for lack of a fingerprint.
    """
    programs = {
        (program.name, length): program
        for program in manifest.programs
        if program.backend == backend
        for length in program.lengths or ()
    }
    vectors = [vector for vector in vectors if vector.backend == backend]
    require_same_programs(programs, vectors, backend)
    checks = []
    for done, vector in enumerate(vectors, start=1):
        program = programs[vector.program, vector.length]
        inputs = fingerprint_inputs(program, manifest.model.vocab_size)
        exact: Precision = "float32" if vector.rounded_outputs is None else "smooth"
        expected, length = as_arrays(vector.outputs), vector.length
        actual = fingerprints_of([run_program(program, run_inputs, exact).outputs for run_inputs in inputs])
        checks.append(check_outputs(program, f"fingerprint_snr_db_{length}", expected, actual, FINGERPRINT_FLOOR_DB))
        checks += check_uncertainty(
            program, f"fingerprint_uncertainty_{length}", expected, actual, FINGERPRINT_UNCERTAINTY_FLOOR
        )
        if vector.rounded_outputs is not None:
            expected, metric = as_arrays(vector.rounded_outputs), f"fingerprint_rounded_snr_db_{length}"
            actual = fingerprints_of([run_program(program, run_inputs, "float32").outputs for run_inputs in inputs])
            checks.append(check_outputs(program, metric, expected, actual, ROUNDED_FINGERPRINT_FLOOR_DB))
        on_step("fingerprints", done, len(vectors))
    return checks


def require_same_programs(
    programs: Mapping[tuple[str, int], Program], vectors: Sequence[ProgramVector], backend: Backend
) -> None:
    """Raises UserError unless every program has a fingerprint of all its outputs, and no other program has one.

    Args:
        programs: by name and length.
    """
    declared = {key: {tensor.name for tensor in program.outputs} for key, program in programs.items()}
    rounded = {key: declared[key] for key, program in programs.items() if has_int8_inputs(program)}
    with_vectors = {(vector.program, vector.length): set(vector.outputs) for vector in vectors}
    with_rounded_vectors = {
        (vector.program, vector.length): set(vector.rounded_outputs)
        for vector in vectors
        if vector.rounded_outputs is not None
    }
    if declared != with_vectors or rounded != with_rounded_vectors:
        raise UserError(
            f"do not belong to the manifest's {backend} programs and their outputs; export the bundle again",
            file=CONFORMANCE_FILE,
            field="programs",
        )


def as_arrays(fingerprints: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in fingerprints.items()}


def fingerprints_of(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the fingerprint of each output, over all runs joined end to end."""
    return as_arrays({name: fingerprint(np.concatenate([outputs[name] for outputs in runs])) for name in runs[0]})
