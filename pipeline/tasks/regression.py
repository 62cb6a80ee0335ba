"""Text regression: a text, or a pair of texts, gets a number. Models predict it as a share of the labels' range."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.examples import ClassificationExample
from pipeline.data.features import ClassificationFeature, encode_examples
from pipeline.data.items import Item
from pipeline.data.labels import LabelRange, label_range
from pipeline.data.options import InputOptions
from pipeline.data.regression_metrics import regression_metrics
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError
from pipeline.tasks.results import RegressionResult
from pipeline.tasks.text import TextTask, checked_labels
from pipeline.tasks.types import AnswerContext, Labels, Logits, ProgramMeasure, Walk

if TYPE_CHECKING:
    from torch import Tensor

# The standard deviation of labels spread evenly over their range, as a share of the range. Noise is compared with it:
# the size of the predictions says nothing, since 0 is an answer like any other.
LABEL_DEVIATION = 12**-0.5
# Predictions closer than this share of the label range are the same; 0.01 was measured on STS-B between two runtimes.
SAME_SHARE = 0.02


class Regression(TextTask[float]):
    """A number. Decoded answers are shares of the label range."""

    name = "regression"
    title = "Text regression"
    metrics = {"pearson": "Pearson", "spearman": "Spearman", "mean_absolute_error": "MAE"}
    headline = "pearson"
    speed_metric = "one_minus_nmae"
    uncertainties = ("change",)
    measures_uncertainty = False
    answers_from_checkpoint = False  # it does not state the range of its labels
    predicts_number = True
    signal_level = LABEL_DEVIATION
    verb = "predicts a number"

    def load_demo(self) -> tuple[list[ClassificationExample], list[ClassificationExample]]:
        raise UserError(
            "there is no demo data for regression, only for classification and qa; name a file or a hub data set",
            file="demo",
        )

    def labels_of(
        self,
        train: Sequence[ClassificationExample],
        dev: Sequence[ClassificationExample],
        dev_source: str,
        label_names: Sequence[str] | None,
        options: InputOptions,
    ) -> Labels:
        label_range(dev)  # of labels that are all alike, nothing can be measured
        return label_range(train)

    def targets(
        self, examples: Sequence[ClassificationExample], context: AnswerContext, source: str | Path | None = None
    ) -> list[float]:
        return [float(label) for label in checked_labels(examples, self.name, source)]

    def items(
        self,
        examples: Sequence[ClassificationExample],
        tokenizer: WordPieceTokenizer,
        labels: Labels,
        options: InputOptions,
    ) -> list[Item]:
        items = []
        for example, feature in zip(examples, encode_examples(tokenizer, examples, options.max_length)):
            # A label that training has not seen may lie beyond the range.
            target = None if example.label is None else (np.float32(as_range(labels).share(example.label)),)
            items.append(Item(feature.ids, feature.type_ids, target))
        return items

    def manifest_problem(self, context: AnswerContext) -> tuple[str, str] | None:
        if context.label_range is None:
            return "label_range", "is missing, and the task is regression; export the bundle again"
        return None

    def head_outputs(self, classes: int) -> int:
        return 1

    def program_uncertainty(
        self, measure: ProgramMeasure, outputs: tuple[Tensor, ...], answer_bias: Tensor | None
    ) -> Tensor:
        raise NotImplementedError("a regression's uncertainty takes two exits, so no program computes it")

    def distributions(self, logits: Tensor, answer_mask: Tensor | None) -> list[Tensor]:
        return []

    def decode(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        logits: Sequence[Logits],
        context: AnswerContext,
    ) -> float:
        return float(logits[0][0][0])

    def answer(self, decoded: float, context: AnswerContext) -> Hashable:
        return as_range(context.label_range).value(decoded)

    def result(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        decoded: float,
        logits: Sequence[Logits],
        walk: Walk,
        tokenizer: WordPieceTokenizer,
        context: AnswerContext,
        top_k: int = 1,
    ) -> RegressionResult:
        return RegressionResult(
            value=as_range(context.label_range).value(decoded),
            exit=walk.exit,
            depth=walk.depth,
            uncertainty=walk.uncertainty,
            latency_ms=walk.latency_ms,
            truncated=self.is_truncated(example, inputs, tokenizer, context.options.max_length),
        )

    def answer_of(self, result: RegressionResult) -> Hashable:
        return result.value

    def shown_answer(self, result: RegressionResult) -> str:
        return f"{result.value:.4g}"

    def answer_fields(self, decoded: float, context: AnswerContext) -> dict[str, Any]:
        return {"value": as_range(context.label_range).value(decoded)}

    def score(self, decoded: float, target: float, context: AnswerContext) -> tuple[float, float | None]:
        distance = abs(decoded - as_range(context.label_range).share(target))
        return 1.0 - min(distance, 1.0), None

    def summarise(self, answers: Sequence[Any], targets: Sequence[Any]) -> dict[str, float | None]:
        return regression_metrics(np.array(answers), np.array(targets))

    def measures(
        self,
        model_input: ClassificationFeature,
        logits: np.ndarray,
        temperatures: Sequence[float] | None,
        options: InputOptions,
    ) -> dict[str, np.ndarray]:
        return {}

    def divergence(self, reference: np.ndarray, logits: np.ndarray, answer_mask: np.ndarray | None = None) -> float:
        # A number is no distribution: it stands for the mean of a normal one, as wide as the label range.
        return float(np.square(logits - reference).sum() / 2)

    def is_as_good(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        logits: Sequence[Logits],
        answer: Any,
        context: AnswerContext,
        tolerance: float,
    ) -> bool:
        return abs(as_range(context.label_range).share(answer.value) - float(logits[0][0][0])) <= tolerance

    def same_best(
        self,
        answer_mask: np.ndarray | None,
        expected: Logits,
        actual: Logits,
        slack: float,
        context: AnswerContext,
    ) -> bool:
        return abs(float(expected[0][0]) - float(actual[0][0])) <= slack

    def same_answer(self, result: RegressionResult, expected: float, context: AnswerContext) -> bool:
        return abs(result.value - expected) <= SAME_SHARE * as_range(context.label_range).width


def as_range(labels: Labels | None) -> LabelRange:
    """Returns the labels of a regression. TypeError for those of another task."""
    if not isinstance(labels, LabelRange):
        raise TypeError(f"a regression has a range of labels, not {labels!r}")
    return labels
