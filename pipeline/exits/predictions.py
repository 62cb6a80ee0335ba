"""What every exit of a model would answer to a set of examples: the raw material of calibration, metrics and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.bundle.exit_rule import question_uncertainty
from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.items import Item, classification_items, collate, question_windows, regression_items, sorted_batches
from pipeline.data.labels import LabelRange
from pipeline.data.regression_metrics import regression_metrics
from pipeline.data.spans import best_span, decode_answer
from pipeline.data.squad_metric import exact_match, f1
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import QAWindow
from pipeline.distill.trainer import device
from pipeline.exits.measures import change, label_measures, window_measures, with_patience
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import MEASURES, answer_bias
from pipeline.names import Task
from pipeline.recipe import Recipe
from pipeline.support.progress import OnStep, silent

QUESTIONS = 512  # whose logits are held at a time: a whole training set's, tokens times exits, would not fit


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
    """Examples through all exits, arrays [examples, exits].

    `score` is what `pipeline.bundle.manifest.SCORE` names for the task; `exact` is exact match (the same as score for classification), None for
    regression, whose answers are near or far and not right or wrong. `answers` are label indices, numbers in the data's unit, or texts, as
    a nested list. `uncertainty` is by the recipe's measure, as a runner finds it; `measures` has it by every measure there is, by name,
    computed from the same logits. `labels`, [examples], are a regression's, in the data's unit.
    """

    score: np.ndarray
    exact: np.ndarray | None
    uncertainty: np.ndarray
    answers: list[list]
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None

    @property
    def exits(self) -> int:
        return self.score.shape[1]

    @property
    def task(self) -> Task:
        """Told by the answers' type."""
        return {int: "classification", float: "regression", str: "qa"}[type(self.answers[0][0])]

    def metrics(self, exit: int = -1) -> dict[str, float | None]:
        """{"accuracy"} or {"exact_match", "f1"} of one exit, fractions of 1; for regression `regression_metrics`."""
        if self.task == "qa":
            return {"exact_match": float(self.exact[:, exit].mean()), "f1": float(self.score[:, exit].mean())}
        if self.task == "regression":
            return regression_metrics(np.array(self.answers)[:, exit], self.labels)
        return {"accuracy": float(self.score[:, exit].mean())}


def run_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """All exits of a model in float32, in padded batches, on the accelerator if there is one."""
    at = device()
    model = model.to(at).eval()
    measure = MEASURES.get(model.uncertainty)

    def forward(ids, mask, types, answers):
        logits = model(ids, mask, types).logits
        if model.task == "regression":
            return logits, None
        if model.task == "classification":
            uncertainty = [measure.labels(part / t) for part, t in zip(logits, model.temperatures)]
        else:
            bias = answer_bias(answers)
            uncertainty = [
                measure.spans(part[..., 0] / t, part[..., 1] / t, bias) for part, t in zip(logits, model.temperatures)
            ]
        return logits, uncertainty

    outputs = _run(forward, items, at, model.temperatures, on_step)
    model.cpu()
    return outputs


def run_programs(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """The same through a bundle's programs as modules: what the phone computes, quantized as there."""

    def forward(ids, mask, types, answers):
        extra = answer_bias(answers) if programs.task == "qa" else None
        outputs = programs(ids, attention_bias(mask), extra)
        if programs.task == "regression":
            return [output[1] for output in outputs], None
        if programs.task == "classification":
            return [output[1] for output in outputs], [output[2] for output in outputs]
        return [torch.stack(output[1:3], dim=-1) for output in outputs], [output[3] for output in outputs]

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
    run,
    model,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Sequence[str] | LabelRange,
    recipe: Recipe,
    on_step: OnStep = silent,
) -> Predictions:
    """Every exit's answers, scores and uncertainties, these by the recipe's measure and by all others.

    Args:
        run: `run_model` or `run_programs`.
        model: what `run` takes; its exits have the recipe's measure.
        examples: labelled.
        labels: see `make_items`.
    """
    if recipe.task == "classification":
        return _classify(run, model, examples, tokenizer, labels, recipe, on_step)
    if recipe.task == "regression":
        return _estimate(run, model, examples, tokenizer, labels, recipe, on_step)
    return _answer(run, model, examples, tokenizer, recipe, on_step)


def _classify(run, model, examples: Sequence[ClassificationExample], tokenizer, labels, recipe, on_step) -> Predictions:
    items = classification_items(examples, tokenizer, labels, recipe.data.max_length)
    outputs = run(model, items, on_step)
    logits = np.stack([output.logits for output in outputs])  # [examples, exits, labels]
    answers = logits.argmax(axis=-1).tolist()
    targets = np.array([item.target[0] for item in items])
    score = (np.array(answers) == targets[:, None]).astype(np.float64)
    measures = with_patience(label_measures(logits, outputs[0].temperatures), answers)
    uncertainty = np.stack([output.uncertainty for output in outputs])
    return Predictions(score, score, _chosen(uncertainty, measures, recipe), answers, measures)


def _estimate(
    run, model, examples: Sequence[ClassificationExample], tokenizer, label_range: LabelRange, recipe, on_step
) -> Predictions:
    outputs = run(model, regression_items(examples, tokenizer, label_range, recipe.data.max_length), on_step)
    shares = np.stack([output.logits[:, 0] for output in outputs]).astype(np.float64)  # [examples, exits]
    labels = np.array([example.label for example in examples])
    score = 1.0 - np.minimum(np.abs(shares - label_range.share(labels)[:, None]), 1.0)
    uncertainty = np.stack([output.uncertainty for output in outputs])
    return Predictions(score, None, uncertainty, label_range.value(shares).tolist(), {"change": uncertainty}, labels)


def _answer(run, model, examples: Sequence[QAExample], tokenizer, recipe, on_step) -> Predictions:
    windows = [question_windows(example, tokenizer, recipe) for example in examples]
    # Long passages first, as `sorted_batches` has it, so that the questions that are run together are of like lengths.
    order = sorted(range(len(windows)), key=lambda row: -sum(len(window) for window in windows[row]))
    questions: list[_Question | None] = [None] * len(windows)
    total, done = sum(len(group) for group in windows), 0
    for at in range(0, len(order), QUESTIONS):
        rows = order[at : at + QUESTIONS]
        items = [Item(window.ids, window.type_ids, None, window.answer_mask) for row in rows for window in windows[row]]

        def on_chunk(what: str, part: int, _: int, before: int = done) -> None:
            on_step(what, before + part, total)

        outputs = iter(run(model, items, on_chunk))
        for row in rows:
            questions[row] = _question(examples[row], windows[row], [next(outputs) for _ in windows[row]], recipe)
        done += len(items)
    answers = [question.answers for question in questions]
    truths = [[answer.text for answer in example.answers] for example in examples]
    score = [[f1(text, truth) for text in texts] for texts, truth in zip(answers, truths)]
    exact = [[exact_match(text, truth) for text in texts] for texts, truth in zip(answers, truths)]
    measures = {name: np.array([question.measures[name] for question in questions]) for name in questions[0].measures}
    measures = with_patience(measures, answers)
    uncertainty = np.array([question.uncertainty for question in questions])
    return Predictions(
        np.array(score, float), np.array(exact, float), _chosen(uncertainty, measures, recipe), answers, measures
    )


@dataclass(frozen=True)
class _Question:
    """What is kept of a question when the logits of its windows are let go; all [exits]."""

    answers: list[str]
    uncertainty: list[float]
    measures: dict[str, list[float]]


def _question(
    example: QAExample, windows: Sequence[QAWindow], outputs: Sequence[ExitOutputs], recipe: Recipe
) -> _Question:
    """Every exit of one question; `outputs` are its windows'."""
    longest, exits = recipe.qa.max_answer, range(len(outputs[0].uncertainty))
    by_window = [
        window_measures(output.logits[..., 0], output.logits[..., 1], window.answer_mask, longest, output.temperatures)
        | {"own": output.uncertainty}
        for window, output in zip(windows, outputs)
    ]
    answers, measures = [], {name: [] for name in by_window[0]}
    for exit in exits:
        scores = [(output.logits[exit, :, 0], output.logits[exit, :, 1]) for output in outputs]
        # With one window there is nothing to choose among.
        best = [0.0] if len(windows) == 1 else [
            best_span(*pair, window.answer_mask, longest).score for window, pair in zip(windows, scores)
        ]  # fmt: skip
        for name, values in measures.items():
            values.append(question_uncertainty(best, [each[name][exit] for each in by_window]))
        answers.append(decode_answer(windows, scores, example.passage, longest, recipe.qa.allow_no_answer).text)
    return _Question(answers, measures.pop("own"), measures)


def _chosen(uncertainty: np.ndarray, measures: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    """What a runner compares with its thresholds: the programs' own uncertainty, or with patience in it, which no program knows."""
    if recipe.exits.uncertainty == "agreement":
        return uncertainty * measures["patience"]
    return measures["patience"] if recipe.exits.uncertainty == "patience" else uncertainty
