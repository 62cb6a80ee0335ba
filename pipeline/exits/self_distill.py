"""FastBERT's self-distillation: early heads learn the last head's answers (Liu et al. 2020, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.distill.losses import soft_loss
from pipeline.distill.trainer import TensorBatch, Trainer, on_device, parameter_groups
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.support.progress import OnStep, silent


def self_distill(
    model: ExitModel,
    items: Sequence[Item],
    recipe: Recipe,
    checkpoint: Path,
    on_step: OnStep = silent,
    curve: Path | None = None,
) -> ExitModel:
    """Trains all heads but the last with `soft_loss` towards the last head's answer. Backbone and last head are frozen.

    Args:
        items: need no labels.
        checkpoint, curve: see `Trainer`.

    Returns:
        the model, in evaluation mode; unchanged if it has only one exit.
    """
    if len(model.heads) == 1:
        return model.eval()
    early = model.heads[:-1]
    model.requires_grad_(False)
    early.requires_grad_(True)
    model.train()

    def loss(batch: TensorBatch) -> torch.Tensor:
        with torch.no_grad():
            hidden = model.encoder(batch.ids, batch.mask, batch.types)
            bias = attention_bias(batch.mask)
            goal = model.heads[-1](hidden[-1], bias)
        losses = [
            soft_loss(recipe.task, head(hidden[layer], bias), goal, batch.answer_mask, 1.0)
            for layer, head in zip(model.exit_layers, early)
        ]
        # Summed, not averaged: the heads share no parameters, so each gets its own gradient.
        return torch.stack(losses).sum()

    with on_device(model):
        Trainer(
            "distilling the exits",
            early,
            parameter_groups([], list(early.parameters()), recipe.exits.training),
            loss,
            recipe.exits.training,
            precision=recipe.precision,
            seed=recipe.seed + 2,
            checkpoint=checkpoint,
            curve=curve,
            on_step=on_step,
        ).run(items)
    return model.requires_grad_(True)
