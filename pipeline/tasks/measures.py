"""Every measure of uncertainty, from the logits of all exits: in numpy, so that a study compares all of them on the same outputs.

`entropy`, `max_probability` and `margin` are what programs compute (`pipeline.model.uncertainty`, to which the tests hold them equal).
For question answering there are three more, which no program computes:

    unscaled_entropy: the entropy without regard to how many tokens may be an answer. Divided by the logarithm of that number, 1 is a
        uniform guess in a short and in a long passage; without, a short passage looks sure because it is short.
    span_entropy: of the distribution over all spans that the decoder may choose, divided by the logarithm of their number. Start and
        end are judged together: two possible answers give start and end two peaks each, and four pairs of which two are no spans.
    span_probability: 1 - the greatest probability in that distribution, what is left for every other answer. Tokens that have no chance
        do not move it, however many there are.

Patience is computed from answers instead, agreement from both, and a regression's change from its predictions: `pipeline.bundle.exit_rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

LONGEST = 512  # tokens; what `unscaled_entropy` takes for the number of candidates of every passage


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last dimension in float64; logits: [..., classes]."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def entropy_nats(logits: np.ndarray) -> np.ndarray:
    """Entropy of the softmax over the last dimension, in nats; logits: [..., classes]. Returns [...]."""
    p = probabilities(logits)
    return -(p * np.log(np.where(p > 0.0, p, 1.0))).sum(axis=-1)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy over its greatest value, log(classes); FastBERT, equation 6. logits: [..., classes]. Returns [...] in [0, 1]."""
    return entropy_nats(logits) / math.log(max(logits.shape[-1], 2))


def max_probability(logits: np.ndarray) -> np.ndarray:
    """1 - the greatest probability, over the greatest value of that. logits: [..., classes]. Returns [...] in [0, 1]."""
    return (1.0 - probabilities(logits).max(axis=-1)) / (1.0 - 1.0 / max(logits.shape[-1], 2))


def margin(logits: np.ndarray) -> np.ndarray:
    """1 - the difference of the two greatest probabilities. logits: [..., classes]. Returns [...] in [0, 1]."""
    p = np.sort(probabilities(logits), axis=-1)
    return 1.0 - (p[..., -1] - (p[..., -2] if p.shape[-1] > 1 else 0.0))


def span_max_probability(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """1 - the greatest start probability times the greatest end probability, over the greatest value of that."""
    product = probabilities(start).max(axis=-1) * probabilities(end).max(axis=-1)
    return (1.0 - product) / (1.0 - max(start.shape[-1], 2) ** -2)


# Of the logits of the tokens that may be an answer, start and end [..., candidates].
TOKEN_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "entropy": lambda start, end: 0.5 * (entropy(start) + entropy(end)),
    "max_probability": span_max_probability,
    "margin": lambda start, end: 0.5 * (margin(start) + margin(end)),
    "unscaled_entropy": lambda start, end: 0.5 * (entropy_nats(start) + entropy_nats(end)) / math.log(LONGEST),
}
# Of one distribution, [..., classes]: the labels', and the spans'.
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
    """Every measure of a classifier's exits.

    Args:
        logits: [..., exits, labels].
        temperatures: of each exit, which its logits are divided by; 1 when absent.

    Returns:
        by name, [..., exits].
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
    """Every measure of the exits of one window; a question takes those of its best one (`pipeline.bundle.exit_rule.question_uncertainty`).

    Args:
        start_logits, end_logits: [exits, length].
        answer_mask: bool, [length]; true at [CLS] where there may be no answer.
        max_answer_tokens: the longest span that the decoder chooses.
        temperatures: of each exit, which its logits are divided by; 1 when absent.

    Returns:
        by name, [exits].

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
    """First and last token of every span that the decoder may choose, [spans] each; "no answer" is the span of [CLS] alone.

    Args:
        answer_mask: bool, [length].
        max_answer_tokens: the longest span.
    """
    first, offset = np.divmod(np.arange(len(answer_mask) * max_answer_tokens), max_answer_tokens)
    last = first + offset
    inside = last < len(answer_mask)
    first, last = first[inside], last[inside]
    allowed = answer_mask[first] & answer_mask[last] & ((first > 0) | (last == 0))
    return first[allowed], last[allowed]
