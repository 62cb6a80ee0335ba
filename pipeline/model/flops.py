"""What a model costs in floating-point operations: embeddings, layers and heads, for an input of a length that leaves at a depth.

Counted as papers do (FastBERT, Liu et al. 2020, table 1) and as `torch.utils.flop_counter` does: linear layers and attention's two
products, a multiplication with its addition as 2. Look-ups, sums, norms and activations are left out. At FastBERT's 128 tokens and
BERT-base's width the attention's products, which its table passes over, are 2.7 % of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from pipeline.model.encoder import EncoderConfig
from pipeline.model.heads import HEADS
from pipeline.names import Task
from pipeline.tasks import get_task


def embedding_flops(config: EncoderConfig, length: int) -> int:
    """0, whatever the length: rows are looked up and added, nothing is multiplied."""
    return 0


def layer_flops(config: EncoderConfig, length: int) -> int:
    """One transformer layer on `length` tokens."""
    width = config.hidden_size
    weights = 4 * width * width + 2 * width * config.intermediate_size  # query, key, value and output; feed-forward
    return 2 * length * weights + 4 * length * length * width


@lru_cache(maxsize=4096)
def head_flops(task: Task, kind: str, config: EncoderConfig, labels: int, length: int) -> int:
    """One exit head of a kind, at its default width, on `length` tokens. KeyError if the kind is unknown."""
    with torch.device("meta"):
        return HEADS[get_task(task).head_family][kind](config, labels).flops(length)


def head_cost(kind: str, task: Task, config: EncoderConfig, labels: int, length: int = 128) -> float:
    """A head as a share of one layer: 0.03 is 3 %, the most that a head may take at 128 tokens. KeyError if the kind is unknown."""
    return head_flops(task, kind, config, labels, length) / layer_flops(config, length)


def model_flops(
    config: EncoderConfig,
    head_kind: str,
    task: Task,
    labels: int,
    length: int,
    depth: float,
    exit_layers: Sequence[int] | None = None,
) -> float:
    """What an input costs that leaves after `depth` segments: embeddings, the layers up to there, and every head on the way.

    Args:
        labels: number of classes; not read for question answering.
        length: tokens of the input; a passage of several windows costs the sum of theirs.
        depth: segments run, from 0 to their number. Between two whole numbers the next segment counts for its share, so that where
            segments are alike a mean depth gives the mean cost of inputs of one length.
        exit_layers: after which layers, from 1, a head stands; absent: after every one.

    Raises:
        ValueError: there are fewer segments than `depth`, or it is negative.
    """
    exit_layers = tuple(exit_layers or range(1, config.layers + 1))
    if not 0 <= depth <= len(exit_layers):
        raise ValueError(f"depth {depth} is not from 0 to {len(exit_layers)} segments")
    layer, head = layer_flops(config, length), head_flops(task, head_kind, config, labels, length)
    total, before = float(embedding_flops(config, length)), 0
    for segment, last in enumerate(exit_layers):
        share = min(max(depth - segment, 0.0), 1.0)
        total += share * ((last - before) * layer + head)
        before = last
    return total
