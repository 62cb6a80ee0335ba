"""Task distillation: the student learns the task from the fine-tuned teacher (DistilBERT, section 4's second distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.distill.losses import cosine_loss, hard_loss, soft_loss
from pipeline.distill.trainer import TensorBatch, Trainer, device, parameter_groups
from pipeline.errors import UserError
from pipeline.model.exit_model import ExitModel
from pipeline.progress import OnStep, silent
from pipeline.recipe import Recipe


def distill(
    student: ExitModel, teacher: ExitModel, items: Sequence[Item], recipe: Recipe, checkpoint: Path, on_step: OnStep = silent
) -> ExitModel:
    """Trains the student on soft targets, labels and hidden states, each by its weight in the recipe. Returns it in evaluation mode.

    With `training.exit_weight` above 0 the earlier exits learn the teacher's answer too, jointly with the backbone: early layers then
    gather what an answer needs, which a head on a frozen backbone cannot make them do.

    Raises:
        UserError: if hidden states are to be compared and the two widths differ.
    """
    options, training = recipe.distill, recipe.distill.training
    if options.hidden_weight and student.config.hidden_size != teacher.config.hidden_size:
        raise UserError("the student is not as wide as the teacher, their hidden states cannot be compared; set it to 0", field="distill.hidden_weight")
    student.to(device()).train()
    teacher.to(device()).eval()
    student.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    def loss(batch: TensorBatch) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(batch.ids, batch.mask, batch.types)
        output = student(batch.ids, batch.mask)
        goal = target.logits[-1]
        last = output.logits[-1]
        total = options.soft_weight * soft_loss(recipe.task, last, goal, batch.answer_mask, options.temperature)
        if options.hard_weight:
            total = total + options.hard_weight * hard_loss(recipe.task, last, batch.targets, batch.answer_mask)
        if options.hidden_weight:
            total = total + options.hidden_weight * cosine_loss(output.hidden[-1], target.hidden[-1], batch.mask)
        early = output.logits[:-1]
        if training.exit_weight and early:
            losses = [soft_loss(recipe.task, logits, goal, batch.answer_mask, options.temperature) for logits in early]
            total = total + training.exit_weight * torch.stack(losses).mean()
        return total

    Trainer(
        "distilling the student",
        student,
        parameter_groups(list(student.encoder.parameters()), list(student.heads.parameters()), training),
        loss,
        training,
        precision=recipe.precision,
        seed=recipe.seed + 1,
        checkpoint=checkpoint,
        on_step=on_step,
    ).run(items)
    teacher.cpu()
    return student.cpu().eval()
