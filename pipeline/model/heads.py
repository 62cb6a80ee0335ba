"""Exit heads: what turns the hidden states after one layer into an answer.

Each says what it costs, next to its `forward`: `flops(length)`, floating-point operations as `pipeline.model.flops` counts them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.encoder import EncoderConfig, initialise
from pipeline.names import Task
from pipeline.tasks import get_task

# By family (`TaskDefinition.head_family`) and kind: heads that answer for a text, and heads that answer for every token.
HEADS: dict[str, dict[str, type]] = {"text": {}, "span": {}}


def register(family: str, name: str):
    """Makes a head class known to recipes under `name`."""

    def add(cls):
        HEADS[family][name] = cls
        return cls

    return add


def build_head(task: Task, kind: str, config: EncoderConfig, labels: int) -> nn.Module:
    """A newly initialised head; `labels` is ignored for question answering. KeyError if the kind is unknown."""
    head = HEADS[get_task(task).head_family][kind](config, labels)
    head.apply(getattr(head, "initialise", initialise))
    return head


class FirstToken(nn.Module):
    """Dense layer, non-linearity and linear layer on the first token: how BERT and DistilBERT classify."""

    activation = staticmethod(torch.tanh)

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, labels]."""
        return self.out(self.activation(self.dense(hidden[:, 0])))

    def flops(self, length: int) -> int:
        return 2 * (self.dense.weight.numel() + self.out.weight.numel())


@register("text", "bert")
class BertClassifier(FirstToken):
    """`BertForSequenceClassification`'s pooler (tanh) and classifier."""


@register("text", "distilbert")
class DistilBertClassifier(FirstToken):
    """`DistilBertForSequenceClassification`'s pre-classifier (ReLU) and classifier."""

    activation = staticmethod(torch.relu)


@register("text", "linear")
class LinearClassifier(nn.Module):
    """One linear layer on the first token: the cheapest head; blind in early layers, where that token has gathered nothing."""

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__()
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, labels]."""
        return self.out(hidden[:, 0])

    def flops(self, length: int) -> int:
        return 2 * self.out.weight.numel()


@register("text", "pooled")
class PooledClassifier(nn.Module):
    """Learned queries attend over all tokens, so that early layers, too, have something to read.

    Each query pools the hidden states by a softmax over the tokens; the pooled states pass one narrow layer (tanh) each and one
    linear layer together. Pooling comes before the narrow layer: that layer then costs `queries` positions, whatever the length.
    """

    def __init__(self, config: EncoderConfig, labels: int, queries: int = 4, width: int = 128):
        super().__init__()
        self.score = nn.Linear(config.hidden_size, queries)
        self.value = nn.Linear(config.hidden_size, width)
        self.out = nn.Linear(queries * width, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, labels]."""
        weights = torch.softmax(self.score(hidden).transpose(1, 2) + bias, dim=-1)  # [batch, queries, length]
        pooled = torch.bmm(weights, hidden)  # [batch, queries, hidden_size]
        return self.out(torch.tanh(self.value(pooled)).flatten(1))

    def flops(self, length: int) -> int:
        queries, score = self.score.out_features, self.score.weight.numel()
        # `score` twice: pooling sums the hidden states of all tokens for each query, which is as many products again.
        return 2 * (2 * length * score + queries * self.value.weight.numel() + self.out.weight.numel())


class NarrowAttention(nn.Module):
    """FastBERT's student classifier without its pooling (Liu et al. 2020, section 3.1 and figure 2).

    The hidden states are made narrow (tanh), attend to each other once, and pass a linear layer (tanh) and the linear layer that
    answers. The paper's width is 128 of 768, a sixth; subclasses take the share that keeps them within 3 % of a layer.
    """

    def __init__(self, config: EncoderConfig, outputs: int, width: int):
        super().__init__()
        self.scale = width**-0.5
        self.narrow = nn.Linear(config.hidden_size, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Variances that hand the hidden states' on: BERT's 0.02 through five narrow layers leaves logits of 1e-4 to learn from."""
        initialise(module, std=module.in_features**-0.5 if isinstance(module, nn.Linear) else 0.02)

    def answer(self, asking: Tensor, narrow: Tensor, bias: Tensor) -> Tensor:
        """Scores of the asking tokens, from all; asking, narrow: [batch, asking or length, width]. Returns [batch, asking, outputs]."""
        key, value = self.key_value(narrow).chunk(2, dim=-1)
        weights = torch.softmax(torch.bmm(self.query(asking) * self.scale, key.transpose(1, 2)) + bias, dim=-1)
        seen = self.mix(torch.bmm(weights, value))
        return self.out(torch.tanh(self.dense(seen)))

    def answer_flops(self, asking: int, length: int) -> int:
        per_asking = sum(layer.weight.numel() for layer in (self.query, self.mix, self.dense, self.out))
        per_token = self.narrow.weight.numel() + self.key_value.weight.numel()
        return 2 * (asking * per_asking + length * per_token + 2 * asking * length * self.query.in_features)


@register("text", "fastbert")
class FastBertClassifier(NarrowAttention):
    """FastBERT's student classifier: the first token attends to all, and answers.

    Only its row of the attention is computed, since no other is read.
    """

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__(config, labels, max(8, config.hidden_size // 6))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, labels]."""
        narrow = torch.tanh(self.narrow(hidden))
        return self.answer(narrow[:, :1], narrow, bias)[:, 0]

    def flops(self, length: int) -> int:
        return self.answer_flops(1, length)


@register("span", "linear")
class LinearSpan(nn.Module):
    """`...ForQuestionAnswering`'s head: one linear layer gives every token a start and an end score."""

    def __init__(self, config: EncoderConfig, labels: int = 2):
        super().__init__()
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, length, 2], start and end."""
        return self.out(hidden)

    def flops(self, length: int) -> int:
        return 2 * length * self.out.weight.numel()


@register("span", "attention")
class AttentionSpan(nn.Module):
    """A narrow self-attention, then linear: FastBERT's student classifier (Liu et al. 2020, section 3.1) for spans.

    In early layers a token does not know the question yet; one narrow attention lets it look, for a few per cent of a layer.
    """

    def __init__(self, config: EncoderConfig, labels: int = 2, width: int = 32):
        super().__init__()
        self.scale = width**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * width)
        self.mix = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 2)
        self.direct = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, length, 2], start and end."""
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        weights = torch.softmax(torch.bmm(query * self.scale, key.transpose(1, 2)) + bias, dim=-1)
        seen = torch.bmm(weights, value)
        return self.out(F.gelu(self.mix(torch.cat([seen, query], dim=-1)))) + self.direct(hidden)

    def flops(self, length: int) -> int:
        width = self.qkv.out_features // 3
        per_token = sum(layer.weight.numel() for layer in (self.qkv, self.mix, self.out, self.direct))
        return 2 * (length * per_token + 2 * length * length * width)


@register("span", "fastbert")
class FastBertSpan(NarrowAttention):
    """FastBERT's student classifier with every token answering: a start and an end score each."""

    def __init__(self, config: EncoderConfig, labels: int = 2):
        super().__init__(config, 2, max(8, config.hidden_size // 8))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden: [batch, length, hidden_size]; bias: [batch, 1, length]. Returns logits [batch, length, 2], start and end."""
        narrow = torch.tanh(self.narrow(hidden))
        return self.answer(narrow, narrow, bias)

    def flops(self, length: int) -> int:
        return self.answer_flops(length, length)
