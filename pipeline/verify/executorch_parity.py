"""Checks ExecuTorch's programs against the model they came from, by the bundle's conformance vectors.

Both compute the same arithmetic in another order. With int8 activations the order matters: a sum that differs in its last bit
may round to the neighbouring int8 step, and later results differ by what a step is worth. So the outputs are compared as a
whole (the noise must be far below the signal), one by one (within the vectors' tolerance), and by what users see (exit and
answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.bundle.conformance import Case, Conformance, Outcome
from pipeline.bundle.exit_rule import COUNTED, compared_uncertainty, exit_taken, question_uncertainty
from pipeline.bundle.manifest import EXIT_OUTPUTS, Manifest, QAOptions
from pipeline.bundle.opening import BACKEND, Bundle, speed_thresholds
from pipeline.data.features import encode_text
from pipeline.data.spans import best_span, decode_answer, null_score
from pipeline.data.windows import QAWindow, make_windows
from pipeline.runtime.runner import ExitOutput, Runner
from pipeline.support.progress import OnStep, silent
from pipeline.verify.checks import Check
from pipeline.verify.comparison import signal_level, signal_to_noise_db

# Decibels of the vectors' logits over the difference. Measured on MiniLM, 60 texts, after layers 1 to 6: float32 120 to 118,
# int8 56, 42, 37, 33, 33, 32 (a logit of 1 is off by 0.1 at most, an uncertainty by 0.03). Segments in the wrong order give less than 0.
# Schemes whose inputs stay float have nothing that rounds the other way; float16 rounds finely. All others round inputs to int8.
SNR_FLOOR_DB = {"fp32": 60.0, "int8-weight-only": 60.0, "fp16": 40.0}
SNR_FLOOR_INT8_DB = 25.0


def check_executorch(
    bundle_path: str | Path, manifest: Manifest, conformance: Conformance, on_step: OnStep = silent
) -> list[Check]:
    """Runs all conformance cases through the bundle's ExecuTorch programs.

    The checks, of which more is better:
        tokenizer, `token_agreement`: share of cases whose texts give the vectors' ids.
        segment_k, `logits_snr_db`: signal to noise of the logits over all cases (regression: labels over noise).
        segment_k, `within_tolerance`: share of windows whose logits and uncertainty are all within the file's tolerances.
        loop, `outcome_agreement`: share of outcomes, over cases and speeds, with the same exit and answer. Where the
            vectors' uncertainty is closer to a threshold than the tolerance, or two answers are closer to each other,
            either is right. With patience the exit follows from the answers: it is right if all answers up to it are, each
            within the tolerance. With agreement the uncertainties up to it must be right, too.

    Args:
        on_step: called after each case.

    Raises:
        UserError: the bundle or one of its programs cannot be loaded.
    """
    bundle = Bundle.open(bundle_path, check_files=False)
    runner = Runner(bundle)
    runner.prewarm()
    names = EXIT_OUTPUTS[manifest.task]
    segments = [SegmentComparison(conformance) for _ in range(manifest.segments)]
    token_agreement, outcome_agreement = [], []
    for done, case in enumerate(conformance.cases, start=1):
        token_agreement.append(_ids(bundle, case) == [window.input_ids for window in case.windows])
        for window in case.windows:
            mask = None if window.answer_mask is None else np.array(window.answer_mask, dtype=bool)
            outputs = runner.run_all(np.array(window.input_ids), mask)
            for segment, output, vector in zip(segments, outputs, window.exits):
                segment.add(output, [vector.outputs[name] for name in names], vector.uncertainty)
        for speed, expected in case.outcomes.items():
            outcome_agreement.append(AGREES[manifest.task](runner, case, speed, expected, conformance))
        on_step("ExecuTorch against the model", done, len(conformance.cases))
    checks = [Check.at_least("tokenizer", BACKEND, "token_agreement", share(token_agreement), 1.0)]
    for index, segment in enumerate(segments):
        name = f"segment_{index}"
        floor = SNR_FLOOR_DB.get(manifest.program(name, BACKEND).precision, SNR_FLOOR_INT8_DB)
        snr_db = segment.snr_db(signal_level(manifest.task))
        checks.append(Check.at_least(name, BACKEND, "logits_snr_db", snr_db, floor))
        checks.append(Check.at_least(name, BACKEND, "within_tolerance", share(segment.within_tolerance), 1.0))
    checks.append(Check.at_least("loop", BACKEND, "outcome_agreement", share(outcome_agreement), 1.0))
    return checks


class SegmentComparison:
    """Collects one segment's outputs and the vectors' over all windows."""

    def __init__(self, conformance: Conformance):
        self.conformance = conformance
        self.expected: list[np.ndarray] = []
        self.actual: list[np.ndarray] = []
        self.within_tolerance: list[bool] = []

    def add(self, output: ExitOutput, logits: Sequence[Sequence[float]], uncertainty: float) -> None:
        """Adds one window; `logits` and `uncertainty` are the vectors'."""
        expected = np.concatenate([np.asarray(part, dtype=np.float64) for part in logits])
        actual = np.concatenate(output.logits).astype(np.float64)
        self.expected.append(expected)
        self.actual.append(actual)
        # The comparison is "all are within" because NaN would pass "none is beyond".
        logits_fit = bool(np.all(np.abs(actual - expected) <= self.conformance.tolerance))
        uncertainty_fits = abs(output.uncertainty - uncertainty) <= self.conformance.uncertainty_tolerance
        self.within_tolerance.append(logits_fit and uncertainty_fits)

    def snr_db(self, level: float | None) -> float:
        """Returns the signal-to-noise ratio of all logits; `level` as in `signal_to_noise_db`."""
        return signal_to_noise_db(np.concatenate([[], *self.expected]), np.concatenate([[], *self.actual]), level)


def share(agreements: Sequence[bool]) -> float:
    """Returns the share of True; 0 for an empty list, so that comparing nothing does not pass."""
    return float(np.mean(agreements)) if len(agreements) else 0.0


def _windows(bundle: Bundle, case: Case) -> list[QAWindow]:
    options = bundle.manifest.qa
    return make_windows(
        bundle.tokenizer,
        case.question,
        case.passage,
        options.window,
        options.stride,
        options.max_question,
        options.allow_no_answer,
    )


def _ids(bundle: Bundle, case: Case) -> list[list[int]]:
    """The ids of the case's texts by the bundle's tokenizer, a list for each window."""
    if bundle.manifest.task == "qa":
        return [window.ids.tolist() for window in _windows(bundle, case)]
    return [encode_text(bundle.tokenizer, case.text, case.text_pair, bundle.manifest.max_length).ids.tolist()]


def _label_agrees(runner: Runner, case: Case, speed: str, expected: Outcome, conformance: Conformance) -> bool:
    got = runner.classify(case.text, case.text_pair, speed)
    exits, labels = case.windows[0].exits, runner.manifest.labels
    if got.exit == expected.exit and got.label == expected.label:
        return True
    if runner.manifest.uncertainty in COUNTED:
        outputs = runner.run_all(np.array(case.windows[0].input_ids))
        own = [labels[int(output.logits[0].argmax())] for output in outputs]
        vectors = [labels[int(np.argmax(exit.outputs["logits"]))] for exit in exits]
        own_uncertainty, uncertainty = [output.uncertainty for output in outputs], [exit.uncertainty for exit in exits]
        for outcome, answers, by_program in ((got, own, own_uncertainty), (expected, vectors, uncertainty)):
            if (
                not _counted_took(outcome.exit, answers, by_program, runner.manifest, speed)
                or answers[outcome.exit] != outcome.label
            ):
                return False
        if not _near(own_uncertainty[: got.exit + 1], uncertainty, runner.manifest, conformance):
            return False
        compared = list(enumerate(own[: got.exit + 1]))
    else:
        if not _exit_open(
            [exit.uncertainty for exit in exits], got.exit, expected.exit, runner.manifest, speed, conformance
        ):
            return False
        compared = [(got.exit, got.label), (expected.exit, expected.label)]
    for exit, label in compared:
        logits = dict(zip(labels, exits[exit].outputs["logits"]))
        if max(logits.values()) - logits.get(label, -np.inf) > 2 * conformance.tolerance:
            return False
    return True


def _value_agrees(runner: Runner, case: Case, speed: str, expected: Outcome, conformance: Conformance) -> bool:
    got = runner.estimate(case.text, case.text_pair, speed)
    exits, label_range = case.windows[0].exits, runner.manifest.label_range
    if not _exit_open(
        [exit.uncertainty for exit in exits], got.exit, expected.exit, runner.manifest, speed, conformance
    ):
        return False
    return all(
        abs(label_range.share(outcome.value) - exits[outcome.exit].outputs["logits"][0]) <= conformance.tolerance
        for outcome in (got, expected)
    )


def _answer_agrees(runner: Runner, case: Case, speed: str, expected: Outcome, conformance: Conformance) -> bool:
    got = runner.answer(case.question, case.passage, speed)
    if got.exit == expected.exit and (got.answer, got.start, got.end) == (
        expected.answer,
        expected.start,
        expected.end,
    ):
        return True
    options, windows = runner.manifest.qa, _windows(runner.bundle, case)
    logits = [  # [exits][windows] of (start, end)
        [
            (np.array(vector.exits[exit].outputs["start_logits"]), np.array(vector.exits[exit].outputs["end_logits"]))
            for vector in case.windows
        ]
        for exit in range(runner.manifest.segments)
    ]

    def of_question(logits: Sequence[Sequence[tuple]], by_window: Sequence[Sequence[float]]) -> list[float]:
        best = [
            [best_span(*pair, w.answer_mask, options.max_answer).score for w, pair in zip(windows, pairs)]
            for pairs in logits
        ]
        return [question_uncertainty(*each) for each in zip(best, by_window)]

    uncertainty = of_question(
        logits, list(zip(*([exit.uncertainty for exit in vector.exits] for vector in case.windows)))
    )
    if runner.manifest.uncertainty in COUNTED:
        outputs = list(runner.segments([window.ids for window in windows], [window.answer_mask for window in windows]))
        own_logits = [[output.logits for output in each] for each in outputs]
        own = _exit_answers(windows, own_logits, case.passage, options)
        own_uncertainty = of_question(own_logits, [[output.uncertainty for output in each] for each in outputs])
        vectors = _exit_answers(windows, logits, case.passage, options)
        for outcome, answers, by_program in ((got, own, own_uncertainty), (expected, vectors, uncertainty)):
            if not _counted_took(
                outcome.exit, [answer.answer for answer in answers], by_program, runner.manifest, speed
            ):
                return False
        if expected != vectors[expected.exit] or not _near(
            own_uncertainty[: got.exit + 1], uncertainty, runner.manifest, conformance
        ):
            return False
        compared = [*own[: got.exit], got]
    else:
        if not _exit_open(uncertainty, got.exit, expected.exit, runner.manifest, speed, conformance):
            return False
        compared = [got, expected]
    return all(
        _answer_open(windows, logits[outcome.exit], outcome.start, outcome.end, options, conformance.tolerance)
        and outcome.answer == case.passage[max(outcome.start, 0) : max(outcome.end, 0)]
        for outcome in compared
    )


AGREES = {"classification": _label_agrees, "regression": _value_agrees, "qa": _answer_agrees}


def _exit_answers(
    windows: Sequence[QAWindow], logits: Sequence[Sequence[tuple]], passage: str, options: QAOptions
) -> list[Outcome]:
    """The answer at every exit; logits: [exits][windows] of (start, end)."""
    answers = []
    for exit, pairs in enumerate(logits):
        got = decode_answer(
            windows, pairs, passage, options.max_answer, options.allow_no_answer, options.null_threshold
        )
        answers.append(Outcome(exit=exit, answer=got.text, start=got.start, end=got.end))
    return answers


def _counted_took(
    exit: int, answers: Sequence[str], by_program: Sequence[float], manifest: Manifest, speed: str
) -> bool:
    """Whether the rule, given the answer and the programs' uncertainty at every exit, takes this one."""
    uncertainty = [
        compared_uncertainty(manifest.uncertainty, each, answers[: at + 1]) for at, each in enumerate(by_program)
    ]
    return exit_taken(uncertainty, speed_thresholds(manifest, speed)) == exit


def _near(own: Sequence[float], vectors: Sequence[float], manifest: Manifest, conformance: Conformance) -> bool:
    """Whether the programs' uncertainties up to an exit are the vectors', where they count at all."""
    differences = (abs(one - other) for one, other in zip(own, vectors))
    return manifest.uncertainty == "patience" or max(differences) <= conformance.uncertainty_tolerance


def _answer_open(
    windows: Sequence[QAWindow],
    logits: Sequence[tuple[np.ndarray, np.ndarray]],
    start: int,
    end: int,
    options: QAOptions,
    tolerance: float,
) -> bool:
    """Whether the characters `start` to `end` (-1: no answer) are the vectors' answer, or too close to it to be told apart."""
    # Two scores are compared, each the sum of two logits, each of which may be off by the tolerance.
    slack = 4 * tolerance
    top = max(best_span(*pair, window.answer_mask, options.max_answer).score for window, pair in zip(windows, logits))
    over_null = (
        top + options.null_threshold - min(null_score(*pair) for pair in logits) if options.allow_no_answer else np.inf
    )
    if start < 0:
        return over_null <= slack
    return over_null >= -slack and _span_score(windows, logits, start, end) >= top - slack


def _span_score(
    windows: Sequence[QAWindow], logits: Sequence[tuple[np.ndarray, np.ndarray]], start: int, end: int
) -> float:
    """The best score of the characters `start` to `end`; -inf where no window has tokens that start and end there."""
    scores = [-np.inf]
    for window, (start_logits, end_logits) in zip(windows, logits):
        starts = start_logits[window.answer_mask & (window.offsets[:, 0] == start)]
        ends = end_logits[window.answer_mask & (window.offsets[:, 1] == end)]
        if len(starts) and len(ends):
            scores.append(float(starts.max() + ends.max()))
    return max(scores)


def _exit_open(
    uncertainty: Sequence[float], one: int, other: int, manifest: Manifest, speed: str, conformance: Conformance
) -> bool:
    """Whether two exits are equal, or the vectors' uncertainty at the earlier is too close to the threshold to tell them apart."""
    if one == other:
        return True
    earlier = min(one, other)
    return abs(uncertainty[earlier] - speed_thresholds(manifest, speed)[earlier]) <= conformance.uncertainty_tolerance
