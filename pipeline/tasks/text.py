"""What classification and regression share: one text, or a pair of texts, is one input."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.duplicates import normalise
from pipeline.data.examples import ClassificationExample
from pipeline.data.features import ClassificationFeature, encode_examples, encode_text
from pipeline.data.labelled_texts import labelled_texts
from pipeline.data.options import InputOptions
from pipeline.data.rows import Row
from pipeline.data.splits import Group, whole_texts
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError
from pipeline.tasks.definition import DecodedT, TaskDefinition
from pipeline.tasks.types import Columns, ProgramMeasure, Request

if TYPE_CHECKING:
    from torch import Tensor


class TextTask(TaskDefinition[ClassificationExample, ClassificationFeature, DecodedT]):
    """A task on a text or a pair of texts."""

    exit_outputs = ("logits",)
    head_family = "text"
    heads = ("pooled", "fastbert", "linear", "bert", "distilbert")
    needs = "a text"

    def examples_of_rows(
        self, source: str | Path, rows: Iterator[Row], columns: Columns
    ) -> Iterator[ClassificationExample]:
        return labelled_texts(source, rows, self.predicts_number, columns.text, columns.text_pair, columns.label)

    def example_from_json(self, raw: dict[str, Any]) -> ClassificationExample:
        return ClassificationExample(**raw)

    def example_from_request(self, request: Request, bundle: Path | None = None) -> ClassificationExample:
        if request.text is None:
            raise UserError(
                f"this bundle {self.verb}; give --text, and --text-pair if it was trained on pairs", file=bundle
            )
        example = ClassificationExample(request.text, request.text_pair)
        self.check(example)
        return example

    def request_of(self, example: ClassificationExample) -> Request:
        return Request(text=example.text, text_pair=example.text_pair)

    def check(self, example: ClassificationExample) -> None:
        require_text("text", example.text)
        if example.text_pair is not None:
            require_text("text_pair", example.text_pair)

    def group(self, examples: Sequence[ClassificationExample]) -> list[Group]:
        return whole_texts(examples)

    def same_input(self, example: ClassificationExample) -> Hashable:
        pair = example.text_pair
        return normalise(example.text), None if pair is None else normalise(pair)

    def is_labelled(self, example: ClassificationExample) -> bool:
        return example.label is not None

    def without_label(self, example: ClassificationExample) -> ClassificationExample:
        return replace(example, label=None)

    def text_length(self, example: ClassificationExample) -> int:
        return len(example.text)

    def shown(self, example: ClassificationExample) -> str:
        return " / ".join(text for text in (example.text, example.text_pair) if text)

    def encode(
        self, example: ClassificationExample, tokenizer: WordPieceTokenizer, options: InputOptions
    ) -> list[ClassificationFeature]:
        return [encode_text(tokenizer, example.text, example.text_pair, options.max_length)]

    def encode_all(
        self, examples: Sequence[ClassificationExample], tokenizer: WordPieceTokenizer, options: InputOptions
    ) -> list[Sequence[ClassificationFeature]]:
        return [[feature] for feature in encode_examples(tokenizer, examples, options.max_length)]

    def has_text(self, example: ClassificationExample, tokenizer: WordPieceTokenizer) -> bool:
        return all(text is None or bool(text.strip()) for text in (example.text, example.text_pair))

    def longest_input(self, options: InputOptions) -> tuple[str, int]:
        return "data.max_length", options.max_length

    def set_lengths(self, raw: dict[str, Any], longest: int) -> None:
        raw.setdefault("data", {}).setdefault("max_length", longest)

    def input_length(
        self, example: ClassificationExample, inputs: Sequence[ClassificationFeature], tokenizer: WordPieceTokenizer
    ) -> int:
        return len(inputs[0].ids)

    def output_shapes(self, classes: int) -> dict[str, list[int | str]]:
        return {"logits": [1, self.head_outputs(classes)]}

    def split_logits(self, logits: Tensor) -> tuple[Tensor, ...]:
        return (logits,)

    def program_uncertainty(
        self, measure: ProgramMeasure, outputs: tuple[Tensor, ...], answer_bias: Tensor | None
    ) -> Tensor:
        return measure.labels(outputs[0])

    def checkpoint_head(self, state: Mapping[str, Tensor], kind: str) -> tuple[str, dict[str, Tensor] | None]:
        dense = "bert.pooler.dense" if kind == "bert" else "pre_classifier"
        if "classifier.weight" not in state or f"{dense}.weight" not in state:
            return kind, None
        return kind, {
            "dense.weight": state[f"{dense}.weight"],
            "dense.bias": state[f"{dense}.bias"],
            "out.weight": state["classifier.weight"],
            "out.bias": state["classifier.bias"],
        }

    def is_truncated(
        self,
        example: ClassificationExample,
        inputs: Sequence[ClassificationFeature],
        tokenizer: WordPieceTokenizer,
        longest: int,
    ) -> bool:
        """Returns whether the example would have more tokens if nothing were cut from it."""
        length = len(inputs[0].ids)
        if length < longest:
            return False
        texts = [text for text in (example.text, example.text_pair) if text is not None]
        return sum(len(tokenizer.encode(text)) for text in texts) + len(texts) + 1 > length


def checked_labels(
    examples: Sequence[ClassificationExample], task: str, source: str | Path | None
) -> list[str | float]:
    """Returns every example's label. UserError for a question, or where one is missing."""
    if not all(isinstance(example, ClassificationExample) for example in examples):
        raise UserError(f"the examples are not of the bundle's task, {task}; give a file of that task", file=source)
    labels = []
    for number, example in enumerate(examples, start=1):
        if example.label is None:
            raise UserError(
                "has no label, so there is nothing to compare with; give a labelled file",
                file=source,
                field=f"example {number}",
            )
        labels.append(example.label)
    return labels


def require_text(field: str, text: str) -> None:
    """UserError if a text is blank."""
    if not text.strip():
        raise UserError("is empty; give it some words", field=field)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax of [classes] in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()
