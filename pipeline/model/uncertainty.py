"""How unsure an exit is: the number that the loop on the phone compares with a threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.data.inputs import MASKED


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


def span_uncertainty(start_logits: Tensor, end_logits: Tensor, bias: Tensor) -> Tensor:
    """Mean of the normalised entropies of start and end over the tokens that may be an answer.

    Each entropy is divided by log(number of such tokens), so that 1 means a uniform guess in a short and in a long passage.

    Args:
        start_logits, end_logits: [batch, length].
        bias: [batch, length], see `answer_bias`.

    Returns:
        [batch] in [0, 1]; 0 where only one token may be an answer.
    """
    candidates = (bias > MASKED / 2).to(bias.dtype).sum(dim=-1).clamp(min=2.0)
    return 0.5 * (entropy(start_logits + bias) + entropy(end_logits + bias)) / candidates.log()
