"""Makes the conformance vectors of a bundle: what the quantized model in PyTorch says to some examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.bundle.conformance import Case, Conformance, ExitVector, Outcome, WindowVector
from pipeline.bundle.exit_rule import (
    FULL_DEPTH,
    change_uncertainty,
    compared_uncertainty,
    exit_taken,
)
from pipeline.data.examples import Example
from pipeline.data.inputs import program_inputs
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.segments import Programs
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import AnswerContext, AnyTask, get_task

FULL = "full"  # the name in `outcomes` for all segments, whatever the uncertainty
FLOAT_TOLERANCE = 1e-3  # of the largest logit, and of an uncertainty: sums of float32 in another order
DIGITS = 6  # significant; float32 has seven


def make_vectors(
    programs: Programs,
    unquantized: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    context: AnswerContext,
    thresholds: Mapping[str, Sequence[float]],
    on_step: OnStep = silent,
) -> Conformance:
    """Runs every example through every exit, and says what each speed answers.

    Outcomes follow from the numbers as they are written, so that a reader can work them out from the file alone. Examples without
    text are passed over: no runtime takes them.

    Args:
        programs: the quantized model in PyTorch.
        unquantized: the same before quantization, for the tolerances.
        examples: about 16, short and long, for question answering with a passage that is longer than a window.
        context: what reading an answer takes, see `Manifest.answer_context`.
        thresholds: of each named speed, one per exit.
        on_step: told of each example.
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
    references = [run_window(unquantized, *inputs_of(each)) for each in windows]
    tolerance, uncertainty_tolerance = tolerances(windows, references)
    return Conformance(
        task=programs.task, tolerance=tolerance, uncertainty_tolerance=uncertainty_tolerance, cases=cases
    )


def tolerances(windows: Sequence[WindowVector], unquantized: Sequence[WindowVector]) -> list[float]:
    """How far a faithful runtime may be from the vectors: [in a logit, in an uncertainty].

    With activations quantized at run time, two runtimes that differ in the last bit of a sum round some values to neighbouring int8
    steps; over the layers the difference grows to the size of the quantization error, and no further (measured: half of it).
    So twice that error is allowed, as these examples show it, and in any case what float arithmetic needs.

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
    return rounded([tolerance, max(2 * uncertainty_error, FLOAT_TOLERANCE)])


def inputs_of(window: WindowVector) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids and the answer mask of a vector."""
    mask = None if window.answer_mask is None else np.array(window.answer_mask, dtype=bool)
    return np.array(window.input_ids, dtype=np.int64), mask


def run_window(programs: Programs, ids: np.ndarray, answer_mask: np.ndarray | None = None) -> WindowVector:
    """One input through every exit. ids: [S]; answer_mask: bool, [S]."""
    inputs = program_inputs(ids, answer_mask)
    bias = None if inputs.answer_bias is None else torch.from_numpy(inputs.answer_bias)
    outputs = programs(torch.from_numpy(inputs.input_ids), torch.from_numpy(inputs.attention_bias), bias)
    task = get_task(programs.task)
    numbers = [
        {name: rounded(values.flatten().tolist()) for name, values in zip(task.exit_outputs, answers)}
        for _, *answers in outputs
    ]
    if not task.measures_uncertainty:
        shares = [each["logits"][0] for each in numbers]
        unsure = [change_uncertainty(shares[: exit + 1]) for exit in range(len(shares))]
    else:
        unsure = [float(uncertainty) for *_, uncertainty in outputs]
    exits = [ExitVector(outputs=each, uncertainty=uncertainty) for each, uncertainty in zip(numbers, rounded(unsure))]
    mask = None if answer_mask is None else [int(allowed) for allowed in answer_mask]
    return WindowVector(input_ids=[int(each) for each in ids], answer_mask=mask, exits=exits)


def make_case(
    programs: Programs,
    example: Example,
    tokenizer: WordPieceTokenizer,
    context: AnswerContext,
    speeds: Mapping[str, Sequence[float]],
) -> Case:
    """One example through every exit, with all its inputs, and its answer at every speed."""
    task = get_task(programs.task)
    inputs = task.encode(example, tokenizer, context.options)
    windows = [run_window(programs, model_input.ids, model_input.answer_mask) for model_input in inputs]
    fields, answers, by_program = [], [], []
    for exit in range(len(programs.segments)):
        logits = [exit_logits(task, window, exit) for window in windows]
        decoded = task.decode(example, inputs, logits, context)
        fields.append(task.answer_fields(decoded, context))
        answers.append(task.answer(decoded, context))
        by_program.append(windows[task.decisive_input(inputs, logits, context)].exits[exit].uncertainty)
    uncertainty = [
        compared_uncertainty(programs.uncertainty, value, answers[: exit + 1]) for exit, value in enumerate(by_program)
    ]
    outcomes = {}
    for name, thresholds in speeds.items():
        exit = exit_taken(uncertainty, thresholds)
        outcomes[name] = Outcome(exit=exit, **rounded_fields(fields[exit]))
    return Case(**task.request_fields(example), windows=windows, outcomes=outcomes)


def exit_logits(task: AnyTask, window: WindowVector, exit: int) -> tuple[np.ndarray, ...]:
    """What a vector says that one exit gave, as arrays in the order of the task's `exit_outputs`."""
    return tuple(np.array(window.exits[exit].outputs[name]) for name in task.exit_outputs)


def rounded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's fields with its numbers rounded as the vectors' are."""
    return {name: rounded([value])[0] if isinstance(value, float) else value for name, value in fields.items()}


def rounded(values: Sequence[float]) -> list[float]:
    """To `DIGITS` significant digits: what is more is another machine's rounding, and triples the file."""
    return [float(f"{value:.{DIGITS}g}") for value in values]
