"""Computes all measures of uncertainty in numpy, from the exits' logits. A study compares them on the same outputs.

The programs compute `entropy`, `max_probability` and `margin` too (`pipeline.model.uncertainty`; tests hold the two
equal). Question answering has three more, which no program computes:

    unscaled_entropy: the entropy, not divided by the logarithm of the number of tokens that may be an answer. With the
        division, 1 is a uniform guess in any passage. Without it, a short passage looks certain because it is short.
    span_entropy: of the distribution over all spans that the decoder may choose, divided by the logarithm of their
        number. It judges start and end together. With two likely answers, start and end have two peaks each, so four
        pairs; two of these are no valid spans.
    span_probability: 1 - the largest probability in that distribution, scaled. Tokens that cannot be an answer do not
        change it, however many there are.

Patience, agreement and change compare successive exits, see `pipeline.bundle.exit_rule` and `pipeline.exits.measures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

MAX_CANDIDATES = 512  # tokens; `unscaled_entropy` divides by the logarithm of this for every passage


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last dimension in float64, [..., classes]."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def entropy_nats(logits: np.ndarray) -> np.ndarray:
    """Returns the entropy of the softmax over the last dimension, in nats: [..., classes] -> [...]."""
    p = probabilities(logits)
    return -(p * np.log(np.where(p > 0.0, p, 1.0))).sum(axis=-1)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Returns the entropy divided by log(classes) (FastBERT, equation 6): [..., classes] -> [...] in [0, 1]."""
    return entropy_nats(logits) / math.log(max(logits.shape[-1], 2))


def max_probability(logits: np.ndarray) -> np.ndarray:
    """Returns 1 minus the largest probability, scaled by its maximum: [..., classes] -> [...] in [0, 1]."""
    return (1.0 - probabilities(logits).max(axis=-1)) / (1.0 - 1.0 / max(logits.shape[-1], 2))


def margin(logits: np.ndarray) -> np.ndarray:
    """Returns 1 minus the difference of the two largest probabilities: [..., classes] -> [...] in [0, 1]."""
    p = np.sort(probabilities(logits), axis=-1)
    return 1.0 - (p[..., -1] - (p[..., -2] if p.shape[-1] > 1 else 0.0))


def span_max_probability(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns 1 minus (largest start probability times largest end probability), scaled by its maximum.

    Args:
        start, end: [..., candidates].
    """
    product = probabilities(start).max(axis=-1) * probabilities(end).max(axis=-1)
    return (1.0 - product) / (1.0 - max(start.shape[-1], 2) ** -2)


# Functions of the start and end logits of the tokens that may be an answer, [..., candidates] each.
TOKEN_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "entropy": lambda start, end: 0.5 * (entropy(start) + entropy(end)),
    "max_probability": span_max_probability,
    "margin": lambda start, end: 0.5 * (margin(start) + margin(end)),
    "unscaled_entropy": lambda start, end: 0.5 * (entropy_nats(start) + entropy_nats(end)) / math.log(MAX_CANDIDATES),
}
# Functions of the logits of one distribution, [..., classes]: over the labels, and over the spans.
LABEL_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "entropy": entropy,
    "max_probability": max_probability,
    "margin": margin,
}
SPAN_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "span_entropy": entropy,
    "span_probability": max_probability,
}


def label_measures(logits: np.ndarray, temperatures: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """Computes all measures for a classifier's exits.

    Args:
        logits: [..., exits, labels].
        temperatures: one per exit, by which its logits are divided; 1 if absent.

    Returns:
        the measures by name, [..., exits] each.
    """
    if temperatures is not None:
        logits = logits / np.asarray(temperatures)[:, None]
    return {name: measure(logits) for name, measure in LABEL_MEASURES.items()}


def window_measures(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    answer_mask: np.ndarray,
    max_answer_tokens: int,
    temperatures: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """Computes all measures for the exits of one window.

    A question takes those of its best window, see `QuestionAnswering.decisive_input`.

    Args:
        start_logits, end_logits: [exits, length].
        answer_mask: [length] bool; true at [CLS] if "no answer" is allowed.
        max_answer_tokens: the longest span that the decoder chooses.
        temperatures: one per exit, by which its logits are divided; 1 if absent.

    Returns:
        the measures by name, [exits] each.

    Raises:
        ValueError: no token may be an answer.
    """
    answer_mask = np.asarray(answer_mask, dtype=bool)
    if not answer_mask.any():
        raise ValueError("answer_mask allows no token")
    if temperatures is not None:
        scale = np.asarray(temperatures)[:, None]
        start_logits, end_logits = start_logits / scale, end_logits / scale
    candidates = np.flatnonzero(answer_mask)
    starts, ends = start_logits[:, candidates], end_logits[:, candidates]
    measures = {name: measure(starts, ends) for name, measure in TOKEN_MEASURES.items()}
    first, last = span_positions(answer_mask, max_answer_tokens)
    scores = start_logits[:, first] + end_logits[:, last]  # [exits, spans]
    return measures | {name: measure(scores) for name, measure in SPAN_MEASURES.items()}


def span_positions(answer_mask: np.ndarray, max_answer_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns first and last token of every span that the decoder may choose, [spans] each.

    "No answer" is the span of [CLS] alone.

    Args:
        answer_mask: [length] bool.
        max_answer_tokens: the longest span.
    """
    first, offset = np.divmod(np.arange(len(answer_mask) * max_answer_tokens), max_answer_tokens)
    last = first + offset
    inside = last < len(answer_mask)
    first, last = first[inside], last[inside]
    allowed = answer_mask[first] & answer_mask[last] & ((first > 0) | (last == 0))
    return first[allowed], last[allowed]
