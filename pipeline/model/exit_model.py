"""An encoder with exit heads: teacher (one head, at the last layer) and student (a head at every exit) are both one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.model.encoder import Encoder, EncoderConfig, attention_bias
from pipeline.model.heads import build_head
from pipeline.names import Task
from pipeline.tasks import get_task


@dataclass
class ExitOutput:
    """What a forward pass gives: hidden states (layers + 1 of [batch, length, hidden_size]) and logits, one per exit."""

    hidden: list[Tensor]
    logits: list[Tensor]


class ExitModel(nn.Module):
    """Encoder and exit heads.

    Args:
        task: "classification", "regression" or "qa".
        config: the encoder's shape.
        labels: number of classes; 1 for regression, 2 for question answering (start and end).
        head: kind of head, a name in `TaskDefinition.heads`.
        exit_layers: after which layers (1-based, ascending, the last one included) a head stands.
    """

    def __init__(self, task: Task, config: EncoderConfig, labels: int, head: str, exit_layers: Sequence[int]):
        super().__init__()
        if not exit_layers or exit_layers[-1] != config.layers or list(exit_layers) != sorted(set(exit_layers)):
            raise ValueError(
                f"exit_layers {list(exit_layers)} must ascend and end with the last layer, {config.layers}"
            )
        self.task, self.labels, self.head_kind = task, labels, head
        self.exit_layers = tuple(exit_layers)
        self.encoder = Encoder(config)
        self.heads = nn.ModuleList(build_head(task, head, config, labels) for _ in self.exit_layers)
        # Dividing an exit's logits by its temperature before the entropy (not the answer) calibrates it; 1 changes nothing.
        self.temperatures = [1.0] * len(self.exit_layers)
        # The measure that decides whether to leave, a name in `pipeline.model.uncertainty.MEASURES`; like the temperatures it is part of
        # the programs, and thresholds are chosen for it. A regression's is computed from one exit to the next, by the host.
        self.uncertainty = get_task(task).uncertainties[0]

        # The id of [SEP], for a model with token types whose programs are to tell a second text by it; None takes every token for type 0.
        self.separator: int | None = None

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def forward(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None) -> ExitOutput:
        """input_ids, mask, token_type_ids: [batch, length]. Logits are [batch, labels], or [batch, length, 2] for QA."""
        hidden = self.encoder(input_ids, mask, token_type_ids)
        bias = attention_bias(mask)
        return ExitOutput(hidden, [head(hidden[at], bias) for at, head in zip(self.exit_layers, self.heads)])
