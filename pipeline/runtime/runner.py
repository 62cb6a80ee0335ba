"""The reference runner of a bundle: tokenizer, segment loop and decoder, as a phone runs them."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from torch import Tensor

from pipeline.bundle.exit_rule import ANSWER_MEASURES, change_uncertainty, compared_uncertainty, leaves
from pipeline.bundle.manifest import MANIFEST_FILE, Program
from pipeline.bundle.opening import BACKEND, Bundle, default_speed, speed_thresholds
from pipeline.bundle.requirements import require_executorch
from pipeline.data.examples import Example
from pipeline.data.inputs import program_inputs
from pipeline.runtime.programs import MethodFile, as_tensor, installed_executorch
from pipeline.support.errors import UserError
from pipeline.tasks import Request, Walk, get_task
from pipeline.tasks.classification import ClassificationResult
from pipeline.tasks.qa import AnswerResult
from pipeline.tasks.regression import RegressionResult

# The name of a calibrated speed, an uncertainty threshold, or None for the bundle's default.
Speed = Union[str, float, None]


@dataclass(frozen=True)
class ExitOutput:
    """The outputs of one segment for one input of S tokens.

    Args:
        logits: float32 arrays in the order of the task's `exit_outputs`: ([labels],), or (start [S], end [S]) for
            question answering.
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
        self.task = get_task(self.manifest.task)
        self._context = self.manifest.answer_context

    def prewarm(self) -> None:
        """Loads every method, so that no input's latency includes loading."""
        for program in (self._embed, *self._segments):
            self._load(program)

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the methods that are loaded."""
        return frozenset(name for file in self._files.values() for name in file.loaded)

    def classify(self, text: str, text_pair: str | None = None, speed: Speed = None) -> ClassificationResult:
        """Classifies a text or a pair of texts; see `predict`."""
        self._require("classification")
        return self.predict(self.task.example_from_request(Request(text, text_pair)), speed)

    def estimate(self, text: str, text_pair: str | None = None, speed: Speed = None) -> RegressionResult:
        """Predicts a number for a text or a pair of texts; see `predict`."""
        self._require("regression")
        return self.predict(self.task.example_from_request(Request(text, text_pair)), speed)

    def answer(self, question: str, passage: str, speed: Speed = None) -> AnswerResult:
        """Answers a question from a passage of any length; see `predict`."""
        self._require("qa")
        return self.predict(self.task.example_from_request(Request(question=question, passage=passage)), speed)

    def predict(self, example: Example, speed: Speed = None) -> Any:
        """Answers one example of the bundle's task.

        A passage is cut into overlapping windows. All of them run one segment, then the example's uncertainty decides
        whether all of them run another. So their scores always come from the same exit and can be compared.

        Args:
            example: of the bundle's task.
            speed: see `speed_thresholds`; without it, `default_speed`.

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
            if self._measure in ANSWER_MEASURES:
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

    def _require(self, task: str) -> None:
        """UserError unless the bundle is for that task."""
        if self.manifest.task != task:
            raise UserError(f"this bundle {self.task.verb}; give it {self.task.needs}", file=self.bundle.path)

    def segments(
        self, inputs: Sequence[np.ndarray], answer_masks: Sequence[np.ndarray | None] | None = None
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
        names = self.task.exit_outputs
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

    def _thresholds(self, speed: Speed) -> list[float]:
        return speed_thresholds(self.manifest, default_speed(self.manifest) if speed is None else speed)
