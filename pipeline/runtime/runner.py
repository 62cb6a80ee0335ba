"""The reference runner of a bundle: tokenizer, segment loop, decoder. What a phone computes, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from pipeline.bundle.exit_rule import COUNTED, change_uncertainty, compared_uncertainty, leaves, question_uncertainty
from pipeline.bundle.manifest import EXIT_OUTPUTS, Program
from pipeline.bundle.opening import BACKEND, Bundle, default_speed, speed_thresholds
from pipeline.data.features import encode_text
from pipeline.data.inputs import program_inputs
from pipeline.data.spans import DecodedAnswer, best_span, decode_answer
from pipeline.data.windows import QAWindow, make_windows
from pipeline.runtime.programs import MethodFile, as_tensor
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class ExitOutput:
    """What one segment gave for one input of S tokens.

    Args:
        logits: float32 arrays in the order of `EXIT_OUTPUTS`: ([labels],) or, for QA, (start [S], end [S]).
        uncertainty: in [0, 1], the program's, or a regression's change from the exit before; with patience the loop goes by another number,
            see `pipeline.bundle.manifest.ExitOptions`.
    """

    logits: tuple[np.ndarray, ...]
    uncertainty: float


@dataclass(frozen=True)
class Classification:
    """A label with its way through the model.

    Args:
        label: what an app shows; `label_value` the same as the data files write it; `label_index` its place among the logits.
        score: the label's softmax probability at the exit taken.
        exit: the segment it left after, counted from 0: the place in `uncertainty`, and in `evaluate`'s histogram.
        depth: how many segments ran, `exit + 1`.
        uncertainty: what was compared with the threshold, one for each segment that ran.
        latency_ms: tokenization, programs and decoding of this input at its real length.
        logits: [labels] at the exit taken.
        truncated: whether tokens beyond the bundle's `max_length` were dropped, as in training.
    """

    label: str
    label_value: str
    label_index: int
    score: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    logits: tuple[float, ...]
    truncated: bool

    def to_json(self) -> dict:
        """What `pocketbert predict --json` prints."""
        return {
            "label": self.label,
            "label_value": self.label_value,
            "score": self.score,
            "exit": self.exit,
            "depth": self.depth,
            "uncertainty": list(self.uncertainty),
            "latency_ms": self.latency_ms,
            "truncated": self.truncated,
        }


@dataclass(frozen=True)
class Estimate:
    """A number with its way through the model.

    Args:
        value: what is predicted, in the unit of the data; it may lie beyond the labels that were seen in training.
        exit, depth, uncertainty, latency_ms, truncated: see `Classification`.
    """

    value: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    truncated: bool

    def to_json(self) -> dict:
        """What `pocketbert predict --json` prints."""
        return asdict(self) | {"uncertainty": list(self.uncertainty)}


@dataclass(frozen=True)
class AnswerResult:
    """An answer with its way through the model.

    Args:
        answer: `passage[start:end]`; "" with start and end -1 when the answer is that there is none.
        start, end: character positions in the passage, the end exclusive.
        score: probability of the span in its window at the exit taken.
        exit, depth, uncertainty, latency_ms: see `Classification`; the uncertainty is the question's, see `question_uncertainty`.
        windows: into how many windows the passage was cut; all run to the same depth.
    """

    answer: str
    start: int
    end: int
    score: float
    exit: int
    depth: int
    uncertainty: tuple[float, ...]
    latency_ms: float
    windows: int

    def to_json(self) -> dict:
        """What `pocketbert predict --json` prints."""
        return {
            "answer": self.answer,
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "exit": self.exit,
            "depth": self.depth,
            "uncertainty": list(self.uncertainty),
            "latency_ms": self.latency_ms,
            "windows": self.windows,
        }


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

    def prewarm(self) -> None:
        """Loads every method, so that no input pays for it."""
        for program in (self._embed, *self._segments):
            self._load(program)

    @property
    def loaded(self) -> frozenset[str]:
        """The methods that are loaded."""
        return frozenset().union(*(file.loaded for file in self._files.values()))

    def classify(self, text: str, text_pair: str | None = None, speed: str | float | None = None) -> Classification:
        """Classifies a text or a pair of texts.

        Args:
            speed: see `speed_thresholds`; `default_speed` when absent.

        Raises:
            UserError: the text is empty, the speed unknown, or the bundle has another task.
        """
        self._require("classification")
        start, truncated, logits, uncertainty = self._read(text, text_pair, speed)
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
        """The number that a regression predicts for a text or a pair of texts.

        Args:
            speed: see `speed_thresholds`; `default_speed` when absent.

        Raises:
            UserError: the text is empty, the speed unknown, or the bundle has another task.
        """
        self._require("regression")
        start, truncated, logits, uncertainty = self._read(text, text_pair, speed)
        value = self.manifest.label_range.value(float(logits[0]))
        latency_ms = (time.perf_counter() - start) * 1e3
        return Estimate(
            value=value,
            exit=len(uncertainty) - 1,
            depth=len(uncertainty),
            uncertainty=uncertainty,
            latency_ms=latency_ms,
            truncated=truncated(),
        )

    def _read(
        self, text: str, text_pair: str | None, speed: str | float | None
    ) -> tuple[float, Callable[[], bool], np.ndarray, tuple[float, ...]]:
        """Runs a text, or a pair, until an exit is sure enough.

        Returns:
            when the clock started; whether the text was cut, to be asked when the clock has stopped; the logits at the exit taken; the
            uncertainty at every exit up to it.
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

        The passage is cut into windows that overlap. All of them run one segment, then the question's uncertainty decides whether
        all of them run another: their scores are then of one exit and may be compared.

        Args:
            speed: see `speed_thresholds`; `default_speed` when absent.

        Raises:
            UserError: question or passage is empty, the speed unknown, or the bundle has another task.
        """
        self._require("qa")
        _require_text("question", question)
        _require_text("passage", passage)
        thresholds = self._thresholds(speed)
        options = self.manifest.qa
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
        answers: list[DecodedAnswer] = []  # of every exit where its answer counts, else of none
        for exit, outputs in enumerate(self.segments([w.ids for w in windows], [w.answer_mask for w in windows])):
            if self._measure in COUNTED:
                answers.append(self._decode(windows, outputs, passage))
            by_program = self._question_uncertainty(windows, outputs)
            uncertainty.append(compared_uncertainty(self._measure, by_program, [answer.text for answer in answers]))
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
        """The programs' uncertainty of a question at one exit; `outputs` are its windows'."""
        if len(windows) == 1:  # nothing to choose among; its best span is looked for once, by the decoder
            return outputs[0].uncertainty
        longest = self.manifest.qa.max_answer
        best = [
            best_span(*output.logits, window.answer_mask, longest).score for window, output in zip(windows, outputs)
        ]
        return question_uncertainty(best, [output.uncertainty for output in outputs])

    def _decode(self, windows: Sequence[QAWindow], outputs: Sequence[ExitOutput], passage: str) -> DecodedAnswer:
        """The answer at one exit."""
        options, logits = self.manifest.qa, [output.logits for output in outputs]
        return decode_answer(
            windows, logits, passage, options.max_answer, options.allow_no_answer, options.null_threshold
        )

    def segments(
        self, inputs: Sequence[np.ndarray], answer_masks: Sequence[np.ndarray] | None = None
    ) -> Iterator[list[ExitOutput]]:
        """Runs inputs side by side, one segment each time the iterator is asked: whoever stops asking has left at an exit.

        Args:
            inputs: ids, [S] each, S may differ.
            answer_masks: for QA, bool, [S] each.

        Yields:
            after each segment the exits' outputs, one per input.
        """
        known = [
            self._known_inputs(ids, None if answer_masks is None else answer_masks[at]) for at, ids in enumerate(inputs)
        ]
        for tensors in known:
            tensors["hidden"] = self._run(self._embed, tensors)["hidden"]
        names = EXIT_OUTPUTS[self.manifest.task]
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
        """Whether an input of `length` tokens would have more if nothing were cut from it."""
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
