"""A bundle's programs as modules: `embed` and one segment per exit. Exported with batch 1; any batch works here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.model.encoder import Embeddings, ExportLayer, Layer
from pipeline.model.exit_model import ExitModel
from pipeline.model.uncertainty import MEASURES
from pipeline.names import Task
from pipeline.tasks import get_task


class EmbedProgram(nn.Module):
    """The program `embed`: input_ids [1, length] -> hidden [1, length, hidden_size].

    Args:
        separator: the id of [SEP], for embeddings with token types. Tokens after the first [SEP] then get type 1, as
            BERT's tokenizer gives to the second of two texts. None gives all tokens type 0.
    """

    def __init__(self, embeddings: Embeddings, separator: int | None = None):
        super().__init__()
        self.embeddings, self.separator = embeddings, separator

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embeddings(input_ids, token_types(input_ids, self.separator))


def token_types(input_ids: Tensor, separator: int | None) -> Tensor | None:
    """Returns the token types of input_ids [1, length], see `EmbedProgram`; None where all are 0."""
    if separator is None:
        return None
    ends = (input_ids == separator).to(torch.int64)
    return (torch.cumsum(ends, dim=1) - ends).clamp(max=1)


class SegmentProgram(nn.Module):
    """A segment's program: some layers and the exit head after them.

    Classification: (hidden [1, S, H], attention_bias [1, 1, S]) -> (hidden, logits [1, C], uncertainty [1]).
    Regression: the same with one logit and no uncertainty, since its measure compares two exits.
    Question answering: (hidden, attention_bias, answer_bias [1, S]) -> (hidden, start_logits [1, S], end_logits [1, S],
    uncertainty [1]).

    The last segment returns its hidden states too, so that all segments have the same outputs.

    Args:
        temperature: divides the logits before the uncertainty is measured, not in the output.
        uncertainty: the measure, a name in `pipeline.model.uncertainty.MEASURES`.
    """

    inverse_temperature: Tensor

    def __init__(
        self,
        task: Task,
        layers: Sequence[nn.Module],
        head: nn.Module,
        temperature: float = 1.0,
        uncertainty: str = "entropy",
    ):
        super().__init__()
        self.task, self.layers, self.head = task, nn.ModuleList(layers), head
        self.measure = MEASURES[uncertainty] if get_task(task).measures_uncertainty else None
        # A buffer, because a plain number would become part of the graph. Segments that differ only in their weights
        # share one graph and are lowered once.
        self.register_buffer("inverse_temperature", torch.tensor([1.0 / temperature]))

    def forward(self, hidden: Tensor, attention_bias: Tensor, answer_bias: Tensor | None = None) -> tuple[Tensor, ...]:
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        logits = self.head(hidden, attention_bias)
        task = get_task(self.task)
        outputs = task.split_logits(logits)
        if self.measure is None:
            return hidden, *outputs
        scaled = tuple(output * self.inverse_temperature for output in outputs)
        return hidden, *outputs, task.program_uncertainty(self.measure, scaled, answer_bias)


class Programs(nn.Module):
    """All programs of a model. `forward` runs them to full depth, and every runtime is compared with it.

    Args:
        uncertainty: the measure that decides at the exits, see `ExitModel`.
    """

    def __init__(self, task: Task, embed: EmbedProgram, segments: list[SegmentProgram], uncertainty: str = "entropy"):
        super().__init__()
        self.task, self.embed, self.segments, self.uncertainty = task, embed, nn.ModuleList(segments), uncertainty

    @classmethod
    def of(cls, model: ExitModel) -> Programs:
        """Converts a student, with a segment up to each of its exits. The programs share no layer weights with it."""
        segments, start = [], 0
        for exit_layer, head, temperature in zip(model.exit_layers, model.heads, model.temperatures):
            # nn.ModuleList does not know its elements' type.
            layers = [ExportLayer.of(cast(Layer, layer)) for layer in model.encoder.layers[start:exit_layer]]
            segments.append(SegmentProgram(model.task, layers, head, temperature, model.uncertainty))
            start = exit_layer
        embed = EmbedProgram(model.encoder.embeddings, model.separator)
        return cls(model.task, embed, segments, model.uncertainty).eval()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_bias: Tensor, answer_bias: Tensor | None = None
    ) -> list[tuple[Tensor, ...]]:
        """Runs all segments on input_ids [batch, S]. Returns the outputs of each, in order."""
        hidden, outputs = self.embed(input_ids), []
        extra = (answer_bias,) if get_task(self.task).uses_answer_mask else ()
        for segment in self.segments:
            outputs.append(segment(hidden, attention_bias, *extra))
            hidden = outputs[-1][0]
        return outputs


class Monolith(nn.Module):
    """All programs as one without early exit, to measure what cutting a model into segments costs.

    (input_ids [1, S], attention_bias [1, 1, S], for question answering answer_bias [1, S]) -> the outputs of all
    segments in order, without their hidden states.
    """

    def __init__(self, programs: Programs):
        super().__init__()
        self.embed, self.segments = programs.embed, programs.segments

    def forward(
        self, input_ids: Tensor, attention_bias: Tensor, answer_bias: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        hidden = self.embed(input_ids)
        exit_outputs: list[Tensor] = []
        extra = () if answer_bias is None else (answer_bias,)
        for segment in self.segments:
            hidden, *outputs = segment(hidden, attention_bias, *extra)
            exit_outputs += outputs
        return tuple(exit_outputs)
