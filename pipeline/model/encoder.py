"""The one encoder: BERT's and DistilBERT's layers, written so that the same module trains and is exported.

It computes what Hugging Face's `BertModel` and `DistilBertModel` compute on the same weights (post-layer-norm transformer,
Devlin et al. 2019; without token types and pooler it is DistilBERT, Sanh et al. 2019). Two things differ in form, not in value:
query, key and value are one matrix, and the mask is one additive bias instead of a chain of boolean operators.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.inputs import MASKED


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; `token_types` is 0 where there are no token-type embeddings (DistilBERT)."""

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
        return self.hidden_size // self.heads

    def to_dict(self) -> dict:
        return asdict(self)

    def with_(self, **changes) -> EncoderConfig:
        return replace(self, **changes)


def attention_bias(mask: Tensor) -> Tensor:
    """The additive bias of a padding mask.

    Args:
        mask: [batch, length], true or 1 where a token is real.

    Returns:
        [batch, 1, length] float32, 0 at real tokens and -1e4 at padding.
    """
    return (1.0 - mask.to(torch.float32)).unsqueeze(1) * MASKED


class Embeddings(nn.Module):
    """Word + position (+ token-type) embeddings, then layer norm."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.token_types, config.hidden_size) if config.token_types else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """input_ids, token_type_ids: [batch, length] integers. Returns hidden [batch, length, hidden_size]."""
        hidden = self.word(input_ids)
        hidden = hidden + self.position.weight[: input_ids.shape[1]].to(
            hidden.dtype
        )  # of float16 in a quantized program
        if self.token_type is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type(types)
        return self.norm(hidden)


class Layer(nn.Module):
    """One transformer layer: self-attention and feed-forward, each with a residual and a layer norm after it."""

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
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length], see `attention_bias`. Returns hidden."""
        context = self.attend(self.qkv(hidden), bias)
        hidden = self.attention_norm(hidden + self.attention_out(context))
        return self.ffn_norm(hidden + self.ffn_out(F.gelu(self.ffn_in(hidden))))

    def attention_logits(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """The scores whose softmax is this layer's attention; arguments as of `forward`. Returns [batch, heads, length, length].

        The fused kernel of `attend` keeps them to itself; only a loss that compares attention pays for having them.
        """
        batch, length, _ = hidden.shape
        query, key = self.qkv(hidden).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)[:2]
        return query @ key.transpose(-1, -2) * self.scale + bias.unsqueeze(1)

    def attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Multi-head attention by torch's fused kernel; qkv: [batch, length, 3 * hidden_size]."""
        batch, length, _ = qkv.shape
        # [3, batch, heads, length, head_dim]
        query, key, value = qkv.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.unsqueeze(1).to(query.dtype), scale=self.scale
        )
        return context.transpose(1, 2).reshape(batch, length, -1)


class ExportLayer(Layer):
    """The same layer, its attention spelled out as two matrix products of rank 3.

    Delegates take `bmm` of rank 3 whole; torch's fused attention decomposes into rank 4 with broadcast copies. The scale is
    folded into the query's weights, which changes the result by rounding only (tests/model/test_encoder.py).
    """

    def attend(self, qkv: Tensor | tuple[Tensor, Tensor, Tensor], bias: Tensor) -> Tensor:
        """The same; qkv may come in its three parts, [batch, length, hidden_size] each."""
        parts = qkv.chunk(3, dim=-1) if isinstance(qkv, Tensor) else qkv
        batch, length, _ = parts[0].shape
        query, key, value = (part.view(batch, length, self.heads, self.head_dim) for part in parts)
        query, value = (
            part.transpose(1, 2).reshape(-1, length, self.head_dim) for part in (query, value)
        )  # [batch * heads, length, head_dim]
        key = key.permute(0, 2, 3, 1).reshape(
            -1, self.head_dim, length
        )  # as the product takes it: turned once, not twice
        if batch > 1:  # never in a program, whose batch is 1; calibration runs the same module in batches
            bias = bias.repeat_interleave(self.heads, dim=0)
        scores = torch.bmm(query, key) + bias  # [batch * heads, length, length]
        context = torch.bmm(torch.softmax(scores, dim=-1), value)
        context = context.view(batch, self.heads, length, self.head_dim).transpose(1, 2)
        return context.reshape(batch, length, -1)

    @classmethod
    def of(cls, layer: Layer) -> ExportLayer:
        """The export form of a trained layer; shares no memory with it."""
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
    """Embeddings and layers. `forward` returns the hidden states after the embeddings and after every layer."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.apply(initialise)

    def forward(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        """All hidden states.

        Args:
            input_ids: [batch, length] integers.
            mask: [batch, length], 1 at real tokens.
            token_type_ids: [batch, length] or None for all 0; ignored by an encoder without token types.

        Returns:
            layers + 1 tensors [batch, length, hidden_size]; the first is the embeddings', the last the encoder's output.
        """
        hidden = self.embeddings(input_ids, token_type_ids)
        bias = attention_bias(mask)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, bias)
            states.append(hidden)
        return states


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: normal weights with the given standard deviation, zero biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def parameter_count(module: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
