"""Rewrites the programs in the layout that suits the Neural Engine: [1, channels, 1, length].

The rewrite of `pipeline.model.segments.Programs` is exact and has the same weights. It follows Apple's "Deploying
Transformers on the Apple Neural Engine" (2022):

- Four dimensions with the tokens last: the last axis is padded to 64 bytes, and should be the long one.
- Linear layers as 1x1 convolutions, which the compiler maps best.
- Attention head by head, in the two contractions that Core ML has without a reshape.
- One change of layout in a layer, the transpose of the keys.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.encoder import ExportLayer
from pipeline.model.heads import AttentionSpan, PooledClassifier
from pipeline.model.segments import EmbedProgram, Programs, SegmentProgram, token_types
from quantize.int8_inputs import Int8InputLinear

# A layer norm's epsilon of 1e-12 is 0 in float16. This is float16's smallest number; added to a variance of about 1 it
# changes no bit of float32.
MIN_EPS = 2.0**-24


def channels_first(programs: Programs) -> Programs:
    """Returns a copy of float programs in the new layout.

    Hidden states are [1, hidden_size, 1, length], and the attention bias is [1, length, 1, 1].
    """
    segments = []
    for segment in programs.segments:
        assert isinstance(segment, SegmentProgram)  # a ModuleList does not know what it holds
        layers: list[nn.Module] = [ChannelsFirstLayer(cast(ExportLayer, layer)) for layer in segment.layers]
        head = HEADS.get(type(segment.head), TokensFirst)(segment.head)
        temperature = 1.0 / float(segment.inverse_temperature)
        segments.append(SegmentProgram(segment.task, layers, head, temperature, programs.uncertainty))
    embed = cast(EmbedProgram, ChannelsFirstEmbed(programs.embed))  # it has the same interface
    return Programs(programs.task, embed, segments, programs.uncertainty).eval()


def to_channels_first(hidden: Tensor) -> Tensor:
    """[batch, length, channels] -> [batch, channels, 1, length]."""
    return hidden.transpose(1, 2).unsqueeze(2)


def to_tokens_first(hidden: Tensor) -> Tensor:
    """[batch, channels, 1, length] -> [batch, length, channels]."""
    return hidden.squeeze(2).transpose(1, 2)


def convolution(linear: nn.Linear | Int8InputLinear, rows: slice = slice(None)) -> nn.Conv2d:
    """Returns a linear layer, or some of its outputs, as a 1x1 convolution, without the rounding of its inputs."""
    linear = plain(linear)
    weight, bias = linear.weight[rows].detach(), linear.bias[rows].detach()
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.load_state_dict({"weight": weight[:, :, None, None].clone(), "bias": bias.clone()})
    return layer


def plain(linear: nn.Linear | Int8InputLinear) -> nn.Linear:
    return linear.linear if isinstance(linear, Int8InputLinear) else linear


def input_rounding(linear: nn.Linear | Int8InputLinear) -> nn.Module:
    """Returns the rounding of a linear layer's inputs to int8, or an identity if it does not round them."""
    if not isinstance(linear, Int8InputLinear):
        return nn.Identity()
    inputs = copy.deepcopy(linear.inputs)
    inputs.reciprocal = inputs.reciprocal[None, :, None, None]
    return inputs


class ChannelsFirstEmbed(nn.Module):
    """input_ids [1, length] -> hidden [1, hidden_size, 1, length]."""

    def __init__(self, embed: EmbedProgram):
        super().__init__()
        self.embeddings, self.separator = embed.embeddings, embed.separator

    def forward(self, input_ids: Tensor) -> Tensor:
        return to_channels_first(self.embeddings(input_ids, token_types(input_ids, self.separator)))


class ChannelNorm(nn.Module):
    """A layer norm over dimension 1, spelled out because Core ML's own normalizes the last dimensions."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.eps = max(norm.eps, MIN_EPS)
        self.register_buffer("weight", norm.weight.detach()[None, :, None, None].clone())
        self.register_buffer("bias", norm.bias.detach()[None, :, None, None].clone())

    def forward(self, hidden: Tensor) -> Tensor:
        centred = hidden - hidden.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class ChannelsFirstLayer(nn.Module):
    """A layer: (hidden [1, hidden_size, 1, length], bias [1, length, 1, 1]) -> hidden."""

    def __init__(self, layer: ExportLayer):
        super().__init__()
        self.head_dim, width = layer.head_dim, plain(layer.qkv).in_features
        self.qkv_inputs, self.attention_out_inputs = input_rounding(layer.qkv), input_rounding(layer.attention_out)
        self.ffn_in_inputs, self.ffn_out_inputs = input_rounding(layer.ffn_in), input_rounding(layer.ffn_out)
        self.query, self.key, self.value = (
            convolution(layer.qkv, slice(part * width, (part + 1) * width)) for part in range(3)
        )
        self.attention_out, self.attention_norm = convolution(layer.attention_out), ChannelNorm(layer.attention_norm)
        self.ffn_in, self.ffn_out = convolution(layer.ffn_in), convolution(layer.ffn_out)
        self.ffn_norm = ChannelNorm(layer.ffn_norm)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        inputs = self.qkv_inputs(hidden)
        context = attend(self.query(inputs), self.key(inputs), self.value(inputs), bias, self.head_dim)
        hidden = self.attention_norm(hidden + self.attention_out(self.attention_out_inputs(context)))
        inner = F.gelu(self.ffn_in(self.ffn_in_inputs(hidden)))
        return self.ffn_norm(hidden + self.ffn_out(self.ffn_out_inputs(inner)))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, head_dim: int) -> Tensor:
    """Computes attention head by head, in the one form of rank 4 that Core ML's einsum has, "nchw,nwhu->nchu".

    Args:
        query, key, value: [1, channels, 1, length]; the query includes the scale.
        bias: [1, length, 1, 1], of the keys.
    """
    contexts = []
    # The order of these operations is that of the program's bytes.
    queries = torch.split(query, head_dim, 1)
    keys = torch.split(key.transpose(1, 3), head_dim, 3)
    values = torch.split(value, head_dim, 1)
    for head_query, head_key, head_value in zip(queries, keys, values):
        scores = torch.einsum("bchq,bkhc->bkhq", head_query, head_key) + bias  # [1, keys, 1, queries]
        contexts.append(torch.einsum("bkhq,bchk->bchq", torch.softmax(scores, dim=1), head_value))
    return torch.cat(contexts, dim=1)


class ChannelsFirstPooled(nn.Module):
    """`PooledClassifier`, with the pooling of all queries as one contraction with the hidden states."""

    def __init__(self, head: PooledClassifier):
        super().__init__()
        queries, width = head.score.out_features, head.value.out_features
        self.score, self.value = convolution(head.score), convolution(head.value)
        # The linear layer over the narrow states of all queries, [queries, width], is a convolution over the queries.
        self.out = nn.Conv2d(width, head.out.out_features, (1, queries))
        weight = head.out.weight.detach().view(-1, queries, width).transpose(1, 2).unsqueeze(2)
        self.out.load_state_dict({"weight": weight.clone(), "bias": head.out.bias.detach().clone()})

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [1, hidden_size, 1, length]; bias: [1, length, 1, 1]. Returns logits [1, labels]."""
        weights = torch.softmax(self.score(hidden).transpose(1, 3) + bias, dim=1)  # [1, length, 1, queries]
        pooled = torch.einsum("bkhq,bchk->bchq", weights, hidden)  # [1, hidden_size, 1, queries]
        return self.out(torch.tanh(self.value(pooled))).flatten(1)


class ChannelsFirstSpan(nn.Module):
    """`AttentionSpan`, with its one attention head computed as those of a layer."""

    def __init__(self, head: AttentionSpan):
        super().__init__()
        self.scale, self.width = head.scale, head.mix.out_features
        self.qkv, self.mix, self.out, self.direct = (
            convolution(linear) for linear in (head.qkv, head.mix, head.out, head.direct)
        )

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [1, hidden_size, 1, length]; bias: [1, length, 1, 1]. Returns start and end logits [1, length, 2]."""
        query, key, value = self.qkv(hidden).split(self.width, 1)
        seen = attend(query * self.scale, key, value, bias, self.width)
        logits = self.out(F.gelu(self.mix(torch.cat([seen, query], dim=1)))) + self.direct(hidden)  # [1, 2, 1, length]
        return to_tokens_first(logits)


class TokensFirst(nn.Module):
    """Any other head, unchanged: the hidden states are brought back to its layout."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        return self.head(to_tokens_first(hidden), bias.reshape(1, 1, -1))


# Any: each takes the head that is its key.
HEADS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    PooledClassifier: ChannelsFirstPooled,
    AttentionSpan: ChannelsFirstSpan,
}
