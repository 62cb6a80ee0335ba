"""Checks ExecuTorch's programs against the model they came from, by the bundle's conformance vectors.

Both compute the same arithmetic in another order. With int8 activations the order matters: a sum that differs in its
last bit may round to the neighbouring int8 step, and later results differ by what a step is worth. So the outputs are
compared as a whole (the noise must be far below the signal), one by one (within the vectors' tolerance), and by what
users see (exit and answer).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.conformance import Case, Conformance, Outcome
from pipeline.bundle.exit_rule import ANSWER_MEASURES, exit_taken
from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import BACKEND, Bundle, speed_thresholds
from pipeline.data.examples import Example
from pipeline.export.vectors import answer_mask_of, exit_logits, runner_uncertainties
from pipeline.names import Backend
from pipeline.runtime.runner import ExitOutput, Runner
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import AnswerContext, AnyTask, Request, get_task
from pipeline.tasks.types import Logits, ModelInput
from pipeline.verify.checks import Check
from pipeline.verify.comparison import signal_to_noise_db
from pipeline.verify.floors import snr_floor_db


def check_executorch(
    bundle_path: str | Path, manifest: Manifest, conformance: Conformance, on_step: OnStep = silent
) -> list[Check]:
    """Runs all conformance cases through the bundle's ExecuTorch programs.

    The checks, of which more is better:
        tokenizer, `token_agreement`: share of cases whose texts give the vectors' ids.
        segment_k, `logits_snr_db`: signal to noise of the logits over all cases (regression: labels over noise).
        segment_k, `within_tolerance`: share of windows whose logits and uncertainty are within the file's tolerances.
        loop, `outcome_agreement`: share of outcomes, over cases and speeds, with the same exit and answer, or with one
            that the tolerances cannot tell from it; see `outcome_agrees`.

    Args:
        on_step: called after each case.

    Raises:
        UserError: the bundle or one of its programs cannot be loaded.
    """
    bundle, task = Bundle.open(bundle_path, check_files=False), get_task(manifest.task)
    runner = Runner(bundle)
    runner.prewarm()
    segments = [SegmentComparison(conformance) for _ in range(manifest.segments)]
    token_agreement, outcome_agreement = [], []
    for done, case in enumerate(conformance.cases, start=1):
        token_agreement.append(encode_case(bundle, case) == [window.input_ids for window in case.windows])
        for window in case.windows:
            outputs = runner.run_all(np.array(window.input_ids), answer_mask_of(window))
            for exit, (segment, output, vector) in enumerate(zip(segments, outputs, window.exits)):
                segment.add(output, exit_logits(task, window, exit), vector.uncertainty)
        for speed, expected in case.outcomes.items():
            outcome_agreement.append(outcome_agrees(runner, case, speed, expected, conformance))
        on_step("ExecuTorch against the model", done, len(conformance.cases))
    floor = snr_floor_db(manifest)
    checks = [token_check(token_agreement, BACKEND)]
    for index, segment in enumerate(segments):
        name, snr_db = f"segment_{index}", segment.snr_db(task.signal_level)
        checks.append(Check.at_least(name, BACKEND, "logits_snr_db", snr_db, floor))
        checks.append(Check.at_least(name, BACKEND, "within_tolerance", share(segment.within_tolerance), 1.0))
    checks.append(Check.at_least("loop", BACKEND, "outcome_agreement", share(outcome_agreement), 1.0))
    return checks


def check_tokens(bundle_path: str | Path, conformance: Conformance, backend: Backend) -> Check:
    """Compares the tokenizer with the vectors' ids, for a bundle whose programs ExecuTorch does not run on its own.

    Args:
        backend: of the programs that the tokenizer serves.

    Raises:
        UserError: the vocabulary does not fit the manifest, or parts of the manifest do not fit each other.
    """
    bundle = Bundle.open(bundle_path, check_files=False, check_programs=False)
    cases = conformance.cases
    return token_check(
        [encode_case(bundle, case) == [window.input_ids for window in case.windows] for case in cases], backend
    )


def token_check(agreement: Sequence[bool], backend: Backend) -> Check:
    """Returns the check of the tokenizer; `agreement` says for each case whether its ids are the vectors'."""
    return Check.at_least("tokenizer", backend, "token_agreement", share(agreement), 1.0)


class SegmentComparison:
    """Collects one segment's outputs and the vectors' over all windows."""

    def __init__(self, conformance: Conformance):
        self.conformance = conformance
        self.expected: list[np.ndarray] = []
        self.actual: list[np.ndarray] = []
        self.within_tolerance: list[bool] = []

    def add(self, output: ExitOutput, logits: Logits, uncertainty: float) -> None:
        """Adds one window; `logits` and `uncertainty` are the vectors'."""
        expected = np.concatenate(logits).astype(np.float64)
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


def example_of(bundle: Bundle, case: Case) -> Example:
    """Returns the example that a case was made from."""
    request = Request(case.text, case.text_pair, case.question, case.passage)
    return get_task(bundle.manifest.task).example_from_request(request)


def encode_case(bundle: Bundle, case: Case) -> list[list[int]]:
    """Returns the ids that the bundle's tokenizer gives for a case, a list for each window."""
    options = bundle.manifest.answer_context.options
    inputs = get_task(bundle.manifest.task).encode(example_of(bundle, case), bundle.tokenizer, options)
    return [model_input.ids.tolist() for model_input in inputs]


def outcome_agrees(runner: Runner, case: Case, speed: str, expected: Outcome, conformance: Conformance) -> bool:
    """Returns whether the programs give the expected outcome, or one that the tolerances cannot tell from it.

    Another exit is right if the vectors' uncertainty there is closer to the threshold than its tolerance. Another
    answer is right if it scores as well as the vectors' best, within the tolerance of logits. With patience the exit
    follows from the answers: it is right if all answers up to it are, each within the tolerance. With agreement the
    uncertainties up to it must be right, too.
    """
    manifest, context, task = runner.manifest, runner.manifest.answer_context, runner.task
    example = example_of(runner.bundle, case)
    actual = runner.predict(example, speed)
    fields = [name for name, value in expected if name != "exit" and value is not None]
    if actual.exit == expected.exit and all(getattr(actual, name) == getattr(expected, name) for name in fields):
        return True
    inputs = task.encode(example, runner.bundle.tokenizer, context.options)
    segments = range(manifest.segments)
    vector_logits = [[exit_logits(task, window, exit) for window in case.windows] for exit in segments]
    vector_uncertainty = [[window.exits[exit].uncertainty for window in case.windows] for exit in segments]
    vectors = ExitAnswers.read(task, example, inputs, vector_logits, vector_uncertainty, context)
    compared: list[tuple[int, Any]]  # exits, with their answers from an outcome or a task's result
    if manifest.uncertainty in ANSWER_MEASURES:
        outputs = list(
            runner.segments(
                [model_input.ids for model_input in inputs], [model_input.answer_mask for model_input in inputs]
            )
        )
        logits = [[output.logits for output in windows] for windows in outputs]
        uncertainty = [[output.uncertainty for output in windows] for windows in outputs]
        programs = ExitAnswers.read(task, example, inputs, logits, uncertainty, context)
        if not (
            programs.leaves_at(actual.exit, manifest, speed)
            and vectors.leaves_at(expected.exit, manifest, speed)
            and all(getattr(expected, name) == getattr(vectors.outcomes[expected.exit], name) for name in fields)
            and uncertainties_agree(programs.uncertainty[: actual.exit + 1], vectors.uncertainty, manifest, conformance)
        ):
            return False
        compared = [*enumerate(programs.outcomes[: actual.exit]), (actual.exit, actual)]
    else:
        if not exits_agree(vectors.uncertainty, actual.exit, expected.exit, manifest, speed, conformance):
            return False
        compared = [(actual.exit, actual), (expected.exit, expected)]
    return all(
        task.is_as_good(example, inputs, vector_logits[exit], answer, context, conformance.tolerance)
        for exit, answer in compared
    )


@dataclass(frozen=True)
class ExitAnswers:
    """The answer of every exit to one example.

    Attributes:
        outcomes: the answers as outcomes.
        answers: the same in the form that patience compares.
        uncertainty: the program's, for the window that counts.
    """

    outcomes: list[Outcome]
    answers: list[Hashable]
    uncertainty: list[float]

    @classmethod
    def read(
        cls,
        task: AnyTask,
        example: Example,
        inputs: Sequence[ModelInput],
        logits: Sequence[Sequence[Logits]],
        uncertainty: Sequence[Sequence[float]],
        context: AnswerContext,
    ) -> ExitAnswers:
        """Decodes the answers; `logits` and `uncertainty` are [exits][windows]."""
        exits = cls([], [], [])
        for exit, (window_logits, window_uncertainty) in enumerate(zip(logits, uncertainty)):
            decoded = task.decode(example, inputs, window_logits, context)
            exits.outcomes.append(Outcome(exit=exit, **task.answer_fields(decoded, context)))
            exits.answers.append(task.answer(decoded, context))
            exits.uncertainty.append(window_uncertainty[task.decisive_input(inputs, window_logits, context)])
        return exits

    def leaves_at(self, exit: int, manifest: Manifest, speed: str) -> bool:
        """Returns whether the exit rule leaves at this exit."""
        uncertainty = runner_uncertainties(manifest.uncertainty, self.answers, self.uncertainty)
        return exit_taken(uncertainty, speed_thresholds(manifest, speed)) == exit


def uncertainties_agree(
    programs: Sequence[float], vectors: Sequence[float], manifest: Manifest, conformance: Conformance
) -> bool:
    """Returns whether the programs' uncertainties up to an exit are the vectors'. With patience they do not count."""
    differences = (abs(program - vector) for program, vector in zip(programs, vectors))
    return manifest.uncertainty == "patience" or max(differences) <= conformance.uncertainty_tolerance


def exits_agree(
    uncertainty: Sequence[float], exit: int, other: int, manifest: Manifest, speed: str, conformance: Conformance
) -> bool:
    """Returns whether two exits are equal, or the vectors' uncertainty leaves it open which of them is right.

    It does if, at the earlier exit, it is closer to the threshold than the tolerance.
    """
    if exit == other:
        return True
    earlier = min(exit, other)
    return abs(uncertainty[earlier] - speed_thresholds(manifest, speed)[earlier]) <= conformance.uncertainty_tolerance
