"""Exit heads: modules that turn the hidden states after a layer into logits.

Each has a method `flops(length)`, its floating-point operations on one input as `pipeline.model.flops` counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.encoder import EncoderConfig, initialise
from pipeline.names import Task
from pipeline.tasks import get_task


class Head(nn.Module):
    """The base of all heads. `forward` takes hidden states and an attention bias and returns logits."""

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Initialises one module of a new head."""
        initialise(module)

    def flops(self, length: int) -> int:
        """Returns the floating-point operations on `length` tokens."""
        raise NotImplementedError


HeadClass = TypeVar("HeadClass", bound=type[Head])

# Head classes by family (`TaskDefinition.head_family`) and kind. A "text" head gives logits per text, a "span" head
# per token.
HEADS: dict[str, dict[str, Callable[[EncoderConfig, int], Head]]] = {"text": {}, "span": {}}


def register(family: str, kind: str) -> Callable[[HeadClass], HeadClass]:
    """Returns a decorator that adds a head class to `HEADS`, which makes `kind` known to recipes."""

    def add(head_class: HeadClass) -> HeadClass:
        HEADS[family][kind] = head_class
        return head_class

    return add


def head_kinds(name: str, exits: int) -> list[str]:
    """Returns the kind of each exit's head.

    Args:
        name: a kind, or "A+B" for a model whose last head is of another kind, B, than those before it.
        exits: the number of exits.
    """
    early, _, last = name.partition("+")
    return [early] * (exits - 1) + [last or early]


def build_head(task: Task, kind: str, config: EncoderConfig, labels: int) -> Head:
    """Returns a newly initialised head.

    Args:
        labels: number of logits per text; "span" heads ignore it.

    Raises:
        KeyError: the task has no head of that kind.
    """
    head = HEADS[get_task(task).head_family][kind](config, labels)
    head.apply(head.initialise)
    return head


class FirstToken(Head):
    """Dense layer, activation and linear layer on the first token, as BERT and DistilBERT classify."""

    activation: Callable[[Tensor], Tensor] = staticmethod(torch.tanh)

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> logits [batch, labels]."""
        return self.out(self.activation(self.dense(hidden[:, 0])))

    def flops(self, length: int) -> int:
        return 2 * (self.dense.weight.numel() + self.out.weight.numel())


@register("text", "bert")
class BertClassifier(FirstToken):
    """The pooler (tanh) and classifier of Hugging Face's `BertForSequenceClassification`."""


@register("text", "distilbert")
class DistilBertClassifier(FirstToken):
    """The pre-classifier (ReLU) and classifier of Hugging Face's `DistilBertForSequenceClassification`."""

    activation = staticmethod(torch.relu)


@register("text", "linear")
class LinearClassifier(Head):
    """One linear layer on the first token: the cheapest head.

    It is weak after early layers, where that token has gathered little.
    """

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__()
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> logits [batch, labels]."""
        return self.out(hidden[:, 0])

    def flops(self, length: int) -> int:
        return 2 * self.out.weight.numel()


@register("text", "pooled")
class PooledClassifier(Head):
    """Attention pooling with learned queries over all tokens, which works after early layers too.

    Each query pools the hidden states with a softmax over the tokens. Each pooled state passes a narrow layer (tanh),
    and one linear layer reads them all. Pooling comes first, so the narrow layer runs on `queries` positions at any
    length.
    """

    def __init__(self, config: EncoderConfig, labels: int, queries: int = 4, width: int = 128):
        super().__init__()
        self.score = nn.Linear(config.hidden_size, queries)
        self.value = nn.Linear(config.hidden_size, width)
        self.out = nn.Linear(queries * width, labels)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> logits [batch, labels]."""
        weights = torch.softmax(self.score(hidden).transpose(1, 2) + bias, dim=-1)  # [batch, queries, length]
        pooled = torch.bmm(weights, hidden)  # [batch, queries, hidden_size]
        return self.out(torch.tanh(self.value(pooled)).flatten(1))

    def flops(self, length: int) -> int:
        queries, score = self.score.out_features, self.score.weight.numel()
        # `score` counts twice, because pooling the hidden states with its weights takes as many multiplications again.
        return 2 * (2 * length * score + queries * self.value.weight.numel() + self.out.weight.numel())


class NarrowAttention(Head):
    """FastBERT's student classifier without its pooling (Liu et al. 2020, section 3.1 and figure 2).

    The hidden states are narrowed (tanh), attend to each other once, and pass two linear layers, the first with tanh.
    The paper narrows 768 to 128, a sixth. Subclasses take the width that keeps them within 3 % of a layer's cost.
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
        """Initialises weights so that layers keep the variance of their input.

        With BERT's standard deviation of 0.02, five narrow layers would shrink the logits to about 1e-4.
        """
        initialise(module, std=module.in_features**-0.5 if isinstance(module, nn.Linear) else 0.02)

    def attend(self, queries: Tensor, narrow: Tensor, bias: Tensor) -> Tensor:
        """Computes logits for some tokens, which attend to all.

        Args:
            queries: narrowed states of the tokens that get logits, [batch, queries, width].
            narrow: narrowed states of all tokens, [batch, length, width].
            bias: [batch, 1, length].

        Returns:
            [batch, queries, outputs].
        """
        key, value = self.key_value(narrow).chunk(2, dim=-1)
        weights = torch.softmax(torch.bmm(self.query(queries) * self.scale, key.transpose(1, 2)) + bias, dim=-1)
        mixed = self.mix(torch.bmm(weights, value))
        return self.out(torch.tanh(self.dense(mixed)))

    def attend_flops(self, queries: int, length: int) -> int:
        """Returns the operations of narrowing `length` tokens and of `attend` for some of them."""
        per_query = sum(layer.weight.numel() for layer in (self.query, self.mix, self.dense, self.out))
        per_token = self.narrow.weight.numel() + self.key_value.weight.numel()
        return 2 * (queries * per_query + length * per_token + 2 * queries * length * self.query.in_features)


@register("text", "fastbert")
class FastBertClassifier(NarrowAttention):
    """FastBERT's student classifier: the first token attends to all tokens and gives the logits.

    Only its row of the attention is computed.
    """

    def __init__(self, config: EncoderConfig, labels: int):
        super().__init__(config, labels, max(8, config.hidden_size // 6))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> logits [batch, labels]."""
        narrow = torch.tanh(self.narrow(hidden))
        return self.attend(narrow[:, :1], narrow, bias)[:, 0]

    def flops(self, length: int) -> int:
        return self.attend_flops(1, length)


@register("span", "linear")
class LinearSpan(Head):
    """One linear layer that gives every token a start and an end score, as Hugging Face's `...ForQuestionAnswering`."""

    def __init__(self, config: EncoderConfig, labels: int = 2):
        super().__init__()
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> start and end logits [batch, length, 2]."""
        return self.out(hidden)

    def flops(self, length: int) -> int:
        return 2 * length * self.out.weight.numel()


@register("span", "attention")
class AttentionSpan(Head):
    """Narrow self-attention, then a linear layer, like FastBERT's student classifier (Liu et al. 2020, section 3.1).

    After early layers a token has seen little of the question. The attention lets it look there, for a few per cent
    of a layer's cost.
    """

    def __init__(self, config: EncoderConfig, labels: int = 2, width: int = 32):
        super().__init__()
        self.scale = width**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * width)
        self.mix = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 2)
        self.direct = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> start and end logits [batch, length, 2]."""
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        weights = torch.softmax(torch.bmm(query * self.scale, key.transpose(1, 2)) + bias, dim=-1)
        context = torch.bmm(weights, value)
        return self.out(F.gelu(self.mix(torch.cat([context, query], dim=-1)))) + self.direct(hidden)

    def flops(self, length: int) -> int:
        width = self.qkv.out_features // 3
        per_token = sum(layer.weight.numel() for layer in (self.qkv, self.mix, self.out, self.direct))
        return 2 * (length * per_token + 2 * length * length * width)


@register("span", "fastbert")
class FastBertSpan(NarrowAttention):
    """FastBERT's student classifier for spans: every token gets a start and an end score."""

    def __init__(self, config: EncoderConfig, labels: int = 2):
        super().__init__(config, 2, max(8, config.hidden_size // 8))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """hidden [batch, length, hidden_size], bias [batch, 1, length] -> start and end logits [batch, length, 2]."""
        narrow = torch.tanh(self.narrow(hidden))
        return self.attend(narrow, narrow, bias)

    def flops(self, length: int) -> int:
        return self.attend_flops(length, length)
