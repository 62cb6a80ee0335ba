"""Text classification: a text, or a pair of texts, gets one of some labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.examples import ClassificationExample
from pipeline.data.features import ClassificationFeature, encode_examples
from pipeline.data.items import Item
from pipeline.data.labels import LabelRange, label_values
from pipeline.data.options import InputOptions
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError
from pipeline.tasks.measures import label_measures
from pipeline.tasks.results import ClassificationResult, LabelCandidate
from pipeline.tasks.text import TextTask, checked_labels, softmax
from pipeline.tasks.types import AnswerContext, Labels, Logits, Walk

if TYPE_CHECKING:
    from torch import Tensor


class Classification(TextTask[tuple[int, float]]):
    """One of some classes. Decoded answers are (index, probability)."""

    name = "classification"
    title = "Text classification"
    metrics = {"accuracy": "accuracy"}
    headline = "accuracy"
    speed_metric = "accuracy"
    has_classes = True
    gives_candidates = True
    verb = "classifies"

    def load_demo(self) -> tuple[list[ClassificationExample], list[ClassificationExample]]:
        from pipeline.data.demo import classification as demo  # a runner never gets here

        train, dev = demo.generate()
        return list(train), list(dev)

    def class_of(self, example: ClassificationExample) -> str | None:
        return None if example.label is None else str(example.label)

    def labels_of(
        self,
        train: Sequence[ClassificationExample],
        dev: Sequence[ClassificationExample],
        dev_source: str,
        label_names: Sequence[str] | None,
        options: InputOptions,
    ) -> Labels:
        labels = label_values(train)
        unknown = sorted({str(example.label) for example in dev} - set(labels))
        if unknown:
            raise UserError(
                f"label {unknown[0]!r} does not occur in the training data ({', '.join(labels)})",
                file=dev_source,
                field="data.label",
            )
        if label_names and len(label_names) != len(labels):
            raise UserError(
                f"has {len(label_names)} names for {len(labels)} labels ({', '.join(labels)})",
                field="data.label_names",
            )
        return labels

    def targets(
        self, examples: Sequence[ClassificationExample], context: AnswerContext, source: str | Path | None = None
    ) -> list[int]:
        found = [str(label) for label in checked_labels(examples, self.name, source)]
        # A file writes all its labels in one way. Value by value, ["0", "1"] shown as ["1", "0"] would be mixed up.
        for known in (context.label_values, context.labels):
            if set(found) <= set(known):
                return [known.index(label) for label in found]
        unknown = sorted(set(found) - set(context.label_values)) or sorted(set(found) - set(context.labels))
        raise UserError(
            f"{unknown[0]!r} is not known to the bundle, whose values are {', '.join(context.label_values)} "
            f"and whose names are {', '.join(context.labels)}; write all labels as the one or the other",
            file=source,
            field="label",
        )

    def items(
        self,
        examples: Sequence[ClassificationExample],
        tokenizer: WordPieceTokenizer,
        labels: Labels,
        options: InputOptions,
    ) -> list[Item]:
        if isinstance(labels, LabelRange):
            raise TypeError("a classifier has names of classes, not a range")
        index_of = {value: index for index, value in enumerate(labels)}
        items = []
        for example, feature in zip(examples, encode_examples(tokenizer, examples, options.max_length)):
            if example.label is not None and str(example.label) not in index_of:
                raise UserError(
                    f"label {example.label!r} is not one of the training data's: {', '.join(labels)}",
                    field="data.label",
                )
            target = None if example.label is None else (index_of[str(example.label)],)
            items.append(Item(feature.ids, feature.type_ids, target))
        return items

    def manifest_problem(self, context: AnswerContext) -> tuple[str, str] | None:
        if len(context.labels) < 2:
            return "labels", "a classifier has at least two; export the bundle again"
        if len(context.label_values) != len(context.labels):
            counts = f"{len(context.label_values)} values for {len(context.labels)} labels"
            return "label_values", f"{counts}; export the bundle again"
        return None

    def head_outputs(self, classes: int) -> int:
        return classes

    def distributions(self, logits: Tensor, answer_mask: Tensor | None) -> list[Tensor]:
        return [logits.float()]

    def decode(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        logits: Sequence[Logits],
        context: AnswerContext,
    ) -> tuple[int, float]:
        (values,) = logits[0]
        best = int(values.argmax())
        return best, float(softmax(values)[best])

    def answer(self, decoded: tuple[int, float], context: AnswerContext) -> Hashable:
        return decoded[0]

    def result(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        decoded: tuple[int, float],
        logits: Sequence[Logits],
        walk: Walk,
        tokenizer: WordPieceTokenizer,
        context: AnswerContext,
        top_k: int = 1,
    ) -> ClassificationResult:
        index, probability = decoded
        probabilities = softmax(logits[0][0])
        best_first = np.argsort(-probabilities, kind="stable")[:top_k].tolist()  # of equal ones the first, as argmax
        return ClassificationResult(
            label=context.labels[index],
            label_value=context.label_values[index],
            label_index=index,
            score=probability,
            exit=walk.exit,
            depth=walk.depth,
            uncertainty=walk.uncertainty,
            latency_ms=walk.latency_ms,
            logits=tuple(logits[0][0].tolist()),
            truncated=self.is_truncated(example, inputs, tokenizer, context.options.max_length),
            candidates=tuple(
                LabelCandidate(context.labels[place], context.label_values[place], place, float(probabilities[place]))
                for place in best_first
            ),
        )

    def answer_of(self, result: ClassificationResult) -> Hashable:
        return result.label_index

    def shown_answer(self, result: ClassificationResult) -> str:
        return result.label

    def answer_fields(self, decoded: tuple[int, float], context: AnswerContext) -> dict[str, Any]:
        return {"label": context.labels[decoded[0]]}

    def score(self, decoded: tuple[int, float], target: int, context: AnswerContext) -> tuple[float, float | None]:
        right = float(decoded[0] == target)
        return right, right

    def summarise(self, answers: Sequence[Any], targets: Sequence[Any]) -> dict[str, float | None]:
        return {"accuracy": float(np.mean([answer == target for answer, target in zip(answers, targets)]))}

    def measures(
        self,
        model_input: ClassificationFeature,
        logits: np.ndarray,
        temperatures: Sequence[float] | None,
        options: InputOptions,
    ) -> dict[str, np.ndarray]:
        return label_measures(logits, temperatures)

    def divergence(self, reference: np.ndarray, logits: np.ndarray, answer_mask: np.ndarray | None = None) -> float:
        return kl_divergence(reference, logits)

    def is_as_good(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        logits: Sequence[Logits],
        answer: Any,
        context: AnswerContext,
        tolerance: float,
    ) -> bool:
        by_label = dict(zip(context.labels, logits[0][0].tolist()))
        return max(by_label.values()) - by_label.get(answer.label, -np.inf) <= 2 * tolerance

    def same_best(
        self,
        answer_mask: np.ndarray | None,
        expected: Logits,
        actual: Logits,
        slack: float,
        context: AnswerContext,
    ) -> bool:
        return float(expected[0].max() - expected[0][int(np.argmax(actual[0]))]) <= slack

    def same_answer(self, result: ClassificationResult, expected: int, context: AnswerContext) -> bool:
        return result.label_index == expected


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Returns the mean Kullback-Leibler divergence from the reference, in nats; reference, logits: [..., classes]."""
    from scipy.special import log_softmax  # for training and quantization alone; a runner never gets here

    expected, actual = log_softmax(reference, axis=-1), log_softmax(logits, axis=-1)
    return float((np.exp(expected) * (expected - actual)).sum(axis=-1).mean())
