"""What every exit of a model would answer to a set of examples: the raw material of calibration, metrics and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.examples import Example
from pipeline.data.items import Item, collate, sorted_batches
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.trainer import device
from pipeline.exits.measures import change, with_patience
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import MEASURES, answer_bias
from pipeline.names import Task
from pipeline.recipe import Recipe
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import AnswerContext, AnyTask, Labels, get_task
from pipeline.tasks.types import ModelInput

# Every exit's logits [batch, ...], and every exit's uncertainty [batch], None where no program computes it.
ExitTensors = tuple[list[Tensor], list[Tensor] | None]
RunExits = Callable[[Any, Sequence[Item], OnStep], "list[ExitOutputs]"]


@dataclass(frozen=True)
class ExitOutputs:
    """One input through all exits: logits [exits, labels] or [exits, length, 2]; uncertainty [exits], as programs give it, or by change.

    `temperatures` are the exits', which that uncertainty has in it and the logits have not; all 1 when absent.
    """

    logits: np.ndarray
    uncertainty: np.ndarray
    temperatures: Sequence[float] | None = None


@dataclass(frozen=True)
class Predictions:
    """Examples through all exits; arrays are [examples, exits].

    Attributes:
        score: the task's `speed_metric`.
        exact: 1 for a right answer, 0 for a wrong one; None for numbers, which are near or far and not right or wrong.
        uncertainty: by the recipe's measure, as a runner compares it with a threshold.
        answers: label indices, numbers in the data's unit, or texts, as a nested list.
        measures: the uncertainty by every measure there is, by name, computed from the same logits.
        targets: what the answers were scored against, [examples].
        task: the examples' task.
    """

    score: np.ndarray
    exact: np.ndarray | None
    uncertainty: np.ndarray
    answers: list[list[Any]]
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    targets: Sequence[Any] = ()
    task: Task = "classification"

    @property
    def exits(self) -> int:
        """How many exits there are."""
        return int(self.score.shape[1])

    def metrics(self, exit: int = -1) -> dict[str, float | None]:
        """The task's metrics at one exit, see `TaskDefinition.metrics`."""
        return get_task(self.task).summarise([answers[exit] for answers in self.answers], self.targets)


def run_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """All exits of a model in float32, in padded batches, on the accelerator if there is one."""
    at = device()
    model = model.to(at).eval()
    measure = MEASURES.get(model.uncertainty)

    task = get_task(model.task)

    def forward(ids: Tensor, mask: Tensor, types: Tensor, answer_mask: Tensor | None) -> ExitTensors:
        logits = model(ids, mask, types).logits
        if measure is None:
            return logits, None
        bias = None if answer_mask is None else answer_bias(answer_mask)
        uncertainty = [
            task.program_uncertainty(measure, tuple(part / temperature for part in task.split_logits(head)), bias)
            for head, temperature in zip(logits, model.temperatures)
        ]
        return logits, uncertainty

    outputs = _run(forward, items, at, model.temperatures, on_step)
    model.cpu()
    return outputs


def run_programs(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """The same through a bundle's programs as modules: what the phone computes, quantized as there."""

    task = get_task(programs.task)

    def forward(ids: Tensor, mask: Tensor, types: Tensor, answer_mask: Tensor | None) -> ExitTensors:
        outputs = programs(ids, attention_bias(mask), None if answer_mask is None else answer_bias(answer_mask))
        parts = [output[1 : 1 + len(task.exit_outputs)] for output in outputs]
        logits = [part[0] if len(part) == 1 else torch.stack(part, dim=-1) for part in parts]
        return logits, [output[-1] for output in outputs] if task.measures_uncertainty else None

    temperatures = [1.0 / float(segment.inverse_temperature) for segment in programs.segments]
    return _run(forward, items, torch.device("cpu"), temperatures, on_step)


@torch.no_grad()
def _run(
    forward, items: Sequence[Item], at: torch.device, temperatures: Sequence[float], on_step: OnStep
) -> list[ExitOutputs]:
    results: list[ExitOutputs | None] = [None] * len(items)
    done = 0
    for rows in sorted_batches([len(item.ids) for item in items]):
        chosen = [items[row] for row in rows]
        batch = collate(chosen)
        answers = None if batch.answer_mask is None else torch.from_numpy(batch.answer_mask).to(at)
        arrays = (torch.from_numpy(array).to(at) for array in (batch.ids, batch.mask, batch.type_ids))
        logits, uncertainty = forward(*arrays, answers)
        logits = torch.stack([part.float() for part in logits], dim=1).cpu().numpy()  # [batch, exits, ...]
        # Without one of the model's own it is a regression's change, of logits [batch, exits, 1].
        uncertainty = (
            change(logits[..., 0])
            if uncertainty is None
            else torch.stack(list(uncertainty), dim=1).float().cpu().numpy()
        )
        for place, row in enumerate(rows):
            part = logits[place]
            if part.ndim == 3:  # [exits, length, 2] without its padding
                part = part[:, : len(items[row].ids)]
            # A copy: a slice would keep the logits of the whole batch, with its padding.
            results[row] = ExitOutputs(part.copy(), uncertainty[place], temperatures)
        done += len(rows)
        on_step("measuring", done, len(items))
    return results


def predict(
    run: RunExits,
    model: Any,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep = silent,
    targets: Sequence[Any] | None = None,
) -> Predictions:
    """Every exit's answers, scores and uncertainties, these by the recipe's measure and by all others.

    Args:
        run: `run_model` or `run_programs`.
        model: what `run` takes; its exits have the recipe's measure.
        examples: labelled.
        labels: those of the training data.
        targets: what the answers are scored against; the examples' labels when absent.
    """
    task = get_task(recipe.task)
    context = answer_context(labels, recipe)
    targets = task.targets(examples, context) if targets is None else targets
    inputs = task.encode_all(examples, tokenizer, recipe.input_options)
    rows: list[_ExampleExits | None] = [None] * len(examples)
    total, done = sum(len(group) for group in inputs), 0
    for chosen in _in_chunks(inputs, task.examples_in_memory):
        items = [
            Item(model_input.ids, model_input.type_ids, None, model_input.answer_mask)
            for index in chosen
            for model_input in inputs[index]
        ]

        def on_chunk(what: str, part: int, _: int, before: int = done) -> None:
            on_step(what, before + part, total)

        outputs = iter(run(model, items, on_chunk))
        for index in chosen:
            own = [next(outputs) for _ in inputs[index]]
            rows[index] = _read_exits(task, examples[index], inputs[index], own, targets[index], context)
        done += len(items)
    read = [row for row in rows if row is not None]
    answers = [row.answers for row in read]
    measures = {name: np.array([row.measures[name] for row in read]) for name in read[0].measures}
    uncertainty = np.array([row.uncertainty for row in read])
    measures = with_patience(measures, answers) if "entropy" in measures else {"change": uncertainty}
    return Predictions(
        score=np.array([row.score for row in read], float),
        exact=None if read[0].exact[0] is None else np.array([row.exact for row in read], float),
        uncertainty=_compared(uncertainty, measures, recipe),
        answers=answers,
        measures=measures,
        targets=targets,
        task=recipe.task,
    )


def answer_context(labels: Labels, recipe: Recipe) -> AnswerContext:
    """What reading answers takes while there is no manifest yet."""
    if isinstance(labels, LabelRange):
        return AnswerContext(recipe.input_options, label_range=labels)
    names = tuple(recipe.data.label_names or labels)
    return AnswerContext(recipe.input_options, labels=names, label_values=tuple(labels))


def _in_chunks(inputs: Sequence[Sequence[ModelInput]], size: int | None) -> Iterator[Sequence[int]]:
    """The examples' indices in groups that are held in memory together."""
    if size is None:
        yield range(len(inputs))
        return
    # Long examples first, as `sorted_batches` does, so that those that run together are of like lengths.
    order = sorted(range(len(inputs)), key=lambda index: -sum(len(part.ids) for part in inputs[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True)
class _ExampleExits:
    """What is kept of an example when its logits are let go; lists are [exits]."""

    answers: list[Any]
    score: list[float]
    exact: list[float | None]
    uncertainty: list[float]
    measures: dict[str, list[float]]


def _read_exits(
    task: AnyTask,
    example: Example,
    inputs: Sequence[ModelInput],
    outputs: Sequence[ExitOutputs],
    target: Any,
    context: AnswerContext,
) -> _ExampleExits:
    """Every exit of one example; `outputs` has an entry for each of its inputs."""
    measured = [
        task.measures(model_input, output.logits, output.temperatures, context.options)
        for model_input, output in zip(inputs, outputs)
    ]
    exits = _ExampleExits([], [], [], [], {name: [] for name in measured[0]})
    for exit in range(len(outputs[0].uncertainty)):
        logits = [split_array(task, output.logits[exit]) for output in outputs]
        decoded = task.decode(example, inputs, logits, context)
        decisive = task.decisive_input(inputs, logits, context)
        score, exact = task.score(decoded, target, context)
        exits.answers.append(task.answer(decoded, context))
        exits.score.append(score)
        exits.exact.append(exact)
        exits.uncertainty.append(float(outputs[decisive].uncertainty[exit]))
        for name, values in exits.measures.items():
            values.append(float(measured[decisive][name][exit]))
    return exits


def split_array(task: AnyTask, logits: np.ndarray) -> tuple[np.ndarray, ...]:
    """One exit's logits for one input as the task's `exit_outputs`."""
    count = len(task.exit_outputs)
    return (logits,) if count == 1 else tuple(logits[..., index] for index in range(count))


def _compared(uncertainty: np.ndarray, measures: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    """What a runner compares with its thresholds. Programs compute it, but for patience, which is counted from answers."""
    if recipe.exits.uncertainty == "agreement":
        return uncertainty * measures["patience"]
    return measures["patience"] if recipe.exits.uncertainty == "patience" else uncertainty
