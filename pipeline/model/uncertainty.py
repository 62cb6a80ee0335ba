"""How unsure an exit is: the number that the loop on the phone compares with a threshold, by every measure that a program computes.

All of it is made of sums, maxima and exponentials: XNNPACK and Core ML have no sort, and not every device a top-k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.inputs import MASKED

TIE = 0.01  # logits closer than that to the greatest are told apart less exactly, see `margin`


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats; logits: [..., classes]. Returns [...].

    log(sum of exponentials) minus the mean logit: no logarithm of a probability. Core ML has no log_softmax, its log(softmax) gives
    log(0) in float16 at a masked or hopeless class, and 0 * -inf is NaN.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(dim=-1)
    return total.log() - (exponentials * shifted).sum(dim=-1) / total


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension divided by its greatest value, log(classes); FastBERT, equation 6.

    Args:
        logits: [..., classes], at least 2 classes.

    Returns:
        [...] in [0, 1].
    """
    return entropy(logits) / math.log(logits.shape[-1])


def answer_bias(answer_mask: Tensor) -> Tensor:
    """answer_mask: [batch, length], true where a token may be (in) an answer. Returns [batch, length], 0 there, else -1e4."""
    return (1.0 - answer_mask.to(torch.float32)) * MASKED


def candidates_of(bias: Tensor) -> Tensor:
    """How many tokens may be an answer, as a float; bias: [batch, length], see `answer_bias`. Returns [batch]."""
    return (bias > MASKED / 2).to(bias.dtype).sum(dim=-1)


def span_uncertainty(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Mean of the normalised entropies of start and end over the tokens that may be an answer.

    Each entropy is divided by log(number of such tokens), so that 1 means a uniform guess in a short and in a long passage.

    Args:
        start_logits, end_logits: [batch, length].
        bias: [batch, length], see `answer_bias`.

    Returns:
        [batch] in [0, 1]; 0 where only one token may be an answer.
    """
    candidates = candidates_of(bias).clamp(min=2.0)
    return 0.5 * (entropy(start_logits + bias) + entropy(end_logits + bias)) / candidates.log()


def max_probability(logits: Tensor) -> Tensor:
    """1 - the greatest probability, divided by the greatest value of that, 1 - 1/classes: what is left to be wrong about.

    Args:
        logits: [..., classes], at least 2 classes.

    Returns:
        [...] in [0, 1].
    """
    classes = logits.shape[-1]
    return (1.0 - 1.0 / total_of(logits)) * (classes / (classes - 1))


def span_max_probability(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """1 - the greatest start probability times the greatest end probability, divided by the greatest value of that.

    A product and not a mean: an answer is wrong when either of its ends is, and the product is the score that `predict` shows.

    Args:
        start_logits, end_logits: [batch, length].
        bias: [batch, length], see `answer_bias`.

    Returns:
        [batch] in [0, 1]; 0 where only one token may be an answer.
    """
    fewest = candidates_of(bias).clamp(min=2.0).reciprocal()
    product = (total_of(start_logits + bias) * total_of(end_logits + bias)).reciprocal()
    return (1.0 - product) / (1.0 - fewest * fewest)


def margin(logits: Tensor) -> Tensor:
    """1 - the difference of the two greatest probabilities; logits: [..., classes]. Returns [...] in [0, 1], 1 for a tie.

    With two classes it is `max_probability`. Three that lie within `TIE` of each other give 1 up to 0.003.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    # What is near the greatest, itself included: not what equals it, since a runtime may round the maximum otherwise than the logits.
    near = (shifted >= -TIE).to(shifted.dtype)
    others = near.sum(dim=-1) - 1.0
    # The second is among those near, all of which but the greatest (0) add up to it, or else the greatest of the rest.
    among = ((near * shifted).sum(dim=-1) / others.clamp(min=1.0)).exp() * others.clamp(min=0.0, max=1.0)
    rest = (shifted + near * MASKED).amax(dim=-1).exp()
    return 1.0 - (1.0 - torch.maximum(among, rest)) / shifted.exp().sum(dim=-1)


def span_margin(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Mean of the margins of start and end over the tokens that may be an answer; see `span_uncertainty` for the arguments."""
    return 0.5 * (margin(start_logits + bias) + margin(end_logits + bias))


def total_of(logits: Tensor) -> Tensor:
    """One over the greatest probability: the sum of exponentials relative to the greatest. logits: [..., classes]. Returns [...]."""
    return (logits - logits.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)


@dataclass(frozen=True)
class Measure:
    """How a measure is computed in a program.

    Attributes:
        labels: logits [..., classes] -> [...].
        spans: start_logits, end_logits, bias [batch, length] -> [batch].
    """

    labels: Callable[[Tensor], Tensor]
    spans: Callable[[Tensor, Tensor, Tensor], Tensor]


# By the names of `pipeline.names.Uncertainty`. Patience is counted by the host, from one exit's answer to the next
# (`pipeline.bundle.exit_rule.compared_uncertainty`); its programs give the entropy, to look at, which by agreement it is multiplied with. Change, the host's, too, is not here: a
# number without a distribution is as sure as any other, so a regression's programs give nothing.
MEASURES: dict[str, Measure] = {
    "entropy": Measure(normalised_entropy, span_uncertainty),
    "max_probability": Measure(max_probability, span_max_probability),
    "margin": Measure(margin, span_margin),
    "patience": Measure(normalised_entropy, span_uncertainty),
    "agreement": Measure(normalised_entropy, span_uncertainty),
}
