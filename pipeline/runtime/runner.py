"""The reference runner of a bundle: tokenizer, segment loop and decoder, as a phone runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.bundle.exit_rule import (
    ANSWER_MEASURES,
    change_uncertainty,
    compared_uncertainty,
    leaves,
    question_uncertainty,
)
from pipeline.bundle.manifest import EXIT_OUTPUTS, MANIFEST_FILE, Program
from pipeline.bundle.opening import BACKEND, Bundle, default_speed, speed_thresholds
from pipeline.bundle.requirements import require_executorch
from pipeline.data.features import encode_text
from pipeline.data.inputs import program_inputs
from pipeline.data.spans import DecodedAnswer, best_span, decode_answer
from pipeline.data.windows import QAWindow, make_windows
from pipeline.runtime.programs import MethodFile, as_tensor, installed_executorch
from pipeline.runtime.results import AnswerResult, Classification, Estimate
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class ExitOutput:
    """The outputs of one segment for one input of S tokens.

    Args:
        logits: float32 arrays in the order of `EXIT_OUTPUTS`: ([labels],), or (start [S], end [S]) for question
            answering.
        uncertainty: in [0, 1]: what the program returned, or the change since the exit before for a regression. By
            patience and agreement the loop compares another number (`compared_uncertainty`).
    """

    logits: tuple[np.ndarray, ...]
    uncertainty: float


class Runner:
    """Runs a bundle's ExecuTorch programs, one segment at a time, until an exit is certain enough.

    A method is loaded on its first use, which adds to the latency of that input. `prewarm` loads all methods.

    Args:
        bundle: the bundle to run.
        threads: see `MethodFile`.

    Raises:
        UserError: the installed ExecuTorch is older than the programs, or a program file cannot be loaded.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.bundle, self.manifest = bundle, bundle.manifest
        required = self.manifest.required_executorch(BACKEND)
        require_executorch(required, installed_executorch(), bundle.path / MANIFEST_FILE)
        self._files: dict[str, MethodFile] = {}
        self._embed = self.manifest.program("embed", BACKEND)
        self._segments = [self.manifest.program(f"segment_{k}", BACKEND) for k in range(self.manifest.segments)]
        for program in (self._embed, *self._segments):
            if program.file not in self._files:
                self._files[program.file] = MethodFile(bundle.path / program.file, threads)
        self._ids_dtype = next(tensor.dtype for tensor in self._embed.inputs if tensor.name == "input_ids")
        self.threads = self._files[self._embed.file].threads
        self._measure = self.manifest.uncertainty

    def prewarm(self) -> None:
        """Loads every method, so that no input's latency includes loading."""
        for program in (self._embed, *self._segments):
            self._load(program)

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the methods that are loaded."""
        return frozenset(name for file in self._files.values() for name in file.loaded)

    def classify(self, text: str, text_pair: str | None = None, speed: str | float | None = None) -> Classification:
        """Classifies a text or a pair of texts.

        Args:
            text: the text, or the first of the pair.
            text_pair: the second of the pair.
            speed: see `speed_thresholds`; without it, `default_speed`.

        Raises:
            UserError: a text is empty, the speed is unknown, or the bundle has another task.
        """
        self._require("classification")
        start, truncated, logits, uncertainty = self._run_text(text, text_pair, speed)
        best, probabilities = int(logits.argmax()), _softmax(logits)
        latency_ms = (time.perf_counter() - start) * 1e3
        return Classification(
            label=self.manifest.labels[best],
            label_value=self.manifest.label_values[best],
            label_index=best,
            score=float(probabilities[best]),
            exit=len(uncertainty) - 1,
            depth=len(uncertainty),
            uncertainty=uncertainty,
            latency_ms=latency_ms,
            logits=tuple(logits.tolist()),
            truncated=truncated(),
        )

    def estimate(self, text: str, text_pair: str | None = None, speed: str | float | None = None) -> Estimate:
        """Predicts the number of a text or a pair of texts.

        Args:
            text: the text, or the first of the pair.
            text_pair: the second of the pair.
            speed: see `speed_thresholds`; without it, `default_speed`.

        Raises:
            UserError: a text is empty, the speed is unknown, or the bundle has another task.
        """
        self._require("regression")
        start, truncated, logits, uncertainty = self._run_text(text, text_pair, speed)
        value = self.manifest.regression_range.value(float(logits[0]))
        latency_ms = (time.perf_counter() - start) * 1e3
        return Estimate(
            value=value,
            exit=len(uncertainty) - 1,
            depth=len(uncertainty),
            uncertainty=uncertainty,
            latency_ms=latency_ms,
            truncated=truncated(),
        )

    def _run_text(
        self, text: str, text_pair: str | None, speed: str | float | None
    ) -> tuple[float, Callable[[], bool], np.ndarray, tuple[float, ...]]:
        """Runs a text or a pair until an exit is certain enough.

        Returns:
            the time when the clock started; a function that tells whether the text was cut, to be called after the
            clock has stopped; the logits at the exit taken; the uncertainty at every exit up to it.
        """
        _require_texts(text, text_pair)
        thresholds = self._thresholds(speed)
        start = time.perf_counter()
        ids = encode_text(self.bundle.tokenizer, text, text_pair, self.manifest.max_length).ids
        uncertainty: list[float] = []
        answers: list[int] = []
        for exit, (output,) in enumerate(self.segments([ids])):
            answers.append(int(output.logits[0].argmax()))
            uncertainty.append(compared_uncertainty(self._measure, output.uncertainty, answers))
            if leaves(uncertainty[-1], thresholds[exit], exit, self.manifest.segments):
                break
        return start, lambda: self._truncated(len(ids), text, text_pair), output.logits[0], tuple(uncertainty)

    def answer(self, question: str, passage: str, speed: str | float | None = None) -> AnswerResult:
        """Answers a question from a passage of any length.

        The passage is cut into overlapping windows. All of them run one segment, then the question's uncertainty
        decides whether all of them run another. So their scores always come from the same exit and can be compared.

        Args:
            question: the question.
            passage: the text that may hold the answer.
            speed: see `speed_thresholds`; without it, `default_speed`.

        Raises:
            UserError: question or passage is empty, the speed is unknown, or the bundle has another task.
        """
        self._require("qa")
        _require_text("question", question)
        _require_text("passage", passage)
        thresholds = self._thresholds(speed)
        options = self.manifest.qa_options
        start = time.perf_counter()
        windows = make_windows(
            self.bundle.tokenizer,
            question,
            passage,
            options.window,
            options.stride,
            options.max_question,
            options.allow_no_answer,
        )
        uncertainty: list[float] = []
        answers: list[DecodedAnswer] = []  # one per exit where the measure needs them, else none
        for exit, outputs in enumerate(self.segments([w.ids for w in windows], [w.answer_mask for w in windows])):
            if self._measure in ANSWER_MEASURES:
                answers.append(self._decode(windows, outputs, passage))
            by_programs = self._question_uncertainty(windows, outputs)
            uncertainty.append(compared_uncertainty(self._measure, by_programs, [answer.text for answer in answers]))
            if leaves(uncertainty[-1], thresholds[exit], exit, self.manifest.segments):
                break
        decoded = answers[-1] if answers else self._decode(windows, outputs, passage)
        latency_ms = (time.perf_counter() - start) * 1e3
        return AnswerResult(
            answer=decoded.text,
            start=decoded.start,
            end=decoded.end,
            score=decoded.probability,
            exit=exit,
            depth=exit + 1,
            uncertainty=tuple(uncertainty),
            latency_ms=latency_ms,
            windows=len(windows),
        )

    def _question_uncertainty(self, windows: Sequence[QAWindow], outputs: Sequence[ExitOutput]) -> float:
        """Returns the programs' uncertainty of a question at one exit, from the outputs of its windows."""
        if len(windows) == 1:  # the decoder alone then looks for the best span
            return outputs[0].uncertainty
        max_answer = self.manifest.qa_options.max_answer
        best_scores = [
            best_span(output.logits[0], output.logits[1], window.answer_mask, max_answer).score
            for window, output in zip(windows, outputs)
        ]
        return question_uncertainty(best_scores, [output.uncertainty for output in outputs])

    def _decode(self, windows: Sequence[QAWindow], outputs: Sequence[ExitOutput], passage: str) -> DecodedAnswer:
        """Returns the answer at one exit."""
        options = self.manifest.qa_options
        logits = [(output.logits[0], output.logits[1]) for output in outputs]
        return decode_answer(
            windows, logits, passage, options.max_answer, options.allow_no_answer, options.null_threshold
        )

    def segments(
        self, inputs: Sequence[np.ndarray], answer_masks: Sequence[np.ndarray] | None = None
    ) -> Iterator[list[ExitOutput]]:
        """Runs inputs side by side, one more segment for every step of the iterator. Stop iterating to leave.

        Args:
            inputs: the ids of each input, [S]; S may differ.
            answer_masks: for question answering, which tokens may be an answer, bool, [S] each.

        Yields:
            the outputs of one exit, one entry per input.
        """
        masks = [None] * len(inputs) if answer_masks is None else answer_masks
        inputs_by_name = [self._known_inputs(ids, mask) for ids, mask in zip(inputs, masks)]
        for tensors in inputs_by_name:
            tensors["hidden"] = self._run_program(self._embed, tensors)["hidden"]
        names = EXIT_OUTPUTS[self.manifest.task]
        shares: list[list[float]] = [[] for _ in inputs]  # the predictions of a regression's exits so far
        for program in self._segments:
            exits = []
            for index, tensors in enumerate(inputs_by_name):
                outputs = self._run_program(program, tensors)
                if "hidden" in outputs:  # the last segment's program need not return it
                    tensors["hidden"] = outputs["hidden"]
                logits = tuple(outputs[name].numpy().reshape(-1) for name in names)
                if self._measure == "change":
                    shares[index].append(float(logits[0][0]))
                    exits.append(ExitOutput(logits, change_uncertainty(shares[index])))
                else:
                    exits.append(ExitOutput(logits, float(outputs["uncertainty"].item())))
            yield exits

    def run_all(self, ids: np.ndarray, answer_mask: np.ndarray | None = None) -> list[ExitOutput]:
        """Runs one input to full depth.

        Args:
            ids: [S].
            answer_mask: for question answering, bool, [S].

        Returns:
            the outputs of every exit.
        """
        masks = None if answer_mask is None else [answer_mask]
        return [output for (output,) in self.segments([np.asarray(ids)], masks)]

    def _known_inputs(self, ids: np.ndarray, answer_mask: np.ndarray | None) -> dict[str, Tensor]:
        """Returns every input that a program may ask for, by name, except `hidden`, which programs pass on."""
        arrays = program_inputs(ids, answer_mask)
        tensors = {
            "input_ids": as_tensor(arrays.input_ids, self._ids_dtype),
            "attention_bias": as_tensor(arrays.attention_bias, "float32"),
        }
        if arrays.answer_bias is not None:
            tensors["answer_bias"] = as_tensor(arrays.answer_bias, "float32")
        return tensors

    def _load(self, program: Program) -> MethodFile:
        """Returns the program's file, with its method loaded."""
        file = self._files[program.file]
        file.load(program.method, len(program.inputs), len(program.outputs))
        return file

    def _run_program(self, program: Program, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Runs a program and returns its outputs by name, those that this version does not know included."""
        outputs = self._load(program).run(program.method, [tensors[tensor.name] for tensor in program.inputs])
        return {tensor.name: output for tensor, output in zip(program.outputs, outputs)}

    def _require(self, task: str) -> None:
        if self.manifest.task != task:
            needed = "a question and a passage" if self.manifest.task == "qa" else "a text"
            does = {"classification": "classifies", "regression": "predicts a number", "qa": "answers questions"}[
                self.manifest.task
            ]
            raise UserError(f"this bundle {does}; give it {needed}", file=self.bundle.path)

    def _thresholds(self, speed: str | float | None) -> list[float]:
        return speed_thresholds(self.manifest, default_speed(self.manifest) if speed is None else speed)

    def _truncated(self, length: int, text: str, text_pair: str | None) -> bool:
        """Whether an input of `length` tokens was longer before it was cut."""
        if length < self.manifest.max_length:
            return False
        pieces = sum(len(self.bundle.tokenizer.encode(part)) for part in (text, text_pair) if part is not None)
        return pieces + (2 if text_pair is None else 3) > length


def _require_texts(text: str, text_pair: str | None) -> None:
    _require_text("text", text)
    if text_pair is not None:
        _require_text("text_pair", text_pair)


def _require_text(field: str, text: str) -> None:
    if not text.strip():
        raise UserError("is empty; give it some words", field=field)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
