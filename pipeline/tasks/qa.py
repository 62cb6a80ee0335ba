"""Question answering: the answer is a span of a passage. A long passage is cut into windows that overlap."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.demo import qa as demo
from pipeline.data.duplicates import normalise
from pipeline.data.examples import Answer, QAExample
from pipeline.data.inputs import MASKED
from pipeline.data.items import Item
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.data.questions import questions_of_rows, questions_of_squad
from pipeline.data.rows import Row
from pipeline.data.spans import DecodedAnswer, best_span, decode_answer, null_score, span_score
from pipeline.data.splits import Group, passages
from pipeline.data.squad_metric import exact_match, f1
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import QAWindow, label_window, make_windows, stride_problem
from pipeline.support.errors import UserError
from pipeline.tasks.classification import kl_divergence
from pipeline.tasks.definition import TaskDefinition
from pipeline.tasks.measures import window_measures
from pipeline.tasks.text import require_text
from pipeline.tasks.types import AnswerContext, Columns, Labels, Logits, ProgramMeasure, Request, Walk

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AnswerResult:
    """An answer, and how the question came to it.

    Attributes:
        answer: `passage[start:end]`; "" with start and end -1 when the answer is that there is none.
        start, end: characters of the passage, the end exclusive.
        score: probability of the span in its window at the exit taken.
        exit, depth, uncertainty, latency_ms: see `ClassificationResult`. The uncertainty is the decisive window's.
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

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert predict --json` prints."""
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


class QuestionAnswering(TaskDefinition[QAExample, QAWindow, DecodedAnswer]):
    """A span of a passage, or no answer. Decoded answers are `DecodedAnswer`."""

    name = "qa"
    title = "Question answering"
    metrics = {"exact_match": "EM", "f1": "F1"}
    headline = "f1"
    speed_metric = "f1"
    exit_outputs = ("start_logits", "end_logits")
    head_family = "span"
    checkpoint_class = "ForQuestionAnswering"
    heads = ("attention", "fastbert", "linear")
    uses_answer_mask = True
    cuts_into_windows = True
    takes_unlabelled = False
    agreement_floor = 0.99
    # Rounding inputs to int8 amplifies a difference in the last bit from layer to layer, until it is as large as the
    # quantization error. Two correct runtimes then differ as much as int8 and float32. Measured on SQuAD: the same
    # answer to 0.978 and 0.986 of the questions (two trainings). An int8 model whose embeddings move by a millionth
    # agrees with itself on 0.95 to 0.976.
    agreement_floor_rounded = 0.97
    agreement_examples = 500
    # The logits of a whole training set, tokens times exits, would not fit into memory.
    examples_in_memory = 512
    verb = "answers questions"
    needs = "a question and a passage"

    # --- examples and labels ----------------------------------------------------------------------------------------

    def examples_of_rows(self, source: str | Path, rows: Iterator[Row], columns: Columns) -> Iterator[QAExample]:
        return questions_of_rows(source, rows)

    def examples_of_articles(self, path: Path, articles: list[Any]) -> Iterator[QAExample]:
        return questions_of_squad(path, articles)

    def example_from_json(self, raw: dict[str, Any]) -> QAExample:
        return QAExample(**raw | {"answers": tuple(Answer(**answer) for answer in raw["answers"])})

    def example_from_request(self, request: Request, bundle: Path | None = None) -> QAExample:
        if request.question is None or request.passage is None:
            raise UserError(f"this bundle {self.verb}; give --question and --passage", file=bundle)
        example = QAExample("", request.question, request.passage)
        self.check(example)
        return example

    def request_of(self, example: QAExample) -> Request:
        return Request(question=example.question, passage=example.passage)

    def check(self, example: QAExample) -> None:
        require_text("question", example.question)
        require_text("passage", example.passage)

    def load_demo(self) -> tuple[list[QAExample], list[QAExample]]:
        train, dev = demo.generate()
        return list(train), list(dev)

    def group(self, examples: Sequence[QAExample]) -> list[Group]:
        return passages(examples)

    def same_input(self, example: QAExample) -> Hashable:
        return normalise(example.question), normalise(example.passage)

    def kept_together(self, example: QAExample) -> Hashable:
        return normalise(example.passage)

    def labels_of(
        self,
        train: Sequence[QAExample],
        dev: Sequence[QAExample],
        dev_source: str,
        label_names: Sequence[str] | None,
        options: InputOptions,
    ) -> Labels:
        unanswered = sum(1 for example in (*train, *dev) if not example.answers)
        if unanswered and not question_options(options).allow_no_answer:
            raise UserError(
                f"{unanswered} questions have no answer in their passage; set it to true for SQuAD v2.0 data",
                field="qa.allow_no_answer",
                settings=["qa.allow_no_answer=true"],
            )
        return "start", "end"

    def is_labelled(self, example: QAExample) -> bool:
        return True

    def without_label(self, example: QAExample) -> QAExample:
        return example

    def targets(
        self, examples: Sequence[QAExample], context: AnswerContext, source: str | Path | None = None
    ) -> list[list[str]]:
        if not all(isinstance(example, QAExample) for example in examples):
            raise UserError("the examples are not of the bundle's task, qa; give a file of that task", file=source)
        if not question_options(context.options).allow_no_answer and not any(example.answers for example in examples):
            raise UserError(
                "no question has an answer, so there is nothing to compare with; give a labelled file", file=source
            )
        return [[answer.text for answer in example.answers] for example in examples]

    def text_length(self, example: QAExample) -> int:
        return len(example.passage)

    def shown(self, example: QAExample) -> str:
        return example.question

    # --- inputs -----------------------------------------------------------------------------------------------------

    def encode(self, example: QAExample, tokenizer: WordPieceTokenizer, options: InputOptions) -> list[QAWindow]:
        lengths = question_options(options)
        return make_windows(
            tokenizer,
            example.question,
            example.passage,
            lengths.window,
            lengths.stride,
            lengths.max_question,
            lengths.allow_no_answer,
        )

    def items(
        self, examples: Sequence[QAExample], tokenizer: WordPieceTokenizer, labels: Labels, options: InputOptions
    ) -> list[Item]:
        allow_no_answer = question_options(options).allow_no_answer
        items = []
        for example in examples:
            answer = example.answers[0] if example.answers else None
            if answer is None and not allow_no_answer:
                continue
            for window in self.encode(example, tokenizer, options):
                target = label_window(window, answer)
                if target is None and allow_no_answer:
                    target = (0, 0)
                # Where there is always an answer, a window that misses it is left out: it would teach a lie.
                if target is not None:
                    items.append(Item(window.ids, window.type_ids, target, window.answer_mask))
        return items

    def has_text(self, example: QAExample, tokenizer: WordPieceTokenizer) -> bool:
        return bool(example.question.strip()) and len(tokenizer.encode(example.passage)) > 0

    def longest_input(self, options: InputOptions) -> tuple[str, int]:
        return "qa.window", question_options(options).window

    def set_lengths(self, raw: dict[str, Any], longest: int) -> None:
        qa = raw.setdefault("qa", {})
        window = qa.setdefault("window", min(384, longest))
        if isinstance(window, int):
            qa.setdefault("max_question", min(64, window // 4))
            qa.setdefault("stride", min(128, window // 3))

    def input_length(self, example: QAExample, inputs: Sequence[QAWindow], tokenizer: WordPieceTokenizer) -> int:
        return len(tokenizer.encode(example.passage))

    def options_problem(self, options: InputOptions) -> UserError | None:
        return stride_problem(question_options(options))

    def manifest_problem(self, context: AnswerContext) -> tuple[str, str] | None:
        if context.options.question is None:
            return "qa", "is missing, and the task is qa; export the bundle again"
        return None

    # --- tensors ----------------------------------------------------------------------------------------------------

    def head_outputs(self, classes: int) -> int:
        return 2

    def output_shapes(self, classes: int) -> dict[str, list[int | str]]:
        return {name: [1, "length"] for name in self.exit_outputs}

    def split_logits(self, logits: Tensor) -> tuple[Tensor, ...]:
        # A dot with a unit vector would do as well; unbind lowers to two slices.
        return logits.unbind(dim=-1)

    def program_uncertainty(
        self, measure: ProgramMeasure, outputs: tuple[Tensor, ...], answer_bias: Tensor | None
    ) -> Tensor:
        if answer_bias is None:
            raise TypeError("question answering needs an answer bias")
        start, end = outputs
        return measure.spans(start, end, answer_bias)

    def distributions(self, logits: Tensor, answer_mask: Tensor | None) -> list[Tensor]:
        if answer_mask is None:
            raise TypeError("question answering needs an answer mask")
        return [scores.float().masked_fill(~answer_mask, MASKED) for scores in logits.unbind(dim=-1)]

    def request_options(self, example: QAExample) -> list[str]:
        return ["--question", example.question, "--passage", example.passage]

    def checkpoint_head(self, state: Mapping[str, Tensor], kind: str) -> tuple[str, dict[str, Tensor] | None]:
        if "qa_outputs.weight" not in state:
            return "linear", None
        return "linear", {"out.weight": state["qa_outputs.weight"], "out.bias": state["qa_outputs.bias"]}

    # --- answers ----------------------------------------------------------------------------------------------------

    def decode(
        self, example: QAExample, inputs: Sequence[QAWindow], logits: Sequence[Logits], context: AnswerContext
    ) -> DecodedAnswer:
        options = question_options(context.options)
        return decode_answer(
            inputs, pairs(logits), example.passage, options.max_answer, options.allow_no_answer, options.null_threshold
        )

    def answer(self, decoded: DecodedAnswer, context: AnswerContext) -> Hashable:
        return decoded.text

    def decisive_input(self, inputs: Sequence[QAWindow], logits: Sequence[Logits], context: AnswerContext) -> int:
        """Returns the window whose best span scores highest.

        All windows run to the same depth, so their scores come from one exit and may be compared. The other windows
        hold no answer, so their uncertainty says nothing.
        """
        if len(inputs) == 1:
            return 0
        longest = question_options(context.options).max_answer
        scores = [best_span(*pair, window.answer_mask, longest).score for window, pair in zip(inputs, pairs(logits))]
        return int(np.argmax(scores))

    def result(
        self,
        example: QAExample,
        inputs: Sequence[QAWindow],
        decoded: DecodedAnswer,
        logits: Sequence[Logits],
        walk: Walk,
        tokenizer: WordPieceTokenizer,
        context: AnswerContext,
    ) -> AnswerResult:
        return AnswerResult(
            answer=decoded.text,
            start=decoded.start,
            end=decoded.end,
            score=decoded.probability,
            exit=walk.exit,
            depth=walk.depth,
            uncertainty=walk.uncertainty,
            latency_ms=walk.latency_ms,
            windows=len(inputs),
        )

    def answer_of(self, result: AnswerResult) -> Hashable:
        return result.answer

    def shown_answer(self, result: AnswerResult) -> str:
        return result.answer or "(no answer)"

    def answer_fields(self, decoded: DecodedAnswer, context: AnswerContext) -> dict[str, Any]:
        return {"answer": decoded.text, "start": decoded.start, "end": decoded.end}

    # --- comparisons ------------------------------------------------------------------------------------------------

    def score(
        self, decoded: DecodedAnswer, target: Sequence[str], context: AnswerContext
    ) -> tuple[float, float | None]:
        return f1(decoded.text, target), exact_match(decoded.text, target)

    def summarise(self, answers: Sequence[Any], targets: Sequence[Any]) -> dict[str, float | None]:
        pairs = list(zip(answers, targets))
        return {
            "exact_match": float(np.mean([exact_match(text, truths) for text, truths in pairs])),
            "f1": float(np.mean([f1(text, truths) for text, truths in pairs])),
        }

    def measures(
        self, model_input: QAWindow, logits: np.ndarray, temperatures: Sequence[float] | None, options: InputOptions
    ) -> dict[str, np.ndarray]:
        longest = question_options(options).max_answer
        return window_measures(logits[..., 0], logits[..., 1], model_input.answer_mask, longest, temperatures)

    def divergence(self, reference: np.ndarray, logits: np.ndarray, answer_mask: np.ndarray | None = None) -> float:
        allowed = slice(None) if answer_mask is None else answer_mask
        return kl_divergence(reference[allowed].T, logits[allowed].T)  # [2, allowed] each

    def is_as_good(
        self,
        example: QAExample,
        inputs: Sequence[QAWindow],
        logits: Sequence[Logits],
        answer: Any,
        context: AnswerContext,
        tolerance: float,
    ) -> bool:
        if answer.answer != example.passage[max(answer.start, 0) : max(answer.end, 0)]:
            return False
        options = question_options(context.options)
        # Two scores are compared, each the sum of two logits, each of which may be off by the tolerance.
        slack = 4 * tolerance
        best = max(
            best_span(*pair, window.answer_mask, options.max_answer).score
            for window, pair in zip(inputs, pairs(logits))
        )
        over_null = np.inf
        if options.allow_no_answer:
            over_null = best + options.null_threshold - min(null_score(*pair) for pair in pairs(logits))
        if answer.start < 0:
            return over_null <= slack
        return over_null >= -slack and span_score(inputs, pairs(logits), answer.start, answer.end) >= best - slack

    def same_best(
        self,
        answer_mask: np.ndarray | None,
        expected: Logits,
        actual: Logits,
        slack: float,
        context: AnswerContext,
    ) -> bool:
        longest = question_options(context.options).max_answer
        if answer_mask is None:
            raise TypeError("question answering needs an answer mask")
        best, span = (best_span(*pair, answer_mask, longest) for pair in pairs((expected, actual)))
        return best.score - float(expected[0][span.start_token] + expected[1][span.end_token]) <= slack

    def same_answer(self, result: AnswerResult, expected: str, context: AnswerContext) -> bool:
        return result.answer == expected


def question_options(options: InputOptions) -> QuestionOptions:
    """Returns the lengths of question answering. TypeError where there are none."""
    if options.question is None:
        raise TypeError("question answering needs its lengths")
    return options.question


def pairs(logits: Sequence[Logits]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the start and end logits of each window."""
    return [(start, end) for start, end in logits]
