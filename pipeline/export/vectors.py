"""Makes the conformance vectors of a bundle: what the quantized model in PyTorch says to some examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.bundle.conformance import Case, Conformance, ExitVector, Outcome, WindowVector
from pipeline.bundle.exit_rule import (
    FULL_DEPTH,
    change_uncertainty,
    compared_uncertainty,
    exit_taken,
    question_uncertainty,
)
from pipeline.bundle.manifest import EXIT_OUTPUTS, QAOptions
from pipeline.data.examples import Example, QAExample
from pipeline.data.features import encode_text
from pipeline.data.inputs import program_inputs
from pipeline.data.labels import LabelRange
from pipeline.data.spans import best_span, decode_answer
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import QAWindow, make_windows
from pipeline.model.segments import Programs
from pipeline.support.progress import OnStep, silent

FULL = "full"  # the name in `outcomes` for all segments, whatever the uncertainty
FLOAT_TOLERANCE = 1e-3  # of the largest logit, and of an uncertainty: sums of float32 in another order
DIGITS = 6  # significant; float32 has seven


def make_vectors(
    programs: Programs,
    unquantized: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    labels: Sequence[str],
    qa: QAOptions | None,
    label_range: LabelRange | None = None,
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
        max_length: the longest input in tokens; not read for question answering.
        labels: what an app shows, in the order of the logits; classification only.
        qa: how a passage is cut and an answer chosen; question answering only.
        label_range: regression only.
        thresholds: of each named speed, one per exit.
        on_step: told of each example.
    """
    speeds = {**thresholds, FULL: [FULL_DEPTH] * len(programs.segments)}
    cases = []
    for done, example in enumerate(examples):
        on_step("conformance vectors", done, len(examples))
        if isinstance(example, QAExample):
            if example.question.strip() and len(tokenizer.encode(example.passage)):
                cases.append(question_case(programs, example, tokenizer, qa, speeds))
        elif all(text is None or text.strip() for text in (example.text, example.text_pair)):
            ids = encode_text(tokenizer, example.text, example.text_pair, max_length).ids
            window = run_window(programs, ids)
            if programs.task == "regression":
                outcomes = {name: value_outcome(window, each, label_range) for name, each in speeds.items()}
            else:
                outcomes = {
                    name: label_outcome(window, each, labels, programs.uncertainty) for name, each in speeds.items()
                }
            cases.append(Case(text=example.text, text_pair=example.text_pair, windows=[window], outcomes=outcomes))
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
    names = EXIT_OUTPUTS[programs.task]
    numbers = [
        {name: rounded(values.flatten().tolist()) for name, values in zip(names, answers)} for _, *answers in outputs
    ]
    if programs.task == "regression":
        shares = [each["logits"][0] for each in numbers]
        unsure = [change_uncertainty(shares[: exit + 1]) for exit in range(len(shares))]
    else:
        unsure = [float(uncertainty) for *_, uncertainty in outputs]
    exits = [ExitVector(outputs=each, uncertainty=uncertainty) for each, uncertainty in zip(numbers, rounded(unsure))]
    mask = None if answer_mask is None else [int(allowed) for allowed in answer_mask]
    return WindowVector(input_ids=[int(each) for each in ids], answer_mask=mask, exits=exits)


def label_outcome(window: WindowVector, thresholds: Sequence[float], labels: Sequence[str], measure: str) -> Outcome:
    """What a classifier says at these thresholds for that measure of uncertainty."""
    answers = [labels[int(np.argmax(vector.outputs["logits"]))] for vector in window.exits]
    exit = exit_taken(uncertainties(measure, answers, [vector.uncertainty for vector in window.exits]), thresholds)
    return Outcome(exit=exit, label=answers[exit])


def value_outcome(window: WindowVector, thresholds: Sequence[float], label_range: LabelRange) -> Outcome:
    """What a regression predicts at these thresholds."""
    exit = exit_taken([vector.uncertainty for vector in window.exits], thresholds)
    return Outcome(exit=exit, value=rounded([label_range.value(window.exits[exit].outputs["logits"][0])])[0])


def uncertainties(measure: str, answers: Sequence[str], by_program: Sequence[float]) -> Sequence[float]:
    """What a runner compares with the thresholds, given every exit's answer and the programs' uncertainty there."""
    return [
        compared_uncertainty(measure, uncertainty, answers[: exit + 1]) for exit, uncertainty in enumerate(by_program)
    ]


def question_case(
    programs: Programs,
    example: QAExample,
    tokenizer: WordPieceTokenizer,
    qa: QAOptions,
    speeds: Mapping[str, Sequence[float]],
) -> Case:
    """One question through every exit, in all its windows."""
    windows = make_windows(
        tokenizer, example.question, example.passage, qa.window, qa.stride, qa.max_question, qa.allow_no_answer
    )
    vectors = [run_window(programs, window.ids, window.answer_mask) for window in windows]
    answers = [exit_answer(windows, vectors, example.passage, exit, qa) for exit in range(len(programs.segments))]
    unsure = uncertainties(
        programs.uncertainty, [outcome.answer for outcome, _ in answers], [uncertainty for _, uncertainty in answers]
    )
    outcomes = {name: answers[exit_taken(unsure, each)][0] for name, each in speeds.items()}
    return Case(question=example.question, passage=example.passage, windows=vectors, outcomes=outcomes)


def exit_answer(
    windows: Sequence[QAWindow], vectors: Sequence[WindowVector], passage: str, exit: int, qa: QAOptions
) -> tuple[Outcome, float]:
    """What is answered at an exit, where all windows are at the same depth, and the programs' uncertainty of the question there."""
    outputs = [vector.exits[exit].outputs for vector in vectors]
    logits = [(np.array(each["start_logits"]), np.array(each["end_logits"])) for each in outputs]
    best = [best_span(*pair, window.answer_mask, qa.max_answer).score for pair, window in zip(logits, windows)]
    answer = decode_answer(windows, logits, passage, qa.max_answer, qa.allow_no_answer, qa.null_threshold)
    outcome = Outcome(exit=exit, answer=answer.text, start=answer.start, end=answer.end)
    return outcome, question_uncertainty(best, [vector.exits[exit].uncertainty for vector in vectors])


def rounded(values: Sequence[float]) -> list[float]:
    """To `DIGITS` significant digits: what is more is another machine's rounding, and triples the file."""
    return [float(f"{value:.{DIGITS}g}") for value in values]
