"""The reference runner of a bundle: tokenizer, segment loop, decoder. What a phone computes, step by step."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from torch import Tensor

from pipeline.bundle.exit_rule import COUNTED, change_uncertainty, compared_uncertainty, leaves
from pipeline.bundle.manifest import Program
from pipeline.bundle.opening import BACKEND, Bundle, default_speed, speed_thresholds
from pipeline.data.examples import Example
from pipeline.data.inputs import program_inputs
from pipeline.runtime.programs import MethodFile, as_tensor
from pipeline.support.errors import UserError
from pipeline.tasks import Walk, get_task
from pipeline.tasks.classification import ClassificationResult
from pipeline.tasks.qa import AnswerResult
from pipeline.tasks.regression import RegressionResult

# The name of a calibrated speed, an uncertainty threshold, or None for the bundle's default.
Speed = Union[str, float, None]


@dataclass(frozen=True)
class ExitOutput:
    """What one segment gave for one input of S tokens.

    Args:
        logits: float32 arrays in the order of the task's `exit_outputs`: ([labels],), or for questions (start [S], end [S]).
        uncertainty: in [0, 1], the program's, or a regression's change from the exit before; with patience the loop goes by another number,
            see `pipeline.bundle.manifest.ExitOptions`.
    """

    logits: tuple[np.ndarray, ...]
    uncertainty: float


class Runner:
    """Runs a bundle's ExecuTorch programs, one segment at a time, until an exit is sure enough.

    A method is loaded on its first use, which then counts into that input's latency; `prewarm` loads all of them.

    Args:
        bundle: what to run.
        threads: see `MethodFile`.

    Raises:
        UserError: a program file cannot be loaded.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.bundle, self.manifest = bundle, bundle.manifest
        self._files: dict[str, MethodFile] = {}
        self._embed = self.manifest.program("embed", BACKEND)
        self._segments = [self.manifest.program(f"segment_{k}", BACKEND) for k in range(self.manifest.segments)]
        for program in (self._embed, *self._segments):
            if program.file not in self._files:
                self._files[program.file] = MethodFile(bundle.path / program.file, threads)
        self._ids_dtype = next(tensor.dtype for tensor in self._embed.inputs if tensor.name == "input_ids")
        self.threads = self._files[self._embed.file].threads
        self._measure = self.manifest.uncertainty
        self.task = get_task(self.manifest.task)
        self._context = self.manifest.answer_context

    def prewarm(self) -> None:
        """Loads every method, so that no input pays for it."""
        for program in (self._embed, *self._segments):
            self._load(program)

    @property
    def loaded(self) -> frozenset[str]:
        """The methods that are loaded."""
        return frozenset().union(*(file.loaded for file in self._files.values()))

    def classify(self, text: str, text_pair: str | None = None, speed: Speed = None) -> ClassificationResult:
        """Classifies a text or a pair of texts; see `predict`."""
        return self._predict_as("classification", speed, text=text, text_pair=text_pair)

    def estimate(self, text: str, text_pair: str | None = None, speed: Speed = None) -> RegressionResult:
        """Predicts a number for a text or a pair of texts; see `predict`."""
        return self._predict_as("regression", speed, text=text, text_pair=text_pair)

    def answer(self, question: str, passage: str, speed: Speed = None) -> AnswerResult:
        """Answers a question from a passage of any length; see `predict`."""
        return self._predict_as("qa", speed, question=question, passage=passage)

    def predict(self, example: Example, speed: Speed = None) -> Any:
        """Answers one example of the bundle's task.

        A passage is cut into windows that overlap. All of them run one segment, then the example's uncertainty decides whether all of them
        run another: their scores are then of one exit and may be compared.

        Args:
            speed: see `speed_thresholds`; `default_speed` when absent.

        Returns:
            the task's result, for example `ClassificationResult`.

        Raises:
            UserError: the speed is unknown, or the example holds no text.
        """
        task, context, tokenizer = self.task, self._context, self.bundle.tokenizer
        task.check(example)
        thresholds = self._thresholds(speed)
        start = time.perf_counter()
        inputs = task.encode(example, tokenizer, context.options)
        uncertainty: list[float] = []
        answers: list[Hashable] = []  # for the measures that compare an exit's answer with those before it
        decoded = None
        for exit, outputs in enumerate(self.segments([i.ids for i in inputs], [i.answer_mask for i in inputs])):
            logits = [output.logits for output in outputs]
            if self._measure in COUNTED:
                decoded = task.decode(example, inputs, logits, context)
                answers.append(task.answer(decoded, context))
            by_program = outputs[task.decisive_input(inputs, logits, context)].uncertainty
            uncertainty.append(compared_uncertainty(self._measure, by_program, answers))
            if leaves(uncertainty[-1], thresholds[exit], exit, self.manifest.segments):
                break
        if decoded is None:
            decoded = task.decode(example, inputs, logits, context)
        walk = Walk(tuple(uncertainty), (time.perf_counter() - start) * 1e3)
        return task.result(example, inputs, decoded, logits, walk, tokenizer, context)

    def _predict_as(self, name: str, speed: Speed, **request: str | None) -> Any:
        """`predict`, for a bundle of that task. UserError for one of another."""
        if self.manifest.task != name:
            raise UserError(f"this bundle {self.task.verb}; give it {self.task.needs}", file=self.bundle.path)
        return self.predict(self.task.example_from_request(**request), speed)

    def segments(
        self, inputs: Sequence[np.ndarray], answer_masks: Sequence[np.ndarray | None] | None = None
    ) -> Iterator[list[ExitOutput]]:
        """Runs inputs side by side, one segment each time the iterator is asked: whoever stops asking has left at an exit.

        Args:
            inputs: ids, [S] each, S may differ.
            answer_masks: bool, [S] each, or None for tasks without an answer mask.

        Yields:
            after each segment the exits' outputs, one per input.
        """
        known = [
            self._known_inputs(ids, None if answer_masks is None else answer_masks[at]) for at, ids in enumerate(inputs)
        ]
        for tensors in known:
            tensors["hidden"] = self._run(self._embed, tensors)["hidden"]
        names = self.task.exit_outputs
        shares: list[list[float]] = [[] for _ in known]  # what a regression's exits so far have predicted
        for program in self._segments:
            exits = []
            for at, tensors in enumerate(known):
                outputs = self._run(program, tensors)
                tensors["hidden"] = outputs.get("hidden")
                logits = tuple(outputs[name].numpy().reshape(-1) for name in names)
                if self._measure == "change":
                    shares[at].append(float(logits[0][0]))
                    exits.append(ExitOutput(logits, change_uncertainty(shares[at])))
                else:
                    exits.append(ExitOutput(logits, float(outputs["uncertainty"].item())))
            yield exits

    def run_all(self, ids: np.ndarray, answer_mask: np.ndarray | None = None) -> list[ExitOutput]:
        """Every exit of one input, to full depth. ids: [S]; answer_mask: bool [S], for QA."""
        masks = None if answer_mask is None else [answer_mask]
        return [output for (output,) in self.segments([np.asarray(ids)], masks)]

    def _known_inputs(self, ids: np.ndarray, answer_mask: np.ndarray | None) -> dict[str, Tensor]:
        """Every input that a program may ask for by name, but `hidden`, which the program before it gives."""
        arrays = program_inputs(ids, answer_mask)
        tensors = {
            "input_ids": as_tensor(arrays.input_ids, self._ids_dtype),
            "attention_bias": as_tensor(arrays.attention_bias, "float32"),
        }
        if arrays.answer_bias is not None:
            tensors["answer_bias"] = as_tensor(arrays.answer_bias, "float32")
        return tensors

    def _load(self, program: Program) -> MethodFile:
        """The program's file, with its method loaded."""
        file = self._files[program.file]
        file.load(program.method, len(program.inputs), len(program.outputs))
        return file

    def _run(self, program: Program, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._load(program).run(program.method, [tensors[tensor.name] for tensor in program.inputs])
        return {tensor.name: output for tensor, output in zip(program.outputs, outputs)}

    def _thresholds(self, speed: Speed) -> list[float]:
        return speed_thresholds(self.manifest, default_speed(self.manifest) if speed is None else speed)
