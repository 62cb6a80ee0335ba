"""FastBERT's self-distillation: with the backbone frozen, every earlier head learns the last head's answer (Liu et al. 2020, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.distill.losses import soft_loss
from pipeline.distill.trainer import TensorBatch, Trainer, device, parameter_groups
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
    """Trains all heads but the last on `soft_loss` to the last one's answer; backbone and last head stay as they are.

    The examples need no labels. Returns the model in evaluation mode; one with a single exit comes back unchanged. `curve` is where
    the losses go, see `Trainer.write_losses`.
    """
    if len(model.heads) == 1:
        return model.eval()
    early = model.heads[:-1]
    model.requires_grad_(False)
    early.requires_grad_(True)
    model.to(device()).train()

    def loss(batch: TensorBatch) -> torch.Tensor:
        with torch.no_grad():
            hidden = model.encoder(batch.ids, batch.mask)
            bias = attention_bias(batch.mask)
            goal = model.heads[-1](hidden[-1], bias)
        losses = [
            soft_loss(recipe.task, head(hidden[at], bias), goal, batch.answer_mask, 1.0)
            for at, head in zip(model.exit_layers, early)
        ]
        # A sum: each head has its own parameters and its own gradient.
        return torch.stack(losses).sum()

    trainer = Trainer(
        "distilling the exits",
        early,
        parameter_groups([], list(early.parameters()), recipe.exits.training),
        loss,
        recipe.exits.training,
        precision=recipe.precision,
        seed=recipe.seed + 2,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    trainer.run(items)
    if curve:
        trainer.write_losses(curve)
    return model.cpu().requires_grad_(True).eval()
