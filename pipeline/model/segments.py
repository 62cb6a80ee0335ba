"""The programs of a bundle as modules: `embed`, and one segment per exit. Exported with batch 1; here any batch runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.encoder import Embeddings, ExportLayer
from pipeline.model.exit_model import ExitModel
from pipeline.model.uncertainty import MEASURES
from pipeline.names import Task
from pipeline.tasks import get_task


class EmbedProgram(nn.Module):
    """input_ids [1, length] -> hidden [1, length, hidden_size].

    Token types are 0, as a student has none, unless there is a separator: then they are 1 from the token after the first one on, as BERT's
    tokenizer gives them to the second of two texts.

    Args:
        separator: the id of [SEP].
    """

    def __init__(self, embeddings: Embeddings, separator: int | None = None):
        super().__init__()
        self.embeddings, self.separator = embeddings, separator

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.separator is None:
            return self.embeddings(input_ids)
        ends = (input_ids == self.separator).to(torch.int64)
        return self.embeddings(input_ids, (torch.cumsum(ends, dim=1) - ends).clamp(max=1))


class SegmentProgram(nn.Module):
    """Some layers and the exit head after them.

    Classification: (hidden [1, S, H], attention_bias [1, 1, S]) -> (hidden, logits [1, C], uncertainty [1]).
    Regression: the same with one logit, and without the uncertainty, which takes two exits.
    Question answering: (hidden, attention_bias, answer_bias [1, S]) -> (hidden, start_logits [1, S], end_logits [1, S],
    uncertainty [1]). The last segment gives its hidden states too: callers may want them, and every segment is alike.
    """

    def __init__(
        self,
        task: Task,
        layers: list[nn.Module],
        head: nn.Module,
        temperature: float = 1.0,
        uncertainty: str = "entropy",
    ):
        super().__init__()
        self.task, self.layers, self.head = task, nn.ModuleList(layers), head
        self.measure = MEASURES[uncertainty] if get_task(task).measures_uncertainty else None
        # A tensor, not a number, which would be part of the graph: segments that differ in weights alone are then lowered once.
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
    """All programs of a model, and the loop over them without exits: the reference that every runtime is held against.

    `uncertainty` names the measure that decides at the exits, see `ExitModel`.
    """

    def __init__(self, task: Task, embed: EmbedProgram, segments: list[SegmentProgram], uncertainty: str = "entropy"):
        super().__init__()
        self.task, self.embed, self.segments, self.uncertainty = task, embed, nn.ModuleList(segments), uncertainty

    @classmethod
    def of(cls, model: ExitModel) -> Programs:
        """The export form of a student: a segment up to each of its exits. Shares no layer weights with the model."""
        segments, start = [], 0
        for exit_layer, head, temperature in zip(model.exit_layers, model.heads, model.temperatures):
            layers = [ExportLayer.of(layer) for layer in model.encoder.layers[start:exit_layer]]
            segments.append(SegmentProgram(model.task, layers, head, temperature, model.uncertainty))
            start = exit_layer
        return cls(
            model.task, EmbedProgram(model.encoder.embeddings, model.separator), segments, model.uncertainty
        ).eval()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_bias: Tensor, answer_bias: Tensor | None = None
    ) -> list[tuple[Tensor, ...]]:
        """input_ids [batch, S]. Returns every segment's outputs, in order."""
        hidden, outputs = self.embed(input_ids), []
        extra = (answer_bias,) if get_task(self.task).uses_answer_mask else ()
        for segment in self.segments:
            outputs.append(segment(hidden, attention_bias, *extra))
            hidden = outputs[-1][0]
        return outputs


class Monolith(nn.Module):
    """All programs as one, which nothing can leave early: what cutting a model into segments costs is measured against it.

    (input_ids [1, S], attention_bias [1, 1, S]; for question answering answer_bias [1, S]) -> what every exit says, in order: a
    segment's outputs without its hidden states.
    """

    def __init__(self, programs: Programs):
        super().__init__()
        self.embed, self.segments = programs.embed, programs.segments

    def forward(
        self, input_ids: Tensor, attention_bias: Tensor, answer_bias: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        hidden, said = self.embed(input_ids), []
        extra = () if answer_bias is None else (answer_bias,)
        for segment in self.segments:
            hidden, *outputs = segment(hidden, attention_bias, *extra)
            said += outputs
        return tuple(said)
