"""The programs that Core ML computes, one by one against the fingerprints in the bundle: which program of which bucket differs from its model, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.conformance import CONFORMANCE_FILE, ProgramVector
from pipeline.errors import UserError
from pipeline.export.fingerprints import fingerprint, fingerprint_inputs
from pipeline.manifest import Backend, Manifest, Program
from pipeline.progress import OnStep, silent
from pipeline.verify.checks import MOST_DB, Check, signal_to_noise_db
from pipeline.verify.mil_evaluator import Evaluation, Precision

# Both sides are float32 with the same weights, so only the order of sums is between them. Measured on one layer with random weights, 64 and
# 768 wide, fp16 and int8, three kinds of head: 103 dB and more. One int8 weight of a 768-wide layer off by half its range, 12 drawn: 64 to 86 dB.
FINGERPRINT_FLOOR_DB = 90.0
# Of its numbers, the constants (a logarithm of the classes, say) are float16, which is exact to 0.0005.
UNCERTAINTY_FLOOR = 0.998

Run = Callable[[Program, dict[str, np.ndarray], Precision], Evaluation]


def check_fingerprints(
    manifest: Manifest, vectors: Sequence[ProgramVector], run: Run, on_step: OnStep = silent, backend: Backend = "coreml"
) -> list[Check]:
    """Runs every program of a backend on the inputs its fingerprint was made with, in float32.

    No program sees another's outputs, so that each fails for itself. For every program and bucket, better when higher:
        `fingerprint_snr_db_LENGTH`: the fingerprint over the difference, the worst of its outputs but the uncertainty.
        `fingerprint_uncertainty_LENGTH`: 1 - the difference (where the program has an `uncertainty`).

    Args:
        run: evaluates a program of the bundle.

    Raises:
        UserError: when programs and fingerprints are not of one bundle: none may pass for lack of a fingerprint.
    """
    of_backend = [program for program in manifest.programs if program.backend == backend]
    programs = {(program.name, length): program for program in of_backend for length in program.lengths or ()}
    vectors = [vector for vector in vectors if vector.backend == backend]
    expected_outputs = {key: {tensor.name for tensor in program.outputs} for key, program in programs.items()}
    if expected_outputs != {(vector.program, vector.length): set(vector.outputs) for vector in vectors}:
        raise UserError(
            f"are not of the manifest's {backend} programs and their outputs; export the bundle again",
            file=CONFORMANCE_FILE,
            field="programs",
        )
    checks = []
    for done, vector in enumerate(vectors, start=1):
        program = programs[vector.program, vector.length]
        runs = [run(program, inputs, "float32").outputs for inputs in fingerprint_inputs(program, manifest.model.vocab_size)]
        ratios = {}
        for name, expected in vector.outputs.items():
            got = fingerprint(np.concatenate([outputs[name] for outputs in runs]))
            if name == "uncertainty":
                value = 1.0 - abs(got[0] - expected[0])
                value = value if np.isfinite(value) else -1.0  # JSON has no NaN
                uncertainty = Check(
                    program.name, backend, f"fingerprint_uncertainty_{vector.length}", value, UNCERTAINTY_FLOOR, value >= UNCERTAINTY_FLOOR
                )
            else:
                ratios[name] = signal_to_noise_db(np.array(expected), np.array(got)) if len(expected) == len(got) else -MOST_DB
        worst = min(ratios, key=ratios.__getitem__)
        passed = ratios[worst] >= FINGERPRINT_FLOOR_DB
        note = "" if passed else f"output {worst}"
        checks.append(Check(program.name, backend, f"fingerprint_snr_db_{vector.length}", ratios[worst], FINGERPRINT_FLOOR_DB, passed, note))
        if "uncertainty" in vector.outputs:
            checks.append(uncertainty)
        on_step("fingerprints", done, len(vectors))
    return checks
