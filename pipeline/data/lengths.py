"""Counts the tokens of examples, so that lengths at which inputs are cut can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.tokenizer import WordPieceTokenizer

NEARLY_ALL = 0.99  # share of questions and answers that a length should hold


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens.

    Attributes:
        inputs: of each whole input with its special tokens, sorted, [examples]; for a question with its whole passage.
        question, answer: what 99 of 100 questions and answers do not exceed; 0 where there are none.
    """

    inputs: np.ndarray
    question: int = 0
    answer: int = 0

    def at(self, share: float) -> int:
        """Returns the length that this share of the inputs does not exceed."""
        return _at(self.inputs, share)


def measure_lengths(examples: Sequence[Example], tokenizer: WordPieceTokenizer) -> Lengths:
    """Returns the lengths of these examples, which are all of one kind.

    Raises:
        TypeError: the examples are of a kind without a text.
    """
    questions = [example for example in examples if isinstance(example, QAExample)]
    if questions:
        asked = _counts(tokenizer, [example.question for example in questions])
        passages = {text: 0 for text in (example.passage for example in questions)}
        passages = dict(zip(passages, _counts(tokenizer, list(passages)).tolist()))
        whole = asked + np.array([passages[example.passage] for example in questions]) + 3
        answers = [answer.text for example in questions for answer in example.answers]
        return Lengths(
            np.sort(whole),
            _at(np.sort(asked), NEARLY_ALL),
            _at(np.sort(_counts(tokenizer, answers)), NEARLY_ALL) if answers else 0,
        )
    texts = [example for example in examples if isinstance(example, ClassificationExample)]
    if len(texts) != len(examples) or not texts:
        raise TypeError("examples without a text have no lengths")
    lengths = _counts(tokenizer, [example.text for example in texts]) + 2
    paired = [index for index, example in enumerate(texts) if example.text_pair is not None]
    if paired:
        lengths[paired] += _counts(tokenizer, [str(texts[index].text_pair) for index in paired]) + 1
    return Lengths(np.sort(lengths))


def _counts(tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> np.ndarray:
    return np.array([len(ids) for ids in tokenizer.encode_ids(texts)], dtype=np.int64)


def _at(lengths: np.ndarray, share: float) -> int:
    return int(lengths[min(len(lengths) - 1, int(share * len(lengths)))])
