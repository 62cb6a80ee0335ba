"""SQuAD's exact match and token F1 (Rajpurkar et al. 2016, section 6.1; 2018 for questions without an answer)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an, the, with single spaces: in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the answers, else 0.0; no answers means that "" is right."""
    return float(normalize_answer(prediction) in _normalized(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 against any of the answers, in [0, 1]; no answers means that "" is right."""
    return max(_token_f1(normalize_answer(prediction).split(), answer.split()) for answer in _normalized(answers))


def _normalized(answers: Sequence[str]) -> list[str]:
    """The answers normalised; those of which nothing stays do not count, as in the v2.0 script's filter."""
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
