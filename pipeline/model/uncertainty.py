"""An exit's uncertainty, as the programs on the phone compute it. The runner compares it with a threshold.

They use sums, maxima and exponentials only: XNNPACK and Core ML have no sort, and some devices have no top-k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.inputs import MASKED

TIE = 0.01  # logits this close to the largest are treated as near ties, see `margin`


def entropy(logits: Tensor) -> Tensor:
    """Returns the entropy of the softmax over the last dimension, in nats: [..., classes] -> [...].

    It is log(sum of exponentials) minus the expected logit, so it takes no logarithm of a probability. Core ML has no
    log_softmax. Its log(softmax) gives log(0) in float16 for a masked or very unlikely class, and 0 * -inf is NaN.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(dim=-1)
    return total.log() - (exponentials * shifted).sum(dim=-1) / total


def normalised_entropy(logits: Tensor) -> Tensor:
    """Returns the entropy divided by its largest possible value, log(classes) (FastBERT, equation 6).

    Args:
        logits: [..., classes], at least 2 classes.

    Returns:
        [...] in [0, 1].
    """
    return entropy(logits) / math.log(logits.shape[-1])


def answer_bias(answer_mask: Tensor) -> Tensor:
    """Turns a mask of possible answer tokens into a bias to add to logits.

    Args:
        answer_mask: [batch, length], true where a token may belong to an answer.

    Returns:
        [batch, length] float32, 0 at those tokens and -1e4 elsewhere.
    """
    return (1.0 - answer_mask.to(torch.float32)) * MASKED


def candidate_count(bias: Tensor) -> Tensor:
    """Counts the tokens that may belong to an answer, as a float: [batch, length] (see `answer_bias`) -> [batch]."""
    return (bias > MASKED / 2).to(bias.dtype).sum(dim=-1)


def span_uncertainty(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Returns the mean of the normalised entropies of start and end, over the tokens that may belong to an answer.

    Each entropy is divided by log(number of such tokens). So 1 means a uniform guess, in short and in long passages.

    Args:
        start_logits, end_logits: [batch, length].
        bias: [batch, length], see `answer_bias`.

    Returns:
        [batch] in [0, 1]; 0 where there is only one such token.
    """
    candidates = candidate_count(bias).clamp(min=2.0)
    return 0.5 * (entropy(start_logits + bias) + entropy(end_logits + bias)) / candidates.log()


def max_probability(logits: Tensor) -> Tensor:
    """Returns 1 minus the largest probability, scaled by its maximum, 1 - 1/classes.

    Args:
        logits: [..., classes], at least 2 classes.

    Returns:
        [...] in [0, 1].
    """
    classes = logits.shape[-1]
    return (1.0 - 1.0 / exponential_sum(logits)) * (classes / (classes - 1))


def span_max_probability(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Returns 1 minus (largest start probability times largest end probability), scaled by its maximum.

    The two are multiplied, not averaged: an answer is wrong if either end is. The product is also the score that
    `predict` shows.

    Args:
        start_logits, end_logits: [batch, length].
        bias: [batch, length], see `answer_bias`.

    Returns:
        [batch] in [0, 1]; 0 where only one token may belong to an answer.
    """
    uniform = candidate_count(bias).clamp(min=2.0).reciprocal()
    product = (exponential_sum(start_logits + bias) * exponential_sum(end_logits + bias)).reciprocal()
    return (1.0 - product) / (1.0 - uniform * uniform)


def margin(logits: Tensor) -> Tensor:
    """Returns 1 minus the difference of the two largest probabilities: [..., classes] -> [...] in [0, 1], 1 for a tie.

    With two classes it equals `max_probability`. Three logits within `TIE` of each other give 1 to within 0.003.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    # Marks what is near the largest, which includes itself. A test for equality could fail: a runtime may round the
    # maximum differently from the logits.
    near = (shifted >= -TIE).to(shifted.dtype)
    others = near.sum(dim=-1) - 1.0
    # If another logit is near, the second largest is the mean of the near ones without the largest, which is 0 after
    # the shift. Otherwise it is the largest of the rest.
    among = ((near * shifted).sum(dim=-1) / others.clamp(min=1.0)).exp() * others.clamp(min=0.0, max=1.0)
    rest = (shifted + near * MASKED).amax(dim=-1).exp()
    return 1.0 - (1.0 - torch.maximum(among, rest)) / shifted.exp().sum(dim=-1)


def span_margin(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Returns the mean of the margins of start and end. Arguments and shapes are those of `span_uncertainty`."""
    return 0.5 * (margin(start_logits + bias) + margin(end_logits + bias))


def exponential_sum(logits: Tensor) -> Tensor:
    """Returns the sum of exp(logit - largest logit), which is 1 / largest probability: [..., classes] -> [...]."""
    return (logits - logits.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)


@dataclass(frozen=True)
class Measure:
    """The two functions that compute a measure in a program.

    Attributes:
        labels: logits [..., classes] -> [...].
        spans: start_logits, end_logits, bias [batch, length] -> [batch].
    """

    labels: Callable[[Tensor], Tensor]
    spans: Callable[[Tensor, Tensor, Tensor], Tensor]


# Keyed by the names in `pipeline.names.Uncertainty`. For patience and agreement the programs give the entropy. The
# runner counts patience over successive answers (`pipeline.bundle.exit_rule.compared_uncertainty`); agreement
# multiplies the two. "change" is missing: the runner computes it, because a regression's single number has no
# distribution to measure.
MEASURES: dict[str, Measure] = {
    "entropy": Measure(normalised_entropy, span_uncertainty),
    "max_probability": Measure(max_probability, span_max_probability),
    "margin": Measure(margin, span_margin),
    "patience": Measure(normalised_entropy, span_uncertainty),
    "agreement": Measure(normalised_entropy, span_uncertainty),
}
