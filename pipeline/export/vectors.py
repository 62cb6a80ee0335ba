"""Makes a bundle's conformance vectors: outputs and answers of the quantized PyTorch model for some examples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pipeline.bundle.conformance import Case, Conformance, ExitVector, Outcome, WindowVector
from pipeline.bundle.exit_rule import FULL_DEPTH, change_uncertainty, compared_uncertainty, exit_taken
from pipeline.data.examples import Example
from pipeline.data.inputs import program_inputs
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.segments import Programs
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import AnswerContext, AnyTask, get_task

FULL = "full"  # the name in `outcomes` for running all segments, whatever the uncertainty
FLOAT_TOLERANCE = 1e-3  # share of the largest logit, and of 1 for an uncertainty: float32 sums in another order
SIGNIFICANT_DIGITS = 6  # float32 has seven


def make_vectors(
    programs: Programs,
    unquantized: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    context: AnswerContext,
    thresholds: Mapping[str, Sequence[float]],
    on_step: OnStep = silent,
) -> Conformance:
    """Runs every example through every exit, and decides what each speed answers.

    Outcomes follow from the numbers as they are written, so that a reader can derive them from the file alone. Examples
    without text are left out, since no runtime accepts them.

    Args:
        programs: the quantized model in PyTorch.
        unquantized: the model before quantization, for the tolerances.
        examples: about 16, short and long; for question answering one passage should be longer than a window.
        context: what it takes to read an answer, see `Manifest.answer_context`.
        thresholds: by speed, one for each exit.
        on_step: called for each example.
    """
    task = get_task(programs.task)
    speeds = {**thresholds, FULL: [FULL_DEPTH] * len(programs.segments)}
    cases = []
    for done, example in enumerate(examples):
        on_step("conformance vectors", done, len(examples))
        if task.has_text(example, tokenizer):
            cases.append(make_case(programs, example, tokenizer, context, speeds))
    on_step("conformance vectors", len(examples), len(examples))
    windows = [window for case in cases for window in case.windows]
    references = [
        run_window(unquantized, np.array(window.input_ids, dtype=np.int64), answer_mask_of(window))
        for window in windows
    ]
    tolerance, uncertainty_tolerance = tolerances(windows, references)
    return Conformance(
        task=programs.task, tolerance=tolerance, uncertainty_tolerance=uncertainty_tolerance, cases=cases
    )


def tolerances(windows: Sequence[WindowVector], unquantized: Sequence[WindowVector]) -> tuple[float, float]:
    """Returns how far a faithful runtime may be from the vectors, in a logit and in an uncertainty.

    With activations quantized at run time, two runtimes that differ in the last bit of a sum round some values to
    neighbouring int8 steps. Over the layers the difference grows to the size of the quantization error, and no further
    (measured: half of it). So the tolerance is twice the error of these examples, and at least what float arithmetic
    needs.

    Args:
        windows, unquantized: the same inputs through the quantized model and through the one before quantization.
    """
    largest = error = uncertainty_error = 0.0
    for window, reference in zip(windows, unquantized, strict=True):
        for vector, expected in zip(window.exits, reference.exits, strict=True):
            for name, values in vector.outputs.items():
                difference = np.abs(np.subtract(values, expected.outputs[name]))
                largest, error = max(largest, float(np.abs(values).max())), max(error, float(difference.max()))
            uncertainty_error = max(uncertainty_error, abs(vector.uncertainty - expected.uncertainty))
    tolerance = max(2 * error, FLOAT_TOLERANCE * max(largest, 1.0))
    return rounded(tolerance), rounded(max(2 * uncertainty_error, FLOAT_TOLERANCE))


def answer_mask_of(window: WindowVector) -> np.ndarray | None:
    """Returns a vector's answer mask as a bool array, None if it has none."""
    return None if window.answer_mask is None else np.array(window.answer_mask, dtype=bool)


def run_window(programs: Programs, ids: np.ndarray, answer_mask: np.ndarray | None = None) -> WindowVector:
    """Runs one input through every exit. ids: [S]; answer_mask: bool, [S]."""
    inputs = program_inputs(ids, answer_mask)
    bias = None if inputs.answer_bias is None else torch.from_numpy(inputs.answer_bias)
    outputs = programs(torch.from_numpy(inputs.input_ids), torch.from_numpy(inputs.attention_bias), bias)
    task = get_task(programs.task)
    numbers = [
        {name: all_rounded(values.flatten().tolist()) for name, values in zip(task.exit_outputs, exit_outputs)}
        for _, *exit_outputs in outputs
    ]
    if task.measures_uncertainty:
        uncertainties = [float(uncertainty) for *_, uncertainty in outputs]
    else:
        predictions = [exit_numbers["logits"][0] for exit_numbers in numbers]
        uncertainties = [change_uncertainty(predictions[: exit + 1]) for exit in range(len(predictions))]
    exits = [
        ExitVector(outputs=exit_numbers, uncertainty=rounded(uncertainty))
        for exit_numbers, uncertainty in zip(numbers, uncertainties)
    ]
    mask = None if answer_mask is None else [int(allowed) for allowed in answer_mask]
    return WindowVector(input_ids=[int(token_id) for token_id in ids], answer_mask=mask, exits=exits)


def make_case(
    programs: Programs,
    example: Example,
    tokenizer: WordPieceTokenizer,
    context: AnswerContext,
    speeds: Mapping[str, Sequence[float]],
) -> Case:
    """Runs one example with all its inputs through every exit, and decides the answer at every speed."""
    task = get_task(programs.task)
    inputs = task.encode(example, tokenizer, context.options)
    windows = [run_window(programs, model_input.ids, model_input.answer_mask) for model_input in inputs]
    fields, answers, program_uncertainty = [], [], []
    for exit in range(len(programs.segments)):
        logits = [exit_logits(task, window, exit) for window in windows]
        decoded = task.decode(example, inputs, logits, context)
        fields.append(task.answer_fields(decoded, context))
        answers.append(task.answer(decoded, context))
        program_uncertainty.append(windows[task.decisive_input(inputs, logits, context)].exits[exit].uncertainty)
    uncertainty = runner_uncertainties(programs.uncertainty, answers, program_uncertainty)
    outcomes = {}
    for name, thresholds in speeds.items():
        exit = exit_taken(uncertainty, thresholds)
        outcomes[name] = Outcome(exit=exit, **rounded_fields(fields[exit]))
    return Case(**asdict(task.request_of(example)), windows=windows, outcomes=outcomes)


def runner_uncertainties(measure: str, answers: Sequence[Hashable], by_program: Sequence[float]) -> list[float]:
    """Returns what a runner compares with the thresholds at every exit.

    Args:
        measure: the measure of uncertainty that decides.
        answers, by_program: every exit's answer, and the uncertainty that its program computes.
    """
    return [
        compared_uncertainty(measure, uncertainty, answers[: exit + 1]) for exit, uncertainty in enumerate(by_program)
    ]


def exit_logits(task: AnyTask, window: WindowVector, exit: int) -> tuple[np.ndarray, ...]:
    """Returns the outputs of one exit in a vector as arrays, in the order of the task's `exit_outputs`."""
    return tuple(np.array(window.exits[exit].outputs[name]) for name in task.exit_outputs)


def rounded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an answer's fields with floats rounded as the vectors' numbers are."""
    return {name: rounded(value) if isinstance(value, float) else value for name, value in fields.items()}


def rounded(value: float) -> float:
    """Rounds to `SIGNIFICANT_DIGITS`. Further digits would be one machine's rounding, and triple the file."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def all_rounded(values: Sequence[float]) -> list[float]:
    """Rounds every number."""
    return [rounded(value) for value in values]
