"""Checks the saved programs that Core ML computes against the bundle's conformance vectors.

The programs are read from packages, or from ExecuTorch files with Core ML's delegate, and evaluated in coremltools'
semantics on any machine. This needs only the bundle. But the vectors' logits come from the model that was quantized for
ExecuTorch, so two ways of rounding are compared and the floors are low. Two other checks are strict:
`check_fingerprints`, and `pipeline.verify.coreml_modules` where the trained model is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.bundle.conformance import Conformance, WindowVector
from pipeline.bundle.manifest import Manifest, Program
from pipeline.export.vectors import answer_mask_of
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.checks import Check
from pipeline.verify.comparison import signal_to_noise_db
from pipeline.verify.coreml_fingerprints import check_fingerprints
from pipeline.verify.coreml_programs import (
    BACKEND_NAMES,
    CoreMLPrograms,
    bundle_buckets,
    padded_inputs,
    program_runner,
)
from pipeline.verify.evaluator.faults import Fault
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.floors import shown_mean_floor, vector_floors
from pipeline.verify.threads import one_thread

WINDOWS_PER_BUCKET = 8


@one_thread()
def check_coreml(
    bundle: str | Path,
    manifest: Manifest,
    conformance: Conformance,
    on_step: OnStep = silent,
    windows: int = WINDOWS_PER_BUCKET,
    backend: Backend = "coreml",
    files: SavedFiles | None = None,
) -> list[Check]:
    """Runs conformance inputs through the programs of every bucket, in simulated float16.

    Bundles with fingerprints have `check_fingerprints` first, which names the faulty program. Then the programs run in
    sequence, `embed` first, so that a fault also shows in the programs after it. The checks of a program and bucket, of
    which more is better:
        `finite_float16_LENGTH`: share of windows in which no operator overflows float16 or makes a NaN.
    Those of a segment and bucket:
        `logits_snr_db_LENGTH`: signal to noise of the logits, over all windows. The mean over a window is subtracted
            first: a softmax ignores it, and a common offset would count as signal. A regression's logit is compared as
            it is.
        `same_answer_LENGTH`: share of windows with the same label, or a best span that is as good up to the noise, or
            the same number up to the noise.
        `uncertainty_agreement_LENGTH`: 1 - the mean difference of the uncertainties.

    The vectors have int8 activations and these programs do not, and both round weights in their own way. So the floors
    ask for the same model, not for the same bits; `pipeline.schemes` says what was measured.

    Args:
        windows: the number of inputs for each bucket, from the shortest to the longest that fits.
        backend: "coreml" for the packages, "executorch-coreml" for the methods that ExecuTorch hands to Core ML.
        files: the bundle's files, where other checks have read some of them.

    Raises:
        UserError: if a file cannot be read or evaluated, or no input fits any bucket.
    """
    bundle = Path(bundle)
    all_windows = sorted(
        (window for case in conformance.cases for window in case.windows), key=lambda window: len(window.input_ids)
    )
    buckets = {
        length: spread([window for window in all_windows if len(window.input_ids) <= length], windows)
        for length in bundle_buckets(manifest, backend)
    }
    total = sum(len(chosen) for chosen in buckets.values())
    if total == 0:
        raise UserError(
            "no conformance input fits a Core ML bucket; add a longer bucket to export.coreml_buckets", file=bundle
        )
    run_program = program_runner(bundle, backend, files)
    checks: list[Check] = []
    if conformance.programs is not None:
        checks += check_fingerprints(manifest, conformance.programs, run_program, on_step, backend)
    done = 0
    for length, chosen in buckets.items():
        if not chosen:  # the bundle has no input that is this short
            continue
        programs = CoreMLPrograms(bundle, manifest, length, run_program, backend)
        outputs = []
        for window in chosen:
            inputs = padded_inputs(window.input_ids, window.answer_mask, length, manifest.tokenizer.pad_id)
            outputs.append(programs.run_all(inputs, "float16"))
            done += 1
            on_step(f"{BACKEND_NAMES[backend]} against the model", done, total)
        checks += [check_finite(name, backend, length, faults) for name, faults in programs.faults.items()]
        for index, program in enumerate(programs.segments):
            checks += check_segment(program, manifest, length, chosen, index, [run[index] for run in outputs])
    return checks


def check_finite(program: str, backend: Backend, length: int, faults: Sequence[Fault | None]) -> Check:
    """Checks that no run has a fault; the note is the first fault."""
    share = faults.count(None) / len(faults)
    note = next((str(fault) for fault in faults if fault), "")
    return Check.at_least(program, backend, f"finite_float16_{length}", share, 1.0, note)


def spread(windows: list[WindowVector], count: int) -> list[WindowVector]:
    """Returns `count` windows at even distances, including the first and the last."""
    if len(windows) <= count:
        return windows
    return [windows[round(index * (len(windows) - 1) / max(count - 1, 1))] for index in range(count)]


def check_segment(
    program: Program,
    manifest: Manifest,
    length: int,
    windows: Sequence[WindowVector],
    index: int,
    outputs: Sequence[Mapping[str, np.ndarray]],
) -> list[Check]:
    """Checks one segment.

    Args:
        index: the segment's number.
        outputs: what the program gave for each of `windows`.
    """
    task, floors = get_task(manifest.task), vector_floors(program, manifest)
    names, level = task.exit_outputs, task.signal_level
    expected = [
        [np.asarray(window.exits[index].outputs[name], dtype=np.float32) for name in names] for window in windows
    ]
    # Where each token has one logit or several, those of the padding come last. The vectors are flat.
    actual = [
        [values[name][0].ravel()[: len(logits)] for name, logits in zip(names, window_logits)]
        for values, window_logits in zip(outputs, expected)
    ]
    signal, value = (
        np.concatenate([logits - logits.mean() if level is None else logits for window in side for logits in window])
        for side in (expected, actual)
    )
    # Answers whose scores in the vectors differ by less than this are equally right: it is the noise that the floor
    # permits.
    slack = 2.0 * (level or float(np.sqrt(np.square(signal).mean()))) * 10 ** (-floors.logits_db / 20)
    same = [same_answer(manifest, *window, slack) for window in zip(windows, expected, actual)]
    differences = [
        abs(float(values["uncertainty"][0]) - window.exits[index].uncertainty)
        for window, values in zip(windows, outputs)
    ]
    measured = (
        ("logits_snr_db", signal_to_noise_db(signal, value, level), floors.logits_db),
        ("same_answer", float(np.mean(same)), floors.same_answer),
        (
            "uncertainty_agreement",
            1.0 - float(np.mean(differences)),
            shown_mean_floor(floors.uncertainty, len(differences)),
        ),
    )
    return [
        Check.at_least(program.name, program.backend, f"{metric}_{length}", number, floor)
        for metric, number, floor in measured
    ]


def same_answer(
    manifest: Manifest,
    window: WindowVector,
    expected: Sequence[np.ndarray],
    actual: Sequence[np.ndarray],
    slack: float,
) -> bool:
    """Returns whether the best answer of `actual` scores at most `slack` below the best in `expected`."""
    if not all(np.isfinite(logits).all() for logits in actual):
        return False
    task = get_task(manifest.task)
    return task.same_best(answer_mask_of(window), tuple(expected), tuple(actual), slack, manifest.answer_context)
