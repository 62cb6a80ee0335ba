"""The reference runner of a bundle: tokenizer, segment loop and decoder, as a phone runs them."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from torch import Tensor

from pipeline.bundle.exit_rule import ANSWER_MEASURES, change_uncertainty, compared_uncertainty, leaves
from pipeline.bundle.manifest import MANIFEST_FILE, Program
from pipeline.bundle.opening import BACKEND, FULL_SPEED, Bundle, default_speed, speed_thresholds
from pipeline.bundle.requirements import require_executorch
from pipeline.data.examples import Example
from pipeline.data.inputs import program_inputs
from pipeline.runtime.programs import MethodFile, as_tensor, installed_executorch
from pipeline.support.errors import UserError
from pipeline.tasks import Request, Walk, get_task
from pipeline.tasks.results import AnswerResult, ClassificationResult, RegressionResult

# The name of a calibrated speed, an uncertainty threshold, or None for the bundle's default.
Speed = Union[str, float, None]
# A text, or a text and its pair.
Text = Union[str, tuple[str, str]]


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

    A method is loaded on its first use, which adds to the latency of that input. `prewarm` loads all methods. Threads
    may share a runner: it answers one input at a time.

    Args:
        bundle: the bundle to run; `pocketbert.load` opens one by its path.
        threads: see `MethodFile`.

    Raises:
        UserError: the installed ExecuTorch is older than the programs, or a program file cannot be loaded.

    Examples:
        >>> runner = pocketbert.load("runs/reviews")
        >>> runner
        <Runner of reviews: classification, 2 segments, speeds exact, balanced, fast, full>
        >>> runner.classify("A moving and clever film.").label
        'positive'
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
        self._one_at_a_time = threading.Lock()

    def __repr__(self) -> str:
        manifest = self.manifest
        segments = f"{manifest.segments} segment{'s' if manifest.segments > 1 else ''}"
        return f"<Runner of {manifest.name}: {manifest.task}, {segments}, speeds {', '.join(self.speeds)}>"

    @property
    def speeds(self) -> tuple[str, ...]:
        """The names of the speeds that this bundle has; "full" runs every segment."""
        return (*(name for name in self.manifest.speeds if name != FULL_SPEED), FULL_SPEED)

    @property
    def labels(self) -> tuple[str, ...]:
        """What an app shows for each class of a classifier, in the order of the logits; empty for other tasks."""
        return tuple(self.manifest.labels) if self.task.has_classes else ()

    def prewarm(self) -> None:
        """Loads every method, so that no input's latency includes loading."""
        for program in (self._embed, *self._segments):
            self._load(program)

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the methods that are loaded."""
        return frozenset(name for file in self._files.values() for name in file.loaded)

    def classify(
        self, text: str, text_pair: str | None = None, speed: Speed = None, top_k: int = 1
    ) -> ClassificationResult:
        """Classifies a text or a pair of texts.

        Args:
            text: the text.
            text_pair: the second text, for a bundle that was trained on pairs.
            speed: the name of a calibrated speed, "full", or an uncertainty threshold; see `speed_thresholds`.
            top_k: how many labels `candidates` should hold, the likeliest first.

        Raises:
            UserError: the bundle is for another task, the speed is unknown, a text is blank, or `top_k` is below 1.

        Examples:
            >>> runner = pocketbert.load("runs/reviews")
            >>> result = runner.classify("A dull and predictable film.", speed="fast", top_k=2)
            >>> result.label, result.depth
            ('negative', 1)
            >>> [candidate.label for candidate in result.candidates]
            ['negative', 'positive']
        """
        self._require("classification")
        return self._predict(Request(text, text_pair), speed, top_k)

    def classify_batch(self, texts: Iterable[Text], speed: Speed = None, top_k: int = 1) -> list[ClassificationResult]:
        """Classifies many texts, or (text, text_pair) tuples. Returns the results of `classify`, in order.

        The texts run one after another. A bundle's programs take one input at a time and use all cores for it, and
        texts of different lengths leave after different segments. So nothing would be saved by stacking them.

        Raises:
            UserError: see `classify`. No text runs if one is blank, and the message has its index.

        Examples:
            >>> runner = pocketbert.load("runs/reviews")
            >>> [result.label for result in runner.classify_batch(["A clever film.", "A dull film."])]
            ['positive', 'negative']
        """
        self._require("classification")
        return self._predict_all("texts", _text_requests(texts), speed, top_k)

    def estimate(self, text: str, text_pair: str | None = None, speed: Speed = None) -> RegressionResult:
        """Predicts a number for a text or a pair of texts. Arguments and errors are those of `classify`.

        Examples:
            >>> runner = pocketbert.load("runs/stars")
            >>> -3 < runner.estimate("A moving and clever film.").value < 7
            True
        """
        self._require("regression")
        return self._predict(Request(text, text_pair), speed)

    def estimate_batch(self, texts: Iterable[Text], speed: Speed = None) -> list[RegressionResult]:
        """Predicts a number for each text, or (text, text_pair) tuple; see `classify_batch`.

        Examples:
            >>> runner = pocketbert.load("runs/stars")
            >>> texts = ["A clever film.", "A dull film."]
            >>> [result.value for result in runner.estimate_batch(texts)] == [
            ...     runner.estimate(text).value for text in texts
            ... ]
            True
        """
        self._require("regression")
        return self._predict_all("texts", _text_requests(texts), speed)

    def answer(self, question: str, passage: str, speed: Speed = None, top_k: int = 1) -> AnswerResult:
        """Answers a question from a passage of any length.

        Args:
            question: the question.
            passage: the text that holds the answer. A long one is cut into overlapping windows.
            speed: see `classify`.
            top_k: how many distinct spans `candidates` should hold, the best first. "No answer" counts as one where
                the bundle may give it.

        Raises:
            UserError: the bundle is for another task, the speed is unknown, a text is blank, or `top_k` is below 1.

        Examples:
            >>> runner = pocketbert.load("runs/questions")
            >>> passage = "Ada Lovelace was born in London. She wrote about a machine."
            >>> result = runner.answer("Where was Ada Lovelace born?", passage, top_k=3)
            >>> result.answer == passage[result.start : result.end]
            True
            >>> len(result.candidates), result.candidates[0].answer == result.answer
            (3, True)
        """
        self._require("qa")
        return self._predict(Request(question=question, passage=passage), speed, top_k)

    def answer_batch(self, pairs: Iterable[tuple[str, str]], speed: Speed = None, top_k: int = 1) -> list[AnswerResult]:
        """Answers many (question, passage) tuples. Returns the results of `answer`, in order; see `classify_batch`.

        Examples:
            >>> passage = "Ada Lovelace was born in London."
            >>> pairs = [("Who was born?", passage), ("Where was she born?", passage)]
            >>> len(pocketbert.load("runs/questions").answer_batch(pairs))
            2
        """
        self._require("qa")
        requests = [Request(question=question, passage=passage) for question, passage in pairs]
        return self._predict_all("pairs", requests, speed, top_k)

    def predict(self, example: Example, speed: Speed = None, top_k: int = 1) -> Any:
        """Answers one example of the bundle's task.

        A passage is cut into overlapping windows. All of them run one segment, then the example's uncertainty decides
        whether all of them run another. So their scores always come from the same exit and can be compared.

        Args:
            example: of the bundle's task.
            speed: see `speed_thresholds`; without it, `default_speed`.
            top_k: how many candidates the result should hold, for tasks that have any.

        Returns:
            the task's result, for example `ClassificationResult`.

        Raises:
            UserError: the speed is unknown, the example holds no text, or there are no `top_k` candidates to give.
        """
        self.task.check(example)
        thresholds = self._thresholds(speed)
        if top_k < 1:
            raise UserError(f"{top_k} is too few; give at least 1", field="top_k")
        if top_k > 1 and not self.task.gives_candidates:
            raise UserError(f"this bundle {self.task.verb}, which has no other candidates; give 1", field="top_k")
        with self._one_at_a_time:
            return self._walk(example, thresholds, top_k)

    def _predict(self, request: Request, speed: Speed, top_k: int = 1) -> Any:
        return self.predict(self.task.example_from_request(request), speed, top_k)

    def _predict_all(self, name: str, requests: Sequence[Request], speed: Speed, top_k: int = 1) -> list[Any]:
        """Runs one request after another, once all of them are checked; `name` is the argument they came as."""
        examples = []
        for index, request in enumerate(requests):
            try:
                examples.append(self.task.example_from_request(request))
            except UserError as error:
                raise UserError(str(error), field=f"{name}[{index}]") from None
        return [self.predict(example, speed, top_k) for example in examples]

    def _walk(self, example: Example, thresholds: Sequence[float], top_k: int) -> Any:
        """Runs segments until the example leaves, and returns its result."""
        task, context, tokenizer = self.task, self._context, self.bundle.tokenizer
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
        return task.result(example, inputs, decoded, logits, walk, tokenizer, context, top_k)

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


def _text_requests(texts: Iterable[Text]) -> list[Request]:
    """Returns a request for each text or pair. TypeError for a single text, whose letters would be taken for texts."""
    if isinstance(texts, str):
        raise TypeError("a list of texts belongs here, not one text")
    requests = []
    for entry in texts:
        text, text_pair = (entry, None) if isinstance(entry, str) else entry
        requests.append(Request(text, text_pair))
    return requests
