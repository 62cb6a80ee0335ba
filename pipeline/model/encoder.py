"""The transformer encoder of BERT and DistilBERT, for training and for export.

On the same weights it computes what Hugging Face's `BertModel` and `DistilBertModel` compute (post-layer-norm
transformer, Devlin et al. 2019; without token types and pooler it is DistilBERT, Sanh et al. 2019). Two things differ
in form, not in value: query, key and value are one matrix, and the mask is one additive bias instead of a chain of
boolean operators.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.inputs import MASKED


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder. `token_types` is 0 for an encoder without token-type embeddings (DistilBERT)."""

    vocab_size: int = 30522
    hidden_size: int = 768
    layers: int = 6
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    token_types: int = 0
    layer_norm_eps: float = 1e-12

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def to_dict(self) -> dict[str, Any]:
        """Returns the sizes by field name, for JSON."""
        return asdict(self)

    def with_(self, **changes: Any) -> EncoderConfig:
        """Returns a copy with some fields changed."""
        return replace(self, **changes)


def attention_bias(mask: Tensor) -> Tensor:
    """Turns a padding mask into a bias to add to attention scores.

    Args:
        mask: [batch, length], true or 1 where a token is real.

    Returns:
        [batch, 1, length] float32, 0 at real tokens and -1e4 at padding.
    """
    return (1.0 - mask.to(torch.float32)).unsqueeze(1) * MASKED


class Embeddings(nn.Module):
    """Sum of word, position and (if the config has any) token-type embeddings, then a layer norm."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.token_types, config.hidden_size) if config.token_types else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Embeds tokens.

        Args:
            input_ids: [batch, length] integers.
            token_type_ids: [batch, length] integers; None means type 0 everywhere.

        Returns:
            hidden states, [batch, length, hidden_size].
        """
        hidden = self.word(input_ids)
        # Quantized programs hold the position embeddings in float16.
        hidden = hidden + self.position.weight[: input_ids.shape[1]].to(hidden.dtype)
        if self.token_type is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type(types)
        return self.norm(hidden)


# Attention scores of a batch, [batch, heads, length, length], that plain products may keep: 32 MB in bfloat16.
MOST_PLAIN_SCORES = 2**24


def plain_is_faster(query: Tensor) -> bool:
    """Returns whether two matrix products beat torch's fused attention, which they do in bfloat16 on a CPU.

    The fused kernel does not use the matrix units of the processor (AMX) in its backward pass. A training step of
    MiniLM takes half the time with plain products. They keep all scores for the backward pass, so large batches stay
    with the fused kernel.

    Args:
        query: [batch, heads, length, head_dim].
    """
    batch, heads, length, _ = query.shape
    small = batch * heads * length * length <= MOST_PLAIN_SCORES
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and small


class Layer(nn.Module):
    """One transformer layer: self-attention, then feed-forward. A residual connection and a layer norm follow each."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.scale = config.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            hidden: [batch, length, hidden_size].
            bias: [batch, 1, length], see `attention_bias`.

        Returns:
            the new hidden states, [batch, length, hidden_size].
        """
        context = self.attend(self.qkv(hidden), bias)
        hidden = self.attention_norm(hidden + self.attention_out(context))
        return self.ffn_norm(hidden + self.ffn_out(F.gelu(self.ffn_in(hidden))))

    def attention_logits(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Returns the attention scores before the softmax, [batch, heads, length, length].

        The fused kernel in `attend` does not expose them, so they are computed only for losses that compare attention.
        The arguments are those of `forward`.
        """
        batch, length, _ = hidden.shape
        query, key = self.qkv(hidden).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)[:2]
        return query @ key.transpose(-1, -2) * self.scale + bias.unsqueeze(1)

    def attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Computes multi-head attention: with torch's fused kernel, or with matrix products where they are faster.

        Args:
            qkv: queries, keys and values side by side, [batch, length, 3 * hidden_size].
            bias: [batch, 1, length].

        Returns:
            [batch, length, hidden_size].
        """
        batch, length, _ = qkv.shape
        # [3, batch, heads, length, head_dim]
        query, key, value = qkv.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mask = bias.unsqueeze(1).to(query.dtype)
        if plain_is_faster(query):
            scores = (query * self.scale) @ key.transpose(-1, -2) + mask  # [batch, heads, length, length]
            context = torch.softmax(scores, dim=-1).to(value.dtype) @ value
        else:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return context.transpose(1, 2).reshape(batch, length, -1)


class ExportLayer(Layer):
    """The layer in the form that is exported: attention as two matrix products of rank 3.

    Backends run a `bmm` of rank 3 as one operator; torch's fused attention decomposes into rank 4 with broadcast
    copies. The scale is folded into the query weights, which changes the result by rounding only
    (tests/model/test_encoder.py).
    """

    def attend(self, qkv: Tensor | tuple[Tensor, Tensor, Tensor], bias: Tensor) -> Tensor:
        """Computes multi-head attention. `qkv` may also be three tensors, [batch, length, hidden_size] each."""
        parts = qkv.chunk(3, dim=-1) if isinstance(qkv, Tensor) else qkv
        batch, length, _ = parts[0].shape
        query, key, value = (part.view(batch, length, self.heads, self.head_dim) for part in parts)
        # [batch * heads, length, head_dim]
        query, value = (part.transpose(1, 2).reshape(-1, length, self.head_dim) for part in (query, value))
        # Transposed for the product right away: one permutation instead of two.
        key = key.permute(0, 2, 3, 1).reshape(-1, self.head_dim, length)
        if batch > 1:  # exported programs have batch 1; calibration runs the same module on larger batches
            bias = bias.repeat_interleave(self.heads, dim=0)
        scores = torch.bmm(query, key) + bias  # [batch * heads, length, length]
        context = torch.bmm(torch.softmax(scores, dim=-1), value)
        context = context.view(batch, self.heads, length, self.head_dim).transpose(1, 2)
        return context.reshape(batch, length, -1)

    @classmethod
    def of(cls, layer: Layer) -> ExportLayer:
        """Returns the export form of a trained layer. The two share no memory."""
        config = EncoderConfig(
            hidden_size=layer.qkv.in_features,
            heads=layer.heads,
            intermediate_size=layer.ffn_in.out_features,
            layer_norm_eps=layer.ffn_norm.eps,
        )
        export = cls(config)
        state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        width = config.hidden_size
        state["qkv.weight"][:width] *= layer.scale
        state["qkv.bias"][:width] *= layer.scale
        export.load_state_dict(state)
        return export.eval()


class Encoder(nn.Module):
    """Embeddings and transformer layers. `forward` returns the hidden states at every depth."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.apply(initialise)

    def forward(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        """Returns the hidden states after the embeddings and after every layer.

        Args:
            input_ids: [batch, length] integers.
            mask: [batch, length], 1 at real tokens.
            token_type_ids: [batch, length], None for all 0. An encoder without token types ignores them.

        Returns:
            layers + 1 tensors [batch, length, hidden_size]; the first follows the embeddings, the last is the
            encoder's output.
        """
        hidden = self.embeddings(input_ids, token_type_ids)
        bias = attention_bias(mask)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, bias)
            states.append(hidden)
        return states


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Initialises a linear or embedding module as BERT does: normally distributed weights, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def parameter_count(module: nn.Module) -> int:
    """Counts the parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())
