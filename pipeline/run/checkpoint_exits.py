"""Gives a checkpoint an exit after every layer, and calibrates the speeds of its quantized programs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.bundle.manifest import Speed
from pipeline.data.examples import Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.student import chosen_exits
from pipeline.exits.predictions import predict, run_programs
from pipeline.exits.self_distill import self_distill
from pipeline.exits.temperature import calibrate_heads
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.run.examples import sample_examples, training_items
from pipeline.run.named_speeds import left_out_speeds, left_out_warnings, named_speeds
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, console
from pipeline.tasks import Labels


def add_exits(model: ExitModel, recipe: Recipe) -> ExitModel:
    """Returns the model with untrained heads after the layers of `student.exit_layers`, by default after every layer.

    The last head, the encoder and the token types are those of the model.

    Raises:
        UserError: the layers do not ascend, or do not end with the model's last one.
    """
    layers = chosen_exits(model.config.layers, recipe.student.exit_layers)
    if len(layers) == 1:
        return model
    torch.manual_seed(recipe.seed + 1)
    with_exits = ExitModel(recipe.task, model.config, model.labels, recipe.head, layers)
    with_exits.encoder, with_exits.separator = model.encoder, model.separator
    with_exits.heads[-1] = model.heads[-1]
    return with_exits.eval()


def train_exits(
    model: ExitModel,
    lessons: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep,
) -> ExitModel:
    """Trains all heads but the last to give the last one's answers (FastBERT, section 3.2.3). The rest is frozen.

    Args:
        lessons: need no labels.

    Raises:
        UserError: there is nothing to learn from.
    """
    model.uncertainty = recipe.exits.uncertainty
    if len(model.heads) == 1 or not recipe.exits.training.epochs:
        return model.eval()
    chosen = sample_examples(list(lessons), recipe.exits.train_limit, recipe.seed)
    items = training_items(chosen, tokenizer, labels, recipe)
    if not items:
        raise UserError("no example has an answer, so the exits have nothing to learn from", field="data.train")
    with tempfile.TemporaryDirectory() as folder:
        return self_distill(model, items, recipe, Path(folder) / "checkpoint.pt", on_step).eval()


def scale_temperatures(
    model: ExitModel,
    draft: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep,
) -> None:
    """Fits the temperature of every exit where the recipe says so.

    Args:
        draft: the part of the calibration examples that proposes thresholds.
    """
    if recipe.exits.temperature_scaling:
        calibrate_heads(model, training_items(draft, tokenizer, labels, recipe), on_step)


def calibrate_speeds(
    programs: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep,
) -> dict[str, Speed]:
    """Returns the named speeds that the examples can show; each loses at most its loss with probability 1 - delta.

    Args:
        programs: the quantized programs, as the bundle has them.
        examples: with labels; nothing was trained on them.
    """
    predictions = predict(run_programs, programs, examples, tokenizer, labels, recipe, on_step)
    for line in left_out_warnings(left_out_speeds(recipe, len(examples))):
        console.print(line)
    return named_speeds(recipe, predictions)
