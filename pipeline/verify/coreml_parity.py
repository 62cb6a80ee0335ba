"""Checks the saved programs that Core ML computes against the bundle's conformance vectors.

The programs are read from packages, or from ExecuTorch files with Core ML's delegate, and evaluated in coremltools' semantics
on any machine. This needs only the bundle. But the vectors' logits come from the model that was quantized for ExecuTorch, so
two ways of rounding are compared and the floors are low. Two other checks are strict: `check_fingerprints`, and
`pipeline.verify.coreml_modules` where the trained model is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.bundle.conformance import Conformance, WindowVector
from pipeline.bundle.manifest import EXIT_OUTPUTS, Manifest, Program
from pipeline.data.spans import best_span
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.verify.checks import Check
from pipeline.verify.comparison import signal_level, signal_to_noise_db
from pipeline.verify.coreml_fingerprints import check_fingerprints
from pipeline.verify.coreml_programs import (
    BACKEND_NAMES,
    CoreMLPrograms,
    bundle_buckets,
    padded_inputs,
    program_runner,
)
from pipeline.verify.evaluator.faults import Fault
from pipeline.verify.evaluator.precision import Precision
from pipeline.verify.evaluator.program import EXPORT_AGAIN

WINDOWS = 8


@dataclass(frozen=True)
class Floors:
    """What a scheme's programs must reach.

    Attributes:
        logits_db, same_answer, uncertainty: against the conformance vectors, whose weights are rounded for ExecuTorch.
        module_db: against the program's own module, by precision of the evaluation.
        module_uncertainty: the same, 1 - the greatest difference.
    """

    logits_db: float
    same_answer: float
    uncertainty: float
    module_db: Mapping[Precision, float]
    module_uncertainty: float


# int8, measured with MiniLM's six layers, least over segments and buckets. Against the vectors: exits trained on SST-2 26 dB, 0.984 and every
# label the same; random heads, whose logits are nearly equal, 23 dB. Against the modules: 32 dB (embed) and 33 dB with trained exits, 24.8 dB with
# random ones; simulated float16 takes less than 0.3 dB of that.
INT8 = Floors(15.0, 0.85, 0.95, {"float32": 20.0, "float16": 20.0}, 0.95)
# The weights of fewer bits are so much noisier than int8's, at 41 dB, as their signal to noise says: 32 dB with six bits, 20 dB with four (normally
# distributed weights). MiniLM's last hidden states after all six layers: int8 30 dB, four bits 11 dB. Exits trained on SST-2, int4: 17.3 dB, every label
# the same and 0.92 against the vectors; 11.4 dB and 0.763, the worst of random words, against the modules.
SIX_BITS = Floors(8.0, 0.8, 0.9, {"float32": 14.0, "float16": 14.0}, 0.9)
FOUR_BITS = Floors(0.0, 0.7, 0.8, {"float32": 5.0, "float16": 5.0}, 0.6)
# int8 inputs take more than int8 weights do: MiniLM's last hidden states with weights alone 30 dB, with both 22 dB.
INT8_A8 = Floors(8.0, 0.8, 0.9, {"float32": 8.0, "float16": 8.0}, 0.8)
FLOORS: dict[str, Floors] = {
    "fp32": replace(INT8, module_db={"float32": 100.0}, module_uncertainty=0.9999),
    "fp16": replace(INT8, module_db={"float32": 60.0, "float16": 45.0}, module_uncertainty=0.99),
    "int8": INT8,
    "int8-a8": INT8_A8,
    "int4": FOUR_BITS,
    "palette4": FOUR_BITS,
    "palette6": SIX_BITS,
    "palette4-per-tensor": FOUR_BITS,
    "palette6-per-tensor": SIX_BITS,
    "mixed": FOUR_BITS,  # a mix may be int4 for the most part
}


def floors_of(program: Program) -> Floors:
    """UserError for a scheme that this version does not know."""
    if program.precision not in FLOORS:
        raise UserError(
            f"{program.precision!r} is not known to this version, which knows {', '.join(FLOORS)}; {EXPORT_AGAIN}",
            file=program.file,
            field="precision",
        )
    return FLOORS[program.precision]


def check_coreml(
    bundle: str | Path,
    manifest: Manifest,
    conformance: Conformance,
    on_step: OnStep = silent,
    windows: int = WINDOWS,
    backend: Backend = "coreml",
) -> list[Check]:
    """Runs conformance inputs through the programs of every bucket, in simulated float16.

    Bundles with fingerprints have `check_fingerprints` first, which names the faulty program. Then the programs run in
    sequence, `embed` first, so that a fault also shows in the programs after it. The checks of a program and bucket, of which
    more is better:
        `finite_float16_LENGTH`: share of windows in which no operator overflows float16 or makes a NaN.
    Those of a segment and bucket:
        `logits_snr_db_LENGTH`: signal to noise of the logits, over all windows. The mean over a window is subtracted first:
            a softmax ignores it, and a common offset would count as signal. A regression's logit is compared as it is.
        `same_answer_LENGTH`: share of windows with the same label, or a best span that is as good up to the noise, or the
            same number up to the noise.
        `uncertainty_agreement_LENGTH`: 1 - the mean difference of the uncertainties.

    The vectors have int8 activations and these programs do not, and both round weights in their own way. So the floors ask
    for the same model, not for the same bits; `FLOORS` says what was measured.

    Args:
        windows: the number of inputs for each bucket, from the shortest to the longest that fits.
        backend: "coreml" for the packages, "executorch-coreml" for the methods that ExecuTorch hands to Core ML.

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
    run_program = program_runner(bundle, backend)
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
    names, level, floors = EXIT_OUTPUTS[manifest.task], signal_level(manifest.task), floors_of(program)
    expected = [
        [np.asarray(window.exits[index].outputs[name], dtype=np.float32) for name in names] for window in windows
    ]
    # Question answering has a logit for each token, and those of the padding come last.
    actual = [
        [values[name][0, : len(logits)] for name, logits in zip(names, window_logits)]
        for values, window_logits in zip(outputs, expected)
    ]
    signal, value = (
        np.concatenate([logits - logits.mean() if level is None else logits for window in side for logits in window])
        for side in (expected, actual)
    )
    # Answers whose scores in the vectors differ by less than this are equally right: it is the noise that the floor permits.
    slack = 2.0 * (level or float(np.sqrt(np.square(signal).mean()))) * 10 ** (-floors.logits_db / 20)
    same = [same_answer(manifest, *window, slack) for window in zip(windows, expected, actual)]
    differences = [
        abs(float(values["uncertainty"][0]) - window.exits[index].uncertainty)
        for window, values in zip(windows, outputs)
    ]
    measured = (
        ("logits_snr_db", signal_to_noise_db(signal, value, level), floors.logits_db),
        ("same_answer", float(np.mean(same)), floors.same_answer),
        ("uncertainty_agreement", 1.0 - float(np.mean(differences)), floors.uncertainty),
    )
    return [
        Check.at_least(program.name, program.backend, f"{metric}_{length}", number, floor)
        for metric, number, floor in measured
    ]


def same_answer(
    manifest: Manifest, window: WindowVector, expected: list[np.ndarray], got: list[np.ndarray], slack: float
) -> bool:
    """Whether the answer of `got`, a label or a span, is the best of `expected` or scores no more than `slack` below it there.

    A regression's number is the same up to `slack`.
    """
    if not all(np.isfinite(each).all() for each in got):
        return False
    if manifest.task == "regression":
        return abs(float(expected[0][0]) - float(got[0][0])) <= slack
    if manifest.task == "classification":
        return float(expected[0].max() - expected[0][int(np.argmax(got[0]))]) <= slack
    mask = np.asarray(window.answer_mask, dtype=bool)
    best, span = (best_span(*logits, mask, manifest.qa.max_answer) for logits in (expected, got))
    return best.score - float(expected[0][span.start_token] + expected[1][span.end_token]) <= slack
