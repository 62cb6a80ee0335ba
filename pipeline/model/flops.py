"""Counts a model's floating-point operations for an input of a given length that leaves at a given depth.

The count follows the papers (FastBERT, Liu et al. 2020, table 1) and `torch.utils.flop_counter`. It includes linear
layers and the two matrix products of attention; a multiply-add counts as 2. It leaves out look-ups, sums, norms and
activations. FastBERT's table omits the attention products, which are 2.7 % of a layer at its 128 tokens and
BERT-base's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from pipeline.model.encoder import EncoderConfig
from pipeline.model.heads import HEADS, head_kinds
from pipeline.names import Task
from pipeline.tasks import get_task


def embedding_flops(config: EncoderConfig, length: int) -> int:
    """Returns 0 for any length: embeddings are looked up and added, nothing is multiplied."""
    return 0


def layer_flops(config: EncoderConfig, length: int) -> int:
    """Returns the operations of one transformer layer on `length` tokens."""
    width = config.hidden_size
    # Query, key, value and output projections, then the feed-forward.
    weights = 4 * width * width + 2 * width * config.intermediate_size
    return 2 * length * weights + 4 * length * length * width


@lru_cache(maxsize=4096)
def head_flops(task: Task, kind: str, config: EncoderConfig, labels: int, length: int) -> int:
    """Returns the operations of one exit head, at its default width, on `length` tokens.

    Raises:
        KeyError: the task has no head of that kind.
    """
    with torch.device("meta"):
        return HEADS[get_task(task).head_family][kind](config, labels).flops(length)


def model_flops(
    config: EncoderConfig,
    head_kind: str,
    task: Task,
    labels: int,
    length: int,
    depth: float,
    exit_layers: Sequence[int] | None = None,
) -> float:
    """Returns the operations for an input that leaves after `depth` segments: embeddings, layers and heads up to there.

    Args:
        head_kind: see `head_kinds`.
        labels: number of classes; ignored for question answering.
        length: tokens of the input. A passage in several windows costs the sum over its windows.
        depth: number of segments run. A fraction counts that share of the next segment. So if all segments are alike,
            the mean depth of inputs of one length gives their mean cost.
        exit_layers: the layers (from 1) that a head follows; by default every layer.

    Raises:
        ValueError: `depth` is negative or above the number of segments.
    """
    exit_layers = tuple(exit_layers or range(1, config.layers + 1))
    if not 0 <= depth <= len(exit_layers):
        raise ValueError(f"depth {depth} is not from 0 to {len(exit_layers)} segments")
    layer = layer_flops(config, length)
    heads = [head_flops(task, kind, config, labels, length) for kind in head_kinds(head_kind, len(exit_layers))]
    total, before = float(embedding_flops(config, length)), 0
    for segment, last in enumerate(exit_layers):
        share = min(max(depth - segment, 0.0), 1.0)
        total += share * ((last - before) * layer + heads[segment])
        before = last
    return total
