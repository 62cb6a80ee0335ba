"""Task distillation: the student learns the task from the fine-tuned teacher (DistilBERT, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch

from pipeline.data.items import Item
from pipeline.distill.losses import attention_loss, cosine_loss, hard_loss, soft_loss
from pipeline.distill.targets import keep_targets
from pipeline.distill.trainer import TensorBatch, Trainer, device, on_device, parameter_groups
from pipeline.model.encoder import Layer, attention_bias
from pipeline.model.exit_model import ExitModel, ExitOutput
from pipeline.model.fake_quantize import quantized_linears
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent


def distill(
    student: ExitModel,
    teacher: ExitModel,
    items: Sequence[Item],
    recipe: Recipe,
    checkpoint: Path,
    on_step: OnStep = silent,
    curve: Path | None = None,
) -> ExitModel:
    """Trains the student on soft targets, labels, hidden states and attention, each weighted as the recipe says.

    If `training.exit_weight` is above 0, the early exits learn the teacher's answer too, together with the backbone.
    Early layers then learn to gather what an answer needs; a head on a frozen backbone cannot teach them that.

    Args:
        checkpoint, curve: see `Trainer`. The recipe's `keep_targets` writes the teacher's logits beside the checkpoint.

    Returns:
        the student, in evaluation mode.

    Raises:
        UserError: the recipe does not fit student and teacher, see `check_recipe`.
    """
    check_recipe(student, teacher, recipe)
    options, training = recipe.distill, recipe.distill.training
    shares = torch.tensor(training.exit_shares or [1.0] * (len(student.heads) - 1), device=device())
    student.train()
    teacher.eval()
    student.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)

    with on_device(student, teacher):
        kept = None
        if options.keep_targets and items and training.epochs:

            def answer(batch: TensorBatch) -> torch.Tensor:
                return teacher(batch.ids, batch.mask, batch.types).logits[-1]

            kept = keep_targets(checkpoint.with_name("targets"), answer, items, recipe.precision, on_step)
            teacher.cpu()  # frees the accelerator's memory: the training does not run the teacher

        def loss(batch: TensorBatch) -> torch.Tensor:
            target: ExitOutput | None = None
            if kept is None:
                with torch.no_grad():
                    target = teacher(batch.ids, batch.mask, batch.types)
                goal = target.logits[-1]
            else:
                goal = kept.batch(batch.indices, batch.ids.device)
            output = student(batch.ids, batch.mask)
            last = output.logits[-1]
            total = torch.zeros((), device=last.device)
            if options.soft_weight:
                total = total + options.soft_weight * soft_loss(
                    recipe.task, last, goal, batch.answer_mask, options.temperature
                )
            if options.hard_weight:
                total = total + options.hard_weight * hard_loss(recipe.task, last, batch.targets, batch.answer_mask)
            if options.hidden_weight:
                assert target is not None  # the recipe allows no kept targets with this weight
                total = total + options.hidden_weight * batch.token_weight * cosine_loss(
                    output.hidden[-1], target.hidden[-1], batch.mask
                )
            if options.attention_weight:
                assert target is not None  # as above
                bias = attention_bias(batch.mask)
                # hidden[-2] is the input of the last layer.
                with torch.no_grad():
                    theirs = last_layer(teacher).attention_logits(target.hidden[-2], bias)
                ours = last_layer(student).attention_logits(output.hidden[-2], bias)
                total = total + options.attention_weight * batch.token_weight * attention_loss(ours, theirs, batch.mask)
            early = output.logits[:-1]
            if training.exit_weight and early:
                losses = [
                    soft_loss(recipe.task, logits, goal, batch.answer_mask, options.temperature) for logits in early
                ]
                total = total + training.exit_weight * (torch.stack(losses) * shares).sum() / shares.sum()
            return total

        trainer = Trainer(
            "distilling the student",
            student,
            parameter_groups(list(student.encoder.parameters()), list(student.heads.parameters()), training),
            loss,
            training,
            precision=recipe.precision,
            seed=recipe.seed + 1,
            checkpoint=checkpoint,
            curve=curve,
            on_step=on_step,
        )
        with quantized_linears(student.encoder) if options.quantize_aware else nullcontext():
            trainer.run(items)
    return student


def check_recipe(student: ExitModel, teacher: ExitModel, recipe: Recipe) -> None:
    """Checks that this student can be distilled from this teacher as the recipe asks.

    Raises:
        UserError: hidden states or attention are to be compared, but widths or numbers of heads differ; the recipe
            asks for no training although the student's last head is newly initialised; or `training.exit_shares` does
            not have one number for each exit before the last.
    """
    options, training = recipe.distill, recipe.distill.training
    if options.hidden_weight and student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(
            "the student is not as wide as the teacher, their hidden states cannot be compared; set it to 0",
            field="distill.hidden_weight",
        )
    if options.attention_weight and student.config.heads != teacher.config.heads:
        raise UserError(
            "the student does not have as many heads as the teacher, their attention cannot be compared; set it to 0",
            field="distill.attention_weight",
        )
    if not training.epochs and student.head_kind != teacher.head_kind:
        raise UserError(
            f"the student's last head is new, {student.head_kind} where the teacher's is {teacher.head_kind}, "
            f"and would answer by chance; set it above 0, or exits.head to {teacher.head_kind}",
            field="distill.training.epochs",
        )
    early_exits = len(student.heads) - 1
    if training.exit_shares and len(training.exit_shares) != early_exits:
        raise UserError(
            f"has {len(training.exit_shares)} numbers for the {early_exits} exits before the last; give one each",
            field="distill.training.exit_shares",
        )


def last_layer(model: ExitModel) -> Layer:
    """Returns the encoder's last layer."""
    return cast(Layer, model.encoder.layers[-1])  # nn.ModuleList does not know its elements' type
