"""SQuAD's exact match and token F1 (Rajpurkar et al. 2016, section 6.1; 2018 for questions without an answer)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, then without ASCII punctuation, then without articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1.0 if the normalised prediction equals one of the answers, else 0.0. Without answers, "" is right."""
    return float(normalize_answer(prediction) in _normalized(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Returns the best token F1 with any of the answers, in [0, 1]. Without answers, "" is right."""
    return max(_token_f1(normalize_answer(prediction).split(), answer.split()) for answer in _normalized(answers))


def _normalized(answers: Sequence[str]) -> list[str]:
    """Returns the normalised answers without the empty ones, as the official v2.0 script filters them; [""] if none."""
    if isinstance(answers, str):
        raise TypeError("answers is a list of texts, not one text")
    return [answer for answer in map(normalize_answer, answers) if answer] or [""]


def _token_f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)
