"""The programs that Core ML computes, one by one against the fingerprints in the bundle: which program of which bucket differs from its model, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.bundle.conformance import CONFORMANCE_FILE, ProgramVector
from pipeline.bundle.manifest import Manifest, Program
from pipeline.export.fingerprints import fingerprint, fingerprint_inputs
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.verify.checks import MOST_DB, Check, signal_to_noise_db
from pipeline.verify.evaluator.evaluator import Evaluation, Precision
from pipeline.verify.floors import stored_weights

# Both sides are float32 with the same weights, so only the order of sums is between them. Measured on one layer with random weights, 64 and
# 768 wide, fp16 and int8, three kinds of head: 103 dB and more. One int8 weight of a 768-wide layer off by half its range, 12 drawn: 64 to 86 dB.
FINGERPRINT_FLOOR_DB = 90.0
# With int8 activations the sums' order decides on which side of a step some of them fall, and what follows goes with it. MiniLM's six layers in one
# program: 75 and 25 dB (layouts standard and ane).
ROUNDED_FLOOR_DB = 10.0
# Of its numbers, the constants (a logarithm of the classes, say) are float16, which is exact to 0.0005.
UNCERTAINTY_FLOOR = 0.998

Run = Callable[[Program, dict[str, np.ndarray], Precision], Evaluation]


def check_fingerprints(
    manifest: Manifest,
    vectors: Sequence[ProgramVector],
    run: Run,
    on_step: OnStep = silent,
    backend: Backend = "coreml",
) -> list[Check]:
    """Runs every program of a backend on the inputs its fingerprint was made with, in float32.

    No program sees another's outputs, so that each fails for itself. For every program and bucket, better when higher:
        `fingerprint_snr_db_LENGTH`: the fingerprint over the difference, the worst of its outputs but the uncertainty.
        `fingerprint_uncertainty_LENGTH`: 1 - the difference (where the program has an `uncertainty`).
        `fingerprint_rounded_snr_db_LENGTH`: as the first, with activations in int8 (where they are; the others are then without its steps).

    Args:
        run: evaluates a program of the bundle.

    Raises:
        UserError: when programs and fingerprints are not of one bundle: none may pass for lack of a fingerprint.
    """
    of_backend = [program for program in manifest.programs if program.backend == backend]
    programs = {(program.name, length): program for program in of_backend for length in program.lengths or ()}
    vectors = [vector for vector in vectors if vector.backend == backend]
    expected_outputs = {key: {tensor.name for tensor in program.outputs} for key, program in programs.items()}
    rounds = {key for key, program in programs.items() if program.name != "embed" and has_int8_inputs(program)}
    rounded_outputs = {
        (vector.program, vector.length): set(vector.rounded_outputs)
        for vector in vectors
        if vector.rounded_outputs is not None
    }
    if (
        expected_outputs != {(vector.program, vector.length): set(vector.outputs) for vector in vectors}
        or {key: expected_outputs[key] for key in rounds} != rounded_outputs
    ):
        raise UserError(
            f"are not of the manifest's {backend} programs and their outputs; export the bundle again",
            file=CONFORMANCE_FILE,
            field="programs",
        )
    checks = []
    for done, vector in enumerate(vectors, start=1):
        program = programs[vector.program, vector.length]
        inputs = fingerprint_inputs(program, manifest.model.vocab_size)
        smooth: Precision = "float32" if vector.rounded_outputs is None else "smooth"
        got = fingerprints_of([run(program, each, smooth).outputs for each in inputs])
        checks.append(
            compare(program, f"fingerprint_snr_db_{vector.length}", vector.outputs, got, FINGERPRINT_FLOOR_DB)
        )
        if "uncertainty" in vector.outputs:
            value = 1.0 - abs(got["uncertainty"][0] - vector.outputs["uncertainty"][0])
            value = value if np.isfinite(value) else -1.0  # JSON has no NaN
            metric = f"fingerprint_uncertainty_{vector.length}"
            checks.append(Check(program.name, backend, metric, value, UNCERTAINTY_FLOOR, value >= UNCERTAINTY_FLOOR))
        if vector.rounded_outputs is not None:
            got = fingerprints_of([run(program, each, "float32").outputs for each in inputs])
            checks.append(
                compare(
                    program,
                    f"fingerprint_rounded_snr_db_{vector.length}",
                    vector.rounded_outputs,
                    got,
                    ROUNDED_FLOOR_DB,
                )
            )
        on_step("fingerprints", done, len(vectors))
    return checks


def has_int8_inputs(program: Program) -> bool:
    """Whether a program's precision is one whose layers' matrices have int8 inputs."""
    return stored_weights(program).int8_inputs


def fingerprints_of(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """The fingerprint of each output, of all runs one after the other."""
    return {name: fingerprint(np.concatenate([outputs[name] for outputs in runs])) for name in runs[0]}


def compare(
    program: Program, metric: str, expected: dict[str, list[float]], got: dict[str, list[float]], floor: float
) -> Check:
    """The worst of the outputs but the uncertainty."""
    ratios = {
        name: signal_to_noise_db(np.array(values), np.array(got[name])) if len(values) == len(got[name]) else -MOST_DB
        for name, values in expected.items()
        if name != "uncertainty"
    }
    worst = min(ratios, key=ratios.__getitem__)
    passed = ratios[worst] >= floor
    return Check(
        program.name, program.backend, metric, ratios[worst], floor, passed, "" if passed else f"output {worst}"
    )
