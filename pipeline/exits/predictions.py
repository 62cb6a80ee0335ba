"""What every exit of a model would answer to a set of examples: the raw material of calibration, metrics and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.items import Item, classification_items, collate, question_windows, sorted_batches
from pipeline.data.spans import best_span, decode_answer
from pipeline.data.squad_metric import exact_match, f1
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.trainer import device
from pipeline.exits.rule import question_uncertainty
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias, normalised_entropy, span_uncertainty
from pipeline.progress import OnStep, silent
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class ExitOutputs:
    """One input through all exits: logits [exits, labels] or [exits, length, 2]; uncertainty [exits]."""

    logits: np.ndarray
    uncertainty: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """Examples through all exits, arrays [examples, exits].

    `score` is what the task is measured by: 1 or 0 (accuracy), or token F1; `exact` is exact match (the same as score for classification).
    `answers` are label indices, or texts, as a nested list.
    """

    score: np.ndarray
    exact: np.ndarray
    uncertainty: np.ndarray
    answers: list[list]

    @property
    def exits(self) -> int:
        return self.score.shape[1]

    def metrics(self, exit: int = -1) -> dict[str, float]:
        """{"accuracy"} or {"exact_match", "f1"} of one exit, fractions of 1. Which one is told by the answers' type."""
        if isinstance(self.answers[0][0], str):
            return {"exact_match": float(self.exact[:, exit].mean()), "f1": float(self.score[:, exit].mean())}
        return {"accuracy": float(self.score[:, exit].mean())}


def run_model(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """All exits of a model in float32, in padded batches, on the accelerator if there is one."""
    at = device()
    model = model.to(at).eval()

    def forward(ids, mask, types, answers):
        logits = model(ids, mask, types).logits
        if model.task == "classification":
            uncertainty = [normalised_entropy(part / t) for part, t in zip(logits, model.temperatures)]
        else:
            bias = answer_bias(answers)
            uncertainty = [
                span_uncertainty(part[..., 0] / t, part[..., 1] / t, bias) for part, t in zip(logits, model.temperatures)
            ]
        return logits, uncertainty

    outputs = _run(forward, items, at, on_step)
    model.cpu()
    return outputs


def run_programs(programs: Programs, items: Sequence[Item], on_step: OnStep = silent) -> list[ExitOutputs]:
    """The same through a bundle's programs as modules: what the phone computes, quantized as there."""

    def forward(ids, mask, types, answers):
        extra = None if programs.task == "classification" else answer_bias(answers)
        outputs = programs(ids, attention_bias(mask), extra)
        if programs.task == "classification":
            return [output[1] for output in outputs], [output[2] for output in outputs]
        return [torch.stack(output[1:3], dim=-1) for output in outputs], [output[3] for output in outputs]

    return _run(forward, items, torch.device("cpu"), on_step)


@torch.no_grad()
def _run(forward, items: Sequence[Item], at: torch.device, on_step: OnStep) -> list[ExitOutputs]:
    results: list[ExitOutputs | None] = [None] * len(items)
    done = 0
    for rows in sorted_batches([len(item.ids) for item in items]):
        chosen = [items[row] for row in rows]
        batch = collate(chosen)
        answers = None if batch.answer_mask is None else torch.from_numpy(batch.answer_mask).to(at)
        arrays = (torch.from_numpy(array).to(at) for array in (batch.ids, batch.mask, batch.type_ids))
        logits, uncertainty = forward(*arrays, answers)
        logits = torch.stack([part.float() for part in logits], dim=1).cpu().numpy()  # [batch, exits, ...]
        uncertainty = torch.stack(list(uncertainty), dim=1).float().cpu().numpy()
        for place, row in enumerate(rows):
            part = logits[place]
            if part.ndim == 3:  # [exits, length, 2] without its padding
                part = part[:, : len(items[row].ids)]
            results[row] = ExitOutputs(part, uncertainty[place])
        done += len(rows)
        on_step("measuring", done, len(items))
    return results


def predict(
    run, model, examples: Sequence[Example], tokenizer: WordPieceTokenizer, labels: Sequence[str], recipe: Recipe, on_step: OnStep = silent
) -> Predictions:
    """Every exit's answers and scores.

    Args:
        run: `run_model` or `run_programs`.
        model: what `run` takes.
        examples: labelled.
    """
    if recipe.task == "classification":
        return _classify(run, model, examples, tokenizer, labels, recipe, on_step)
    return _answer(run, model, examples, tokenizer, recipe, on_step)


def _classify(run, model, examples: Sequence[ClassificationExample], tokenizer, labels, recipe, on_step) -> Predictions:
    items = classification_items(examples, tokenizer, labels, recipe.data.max_length)
    outputs = run(model, items, on_step)
    answers = np.stack([output.logits.argmax(axis=-1) for output in outputs])
    targets = np.array([item.target[0] for item in items])
    score = (answers == targets[:, None]).astype(np.float64)
    return Predictions(score, score, np.stack([output.uncertainty for output in outputs]), answers.tolist())


def _answer(run, model, examples: Sequence[QAExample], tokenizer, recipe, on_step) -> Predictions:
    windows = [question_windows(example, tokenizer, recipe) for example in examples]
    items = [Item(window.ids, window.type_ids, None, window.answer_mask) for group in windows for window in group]
    outputs = iter(run(model, items, on_step))
    score, exact, uncertainty, answers = [], [], [], []
    for at, (example, group) in enumerate(zip(examples, windows)):
        mine = [next(outputs) for _ in group]
        texts, unsure = [], []
        for exit in range(len(mine[0].uncertainty)):
            scores = [(output.logits[exit, :, 0], output.logits[exit, :, 1]) for output in mine]
            best = [
                best_span(start, end, window.answer_mask, recipe.qa.max_answer).score
                for window, (start, end) in zip(group, scores)
            ] if len(group) > 1 else [0.0]
            unsure.append(question_uncertainty(best, [output.uncertainty[exit] for output in mine]))
            texts.append(decode_answer(group, scores, example.passage, recipe.qa.max_answer, recipe.qa.allow_no_answer).text)
        truths = [answer.text for answer in example.answers]
        answers.append(texts)
        uncertainty.append(unsure)
        score.append([f1(text, truths) for text in texts])
        exact.append([exact_match(text, truths) for text in texts])
        on_step("decoding", at + 1, len(examples))
    return Predictions(np.array(score, float), np.array(exact, float), np.array(uncertainty), answers)
