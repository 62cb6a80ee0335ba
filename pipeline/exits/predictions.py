"""Runs examples through all exits of a model. Calibration, metrics and plots are computed from the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data.examples import Example
from pipeline.data.items import Item, collate, sorted_batches
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.trainer import TensorBatch, device, on_device
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

# Logits [batch, ...] and uncertainty [batch] of every exit; the latter is None for tasks whose programs do not
# measure it.
ExitTensors = tuple[list[Tensor], list[Tensor] | None]
# From token ids, mask, token types and answer mask, [batch, length] each.
Forward = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], ExitTensors]
RunExits = Callable[[Any, Sequence[Item], OnStep], "list[ExitOutputs]"]


@dataclass(frozen=True)
class ExitOutputs:
    """The outputs of all exits for one input.

    Attributes:
        logits: [exits, labels] or [exits, length, 2].
        uncertainty: [exits], as the programs compute it, or by change for tasks whose programs do not.
        temperatures: one per exit, 1 if None. The logits are not divided by them; the uncertainty takes them into
            account.
    """

    logits: np.ndarray
    uncertainty: np.ndarray
    temperatures: Sequence[float] | None = None


@dataclass(frozen=True)
class Predictions:
    """The answers of all exits for a set of examples. Arrays are [examples, exits].

    Attributes:
        score: the task's `speed_metric`.
        exact: 1 for a right answer, 0 for a wrong one; None for tasks that predict a number.
        uncertainty: by the recipe's measure, as the runner compares it with a threshold.
        answers: label indices, numbers in the data's unit, or texts, as a nested list.
        measures: the uncertainty by all measures, by name, computed from the same logits.
        targets: what the answers are scored against, [examples].
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
        """The number of exits."""
        return int(self.score.shape[1])

    def metrics(self, exit: int = -1) -> dict[str, float | None]:
        """Returns the task's metrics at one exit, see `TaskDefinition.metrics`."""
        return get_task(self.task).summarise([answers[exit] for answers in self.answers], self.targets)


def run_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """Runs a model to full depth in float32, in padded batches, on the accelerator if there is one.

    Returns:
        the outputs of all exits for every item.
    """
    model.eval()
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

    with on_device(model):
        return _run(forward, items, device(), model.temperatures, on_step)


def run_programs(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """Runs a bundle's programs as modules to full depth: what the phone computes, with the same quantization.

    Returns:
        the outputs of all exits for every item.
    """
    task = get_task(programs.task)

    def forward(ids: Tensor, mask: Tensor, types: Tensor, answer_mask: Tensor | None) -> ExitTensors:
        outputs = programs(ids, attention_bias(mask), None if answer_mask is None else answer_bias(answer_mask))
        parts = [output[1 : 1 + len(task.exit_outputs)] for output in outputs]
        logits = [part[0] if len(part) == 1 else torch.stack(part, dim=-1) for part in parts]
        return logits, [output[-1] for output in outputs] if task.measures_uncertainty else None

    temperatures = [1.0 / float(cast(Tensor, segment.inverse_temperature)) for segment in programs.segments]  # a buffer
    return _run(forward, items, torch.device("cpu"), temperatures, on_step)


@torch.no_grad()
def _run(
    forward: Forward, items: Sequence[Item], run_device: torch.device, temperatures: Sequence[float], on_step: OnStep
) -> list[ExitOutputs]:
    results: dict[int, ExitOutputs] = {}
    for rows in sorted_batches([len(item.ids) for item in items]):
        batch = TensorBatch.of(collate([items[row] for row in rows]), run_device)
        exit_logits, exit_uncertainty = forward(batch.ids, batch.mask, batch.types, batch.answer_mask)
        logits = torch.stack([part.float() for part in exit_logits], dim=1).cpu().numpy()  # [batch, exits, ...]
        if exit_uncertainty is None:
            uncertainty = change(logits[..., 0])  # of a number, [batch, exits, 1]
        else:
            uncertainty = torch.stack(exit_uncertainty, dim=1).float().cpu().numpy()
        for index, row in enumerate(rows.tolist()):
            item_logits = logits[index]
            if item_logits.ndim == 3:  # [exits, length, 2], padded
                item_logits = item_logits[:, : len(items[row].ids)]
            # A copy, because a slice would keep the logits of the whole batch in memory.
            results[row] = ExitOutputs(item_logits.copy(), uncertainty[index], temperatures)
        on_step("measuring", len(results), len(items))
    return [results[row] for row in range(len(items))]


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
    """Computes the answers, scores and uncertainties of all exits for labelled examples.

    Args:
        run: `run_model` or `run_programs`, or a function like them.
        model: the argument of `run`. Its exits have the recipe's measure of uncertainty.
        labels: those of the training data.
        targets: what the answers are scored against; by default the examples' labels.
    """
    task = get_task(recipe.task)
    context = answer_context(labels, recipe)
    targets = task.targets(examples, context) if targets is None else targets
    inputs = task.encode_all(examples, tokenizer, recipe.input_options)
    exits: dict[int, _ExampleExits] = {}
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
            exits[index] = _read_exits(task, examples[index], inputs[index], own, targets[index], context)
        done += len(items)
    rows = [exits[index] for index in range(len(examples))]
    answers = [row.answers for row in rows]
    measures = {name: np.array([row.measures[name] for row in rows]) for name in rows[0].measures}
    uncertainty = np.array([row.uncertainty for row in rows])
    measures = with_patience(measures, answers) if "entropy" in measures else {"change": uncertainty}
    return Predictions(
        score=np.array([row.score for row in rows], float),
        exact=None if rows[0].exact[0] is None else np.array([row.exact for row in rows], float),
        uncertainty=_compared(uncertainty, measures, recipe),
        answers=answers,
        measures=measures,
        targets=targets,
        task=recipe.task,
    )


def answer_context(labels: Labels, recipe: Recipe) -> AnswerContext:
    """Returns the context for reading answers, for a model that has no manifest yet."""
    if isinstance(labels, LabelRange):
        return AnswerContext(recipe.input_options, label_range=labels)
    names = tuple(recipe.data.label_names or labels)
    return AnswerContext(recipe.input_options, labels=names, label_values=tuple(labels))


def _in_chunks(inputs: Sequence[Sequence[ModelInput]], size: int | None) -> Iterator[Sequence[int]]:
    """Returns the examples' indices in groups of `size`, whose logits are held in memory together."""
    if size is None:
        yield range(len(inputs))
        return
    # Longest first, as `sorted_batches` does, so that examples of similar length run together.
    order = sorted(range(len(inputs)), key=lambda index: -sum(len(part.ids) for part in inputs[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True)
class _ExampleExits:
    """What is kept of an example when its logits are dropped. Lists are [exits]."""

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
    """Decodes and scores every exit of one example; `inputs` and `outputs` correspond."""
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
    """Splits one exit's logits for one input into the task's `exit_outputs`."""
    count = len(task.exit_outputs)
    return (logits,) if count == 1 else tuple(logits[..., index] for index in range(count))


def _compared(uncertainty: np.ndarray, measures: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    """Returns what the runner compares with a threshold, which takes patience into account if the recipe says so."""
    if recipe.exits.uncertainty == "agreement":
        return uncertainty * measures["patience"]
    return measures["patience"] if recipe.exits.uncertainty == "patience" else uncertainty
