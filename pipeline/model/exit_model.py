"""An encoder with exit heads. A teacher has one head after its last layer, a student one at every exit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.model.encoder import Encoder, EncoderConfig, attention_bias
from pipeline.model.heads import build_head, head_kinds
from pipeline.names import Task
from pipeline.tasks import get_task


@dataclass
class ExitOutput:
    """The result of a forward pass.

    Attributes:
        hidden: the encoder's layers + 1 states, [batch, length, hidden_size] each.
        logits: one tensor per exit, [batch, labels], or [batch, length, 2] for question answering.
    """

    hidden: list[Tensor]
    logits: list[Tensor]


class ExitModel(nn.Module):
    """An encoder with exit heads.

    Args:
        task: "classification", "regression" or "qa".
        config: the encoder's shape.
        labels: number of classes; 1 for regression, 2 for question answering (start and end).
        head: kind of head, a name in `TaskDefinition.heads`, or two of them as in `head_kinds`.
        exit_layers: the layers (from 1) that a head follows; ascending, ending with the last layer.

    Attributes:
        temperatures: one per exit. Logits are divided by it before the uncertainty is measured, but not in the answer.
        uncertainty: the measure that decides whether to leave, a name in `pipeline.names.Uncertainty`. Like the
            temperatures it is part of the programs, and thresholds are chosen for it. The runner computes "change"
            from two exits.
        separator: the id of [SEP], for a model whose programs mark a second text by token types; else None.
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
        kinds = head_kinds(head, len(self.exit_layers))
        self.heads = nn.ModuleList(build_head(task, kind, config, labels) for kind in kinds)
        self.temperatures = [1.0] * len(self.exit_layers)
        self.uncertainty = get_task(task).uncertainties[0]
        self.separator: int | None = None

    @property
    def config(self) -> EncoderConfig:
        """The encoder's sizes."""
        return self.encoder.config

    def forward(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None) -> ExitOutput:
        """Runs encoder and heads; see `Encoder.forward` for the arguments."""
        hidden = self.encoder(input_ids, mask, token_type_ids)
        bias = attention_bias(mask)
        return ExitOutput(hidden, [head(hidden[layer], bias) for layer, head in zip(self.exit_layers, self.heads)])
