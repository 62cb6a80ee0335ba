"""The teacher: a pretrained encoder fine-tuned on the task, or a checkpoint that already is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.data.labels import LabelRange
from pipeline.distill.losses import hard_loss
from pipeline.distill.trainer import TensorBatch, Trainer, device, parameter_groups
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import Pretrained, fold_token_types
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent


def build_teacher(
    pretrained: Pretrained, recipe: Recipe, labels: int, label_range: LabelRange | None = None
) -> ExitModel:
    """A model with one head, after the last layer: the checkpoint's if it has one that fits, else a new one.

    Args:
        labels: number of the head's outputs.
        label_range: for regression. A checkpoint's head predicts in the data's unit, as Hugging Face trains one; the teacher in shares of
            the range.

    Raises:
        UserError: if the recipe asks for no training and the checkpoint has no head for the task.
    """
    config, encoder = pretrained.config, pretrained.encoder
    if not recipe.teacher.token_types:
        config, encoder = fold_token_types(config, encoder)
    torch.manual_seed(recipe.seed)
    teacher = ExitModel(recipe.task, config, labels, pretrained.head_kind, [config.layers])
    teacher.encoder.load_state_dict(encoder)
    if pretrained.head is not None and pretrained.head["out.weight"].shape[0] == labels:
        head = dict(pretrained.head)
        if label_range is not None:
            head["out.weight"] = head["out.weight"] / label_range.width
            head["out.bias"] = label_range.share(head["out.bias"])
        teacher.heads[-1].load_state_dict(head)
    elif recipe.teacher.training.epochs == 0:
        has = "none" if pretrained.head is None else f"one for {pretrained.head['out.weight'].shape[0]} labels"
        raise UserError(
            f"{pretrained.source}: needs a {recipe.task} head for {labels} labels and has {has}; set it above 0 to fine-tune one",
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
    """Trains the teacher on the labels, all of it unless the recipe freezes the embeddings. Returns it in evaluation mode.

    `curve` is where the losses go, see `Trainer.write_losses`.
    """
    training = recipe.teacher.training
    teacher.to(device()).train()
    teacher.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    def loss(batch: TensorBatch) -> torch.Tensor:
        output = teacher(batch.ids, batch.mask, batch.types)
        return hard_loss(recipe.task, output.logits[-1], batch.targets, batch.answer_mask)

    trainer = Trainer(
        "fine-tuning the teacher",
        teacher,
        parameter_groups(list(teacher.encoder.parameters()), list(teacher.heads.parameters()), training),
        loss,
        training,
        precision=recipe.precision,
        seed=recipe.seed,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    trainer.run(items)
    if curve:
        trainer.write_losses(curve)
    return teacher.cpu().eval()
