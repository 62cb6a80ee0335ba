"""Builds the teacher from a checkpoint and fine-tunes it on the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.data.labels import LabelRange
from pipeline.distill.losses import hard_loss
from pipeline.distill.trainer import TensorBatch, Trainer, on_device, parameter_groups
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import Pretrained, fold_token_types
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import Labels


def build_teacher(pretrained: Pretrained, recipe: Recipe, labels: Labels) -> ExitModel:
    """Returns a model with one head after the last layer: the checkpoint's if it fits, else a new one.

    Args:
        labels: those of the training data. For a range, the checkpoint's head is rescaled: Hugging Face's heads
            predict in the data's unit, the teacher in shares of the range.

    Raises:
        UserError: the recipe asks for no training, and the checkpoint has no head for the task.
    """
    config, encoder = pretrained.config, pretrained.encoder
    if not recipe.teacher.token_types:
        config, encoder = fold_token_types(config, encoder)
    torch.manual_seed(recipe.seed)
    outputs = 1 if isinstance(labels, LabelRange) else len(labels)
    teacher = ExitModel(recipe.task, config, outputs, pretrained.head_kind, [config.layers])
    teacher.encoder.load_state_dict(encoder)
    if pretrained.head is not None and pretrained.head["out.weight"].shape[0] == outputs:
        head = dict(pretrained.head)
        if isinstance(labels, LabelRange):
            head["out.weight"] = head["out.weight"] / labels.width
            head["out.bias"] = labels.share(head["out.bias"])
        teacher.heads[-1].load_state_dict(head)
    elif recipe.teacher.training.epochs == 0:
        found = "none" if pretrained.head is None else f"one for {pretrained.head['out.weight'].shape[0]} labels"
        raise UserError(
            f"{pretrained.source}: needs a {recipe.task} head for {outputs} labels and has {found}; "
            "set it above 0 to fine-tune one",
            field="teacher.training.epochs",
        )
    return teacher


def finetune(
    teacher: ExitModel,
    items: Sequence[Item],
    recipe: Recipe,
    checkpoint: Path,
    on_step: OnStep = silent,
    curve: Path | None = None,
) -> ExitModel:
    """Trains the teacher on the labels. The recipe may freeze its word embeddings.

    Args:
        checkpoint, curve: see `Trainer`.

    Returns:
        the teacher, in evaluation mode.
    """
    training = recipe.teacher.training
    teacher.train()
    teacher.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    def loss(batch: TensorBatch) -> torch.Tensor:
        output = teacher(batch.ids, batch.mask, batch.types)
        return hard_loss(recipe.task, output.logits[-1], batch.targets, batch.answer_mask)

    with on_device(teacher):
        Trainer(
            "fine-tuning the teacher",
            teacher,
            parameter_groups(list(teacher.encoder.parameters()), list(teacher.heads.parameters()), training),
            loss,
            training,
            precision=recipe.precision,
            seed=recipe.seed,
            checkpoint=checkpoint,
            curve=curve,
            on_step=on_step,
        ).run(items)
    return teacher
