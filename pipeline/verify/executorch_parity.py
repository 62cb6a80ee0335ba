"""ExecuTorch's programs against the model they came from, by the bundle's conformance vectors.

Both compute the same arithmetic in another order. With int8 activations the order shows: a sum that differs in its last bit can round
to the neighbouring int8 step, and from there on the two differ by what one step is worth. So the outputs are held against each other
as a whole (noise far below the signal), one by one (within the tolerance that the vectors were written with), and by what users see
(exit taken and answer).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.conformance import Case, Conformance, Outcome
from pipeline.bundle.exit_rule import ANSWER_MEASURES, compared_uncertainty, exit_taken
from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import BACKEND, Bundle, speed_thresholds
from pipeline.data.examples import Example
from pipeline.export.vectors import exit_logits
from pipeline.runtime.runner import ExitOutput, Runner
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import AnswerContext, AnyTask, get_task
from pipeline.tasks.types import Logits, ModelInput
from pipeline.verify.checks import Check, signal_to_noise_db
from pipeline.verify.floors import snr_floor_db


def check_executorch(
    bundle_path: str | Path, manifest: Manifest, conformance: Conformance, on_step: OnStep = silent
) -> list[Check]:
    """Runs all conformance cases through the bundle's ExecuTorch programs.

    Checks, all of which are better when higher:
        tokenizer, `token_agreement`: share of cases whose texts give the vectors' ids.
        segment_k, `logits_snr_db`: power of the vectors' logits (regression: of the labels) over that of the difference, over all cases.
        segment_k, `within_tolerance`: share of windows whose logits and uncertainty are each within the file's tolerances.
        loop, `outcome_agreement`: share of outcomes, over cases and speeds, with the same exit and answer. Where the vectors'
            uncertainty is closer to a threshold than the tolerance, or two answers closer to each other, either is right. With
            patience the exit follows from the answers alone: it is right where all answers up to it are, each up to the tolerance; with
            agreement the uncertainties up to it have to be, too.

    Args:
        bundle_path: the bundle's folder.
        manifest: the bundle's.
        conformance: the bundle's.
        on_step: told after each case.

    Raises:
        UserError: the bundle or a program of it cannot be loaded.
    """
    bundle = Bundle.open(bundle_path, check_files=False)
    runner = Runner(bundle)
    runner.prewarm()
    names = get_task(manifest.task).exit_outputs
    measured = [_Measured() for _ in range(manifest.segments)]
    token_agreement, outcome_agreement = [], []
    for done, case in enumerate(conformance.cases, start=1):
        token_agreement.append(_ids(bundle, case) == [window.input_ids for window in case.windows])
        for window in case.windows:
            mask = None if window.answer_mask is None else np.array(window.answer_mask, dtype=bool)
            outputs = runner.run_all(np.array(window.input_ids), mask)
            for one, got, vector in zip(measured, outputs, window.exits):
                one.add(got, [vector.outputs[name] for name in names], vector.uncertainty, conformance)
        for speed, expected in case.outcomes.items():
            outcome_agreement.append(outcome_agrees(runner, case, speed, expected, conformance))
        on_step("ExecuTorch against the model", done, len(conformance.cases))
    checks = [_check("tokenizer", "token_agreement", _share(token_agreement), 1.0)]
    for segment, one in enumerate(measured):
        name = f"segment_{segment}"
        floor = snr_floor_db(manifest)
        checks.append(_check(name, "logits_snr_db", one.snr_db(get_task(manifest.task).signal_level), floor))
        checks.append(_check(name, "within_tolerance", _share(one.within), 1.0))
    checks.append(_check("loop", "outcome_agreement", _share(outcome_agreement), 1.0))
    return checks


class _Measured:
    """What is gathered of one segment over all windows."""

    def __init__(self) -> None:
        self.expected: list[np.ndarray] = []
        self.got: list[np.ndarray] = []
        self.within: list[bool] = []

    def add(
        self, got: ExitOutput, logits: Sequence[Sequence[float]], uncertainty: float, conformance: Conformance
    ) -> None:
        self.expected.append(np.concatenate([np.asarray(part, dtype=np.float64) for part in logits]))
        self.got.append(np.concatenate(got.logits).astype(np.float64))
        # Not "none is greater", which NaN would pass.
        fits = bool(np.all(np.abs(self.got[-1] - self.expected[-1]) <= conformance.tolerance))
        self.within.append(fits and abs(got.uncertainty - uncertainty) <= conformance.uncertainty_tolerance)

    def snr_db(self, level: float | None) -> float:
        return signal_to_noise_db(np.concatenate([[], *self.expected]), np.concatenate([[], *self.got]), level)


def _check(program: str, metric: str, value: float, floor: float) -> Check:
    return Check(program=program, backend=BACKEND, metric=metric, value=value, floor=floor, passed=value >= floor)


def _share(agreements: Sequence[bool]) -> float:
    """0 for none: nothing that was compared is nothing that agrees."""
    return float(np.mean(agreements)) if len(agreements) else 0.0


def _example(bundle: Bundle, case: Case) -> Example:
    """The example that a case was made from."""
    return get_task(bundle.manifest.task).example_from_request(case.text, case.text_pair, case.question, case.passage)


def _ids(bundle: Bundle, case: Case) -> list[list[int]]:
    """The ids of the case's texts by the bundle's tokenizer, a list for each window."""
    options = bundle.manifest.answer_context.options
    inputs = get_task(bundle.manifest.task).encode(_example(bundle, case), bundle.tokenizer, options)
    return [model_input.ids.tolist() for model_input in inputs]


def outcome_agrees(runner: Runner, case: Case, speed: str, expected: Outcome, conformance: Conformance) -> bool:
    """Whether the bundle's programs give the expected outcome, or one that the tolerances cannot tell from it.

    The exit taken may differ where the vectors' uncertainty is within its tolerance of the threshold, the answer where it scores as well
    as the vectors' best within the tolerance of logits.
    """
    manifest, context, task = runner.manifest, runner.manifest.answer_context, runner.task
    example = _example(runner.bundle, case)
    actual = runner.predict(example, speed)
    fields = [name for name, value in expected if name != "exit" and value is not None]
    if actual.exit == expected.exit and all(getattr(actual, name) == getattr(expected, name) for name in fields):
        return True
    inputs = task.encode(example, runner.bundle.tokenizer, context.options)
    vectors = [[exit_logits(task, window, exit) for window in case.windows] for exit in range(manifest.segments)]
    stated = _Exits.read(
        task, example, inputs, vectors, [[e.uncertainty for e in w.exits] for w in case.windows], context
    )
    compared: list[tuple[int, Any]]
    if manifest.uncertainty in ANSWER_MEASURES:
        outputs = list(runner.segments([i.ids for i in inputs], [i.answer_mask for i in inputs]))
        logits = [[output.logits for output in exit] for exit in outputs]
        by_window = [[exit[index].uncertainty for exit in outputs] for index in range(len(inputs))]
        own = _Exits.read(task, example, inputs, logits, by_window, context)
        for outcome, exits in ((actual, own), (expected, stated)):
            if not _counted_took(outcome.exit, exits.keys, exits.uncertainty, manifest, speed):
                return False
        if any(getattr(expected, name) != getattr(stated.answers[expected.exit], name) for name in fields):
            return False
        if not _near(own.uncertainty[: actual.exit + 1], stated.uncertainty, manifest, conformance):
            return False
        compared = [*enumerate(own.answers[: actual.exit]), (actual.exit, actual)]
    else:
        if not _exit_open(stated.uncertainty, actual.exit, expected.exit, manifest, speed, conformance):
            return False
        compared = [(actual.exit, actual), (expected.exit, expected)]
    return all(
        task.is_as_good(example, inputs, vectors[exit], answer, context, conformance.tolerance)
        for exit, answer in compared
    )


@dataclass(frozen=True)
class _Exits:
    """What every exit says to one example.

    Attributes:
        answers: as outcomes.
        keys: the same in the form that patience compares.
        uncertainty: of the decisive window, as programs give it.
    """

    answers: list[Outcome]
    keys: list[Hashable]
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
    ) -> _Exits:
        """Args: logits: [exits][windows]; uncertainty: [windows][exits]."""
        exits = cls([], [], [])
        for exit, windows in enumerate(logits):
            decoded = task.decode(example, inputs, windows, context)
            exits.answers.append(Outcome(exit=exit, **task.answer_fields(decoded, context)))
            exits.keys.append(task.answer(decoded, context))
            exits.uncertainty.append(uncertainty[task.decisive_input(inputs, windows, context)][exit])
        return exits


def _counted_took(
    exit: int, answers: Sequence[Hashable], by_program: Sequence[float], manifest: Manifest, speed: str
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


def _exit_open(
    uncertainty: Sequence[float], one: int, other: int, manifest: Manifest, speed: str, conformance: Conformance
) -> bool:
    """Whether two exits are equal, or the vectors' uncertainty at the earlier is too close to the threshold to tell them apart."""
    if one == other:
        return True
    earlier = min(one, other)
    return abs(uncertainty[earlier] - speed_thresholds(manifest, speed)[earlier]) <= conformance.uncertainty_tolerance
