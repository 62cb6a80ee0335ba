"""Task distillation: the student learns the task from the fine-tuned teacher (DistilBERT, section 4's second distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from pipeline.data.items import Item
from pipeline.distill.losses import attention_loss, cosine_loss, hard_loss, soft_loss
from pipeline.distill.targets import keep_targets
from pipeline.distill.trainer import TensorBatch, Trainer, device, parameter_groups
from pipeline.model.encoder import attention_bias
from pipeline.model.exit_model import ExitModel
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
    """Trains the student on soft targets, labels and hidden states, each by its weight in the recipe. Returns it in evaluation mode.

    With `training.exit_weight` above 0 the earlier exits learn the teacher's answer too, jointly with the backbone: early layers then
    gather what an answer needs, which a head on a frozen backbone cannot make them do. Kept targets, if the recipe wants them, go beside
    the checkpoint. `curve` is where the losses go, see `Trainer.write_losses`.

    Raises:
        UserError: if there is no training, and the student's last head, of another kind than the teacher's, would stay as it was drawn.
        UserError: if `training.exit_shares` has not one number for each exit before the last.
        UserError: if hidden states or attention are to be compared and the two have different widths or numbers of heads.
    """
    options, training = recipe.distill, recipe.distill.training
    if options.hidden_weight and student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(
            "the student is not as wide as the teacher, their hidden states cannot be compared; set it to 0",
            field="distill.hidden_weight",
        )
    if options.attention_weight and student.config.heads != teacher.config.heads:
        raise UserError(
            "the student has not as many heads as the teacher, their attention cannot be compared; set it to 0",
            field="distill.attention_weight",
        )
    if not training.epochs and student.head_kind != teacher.head_kind:
        raise UserError(
            f"the student's last head is new, {student.head_kind} where the teacher's is {teacher.head_kind}, and would answer by chance; set it above "
            f"0, or exits.head to {teacher.head_kind}",
            field="distill.training.epochs",
        )
    early_exits = len(student.heads) - 1
    shares = torch.tensor(training.exit_shares or [1.0] * early_exits, device=device())
    if len(shares) != early_exits:
        raise UserError(
            f"has {len(shares)} numbers for the {early_exits} exits before the last; give one each",
            field="distill.training.exit_shares",
        )
    student.to(device()).train()
    teacher.to(device()).eval()
    student.encoder.embeddings.word.weight.requires_grad_(not training.freeze_embeddings)
    kept = None
    if options.keep_targets and items and training.epochs:

        def answer(batch: TensorBatch) -> torch.Tensor:
            return teacher(batch.ids, batch.mask, batch.types).logits[-1]

        kept = keep_targets(checkpoint.with_name("targets"), answer, items, recipe.precision, on_step)
        teacher.cpu()

    def loss(batch: TensorBatch) -> torch.Tensor:
        target = None
        if kept is None:
            with torch.no_grad():
                target = teacher(batch.ids, batch.mask, batch.types)
        goal = target.logits[-1] if kept is None else kept.batch(batch.indices, batch.ids.device)
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
            total = total + options.hidden_weight * batch.token_weight * cosine_loss(
                output.hidden[-1], target.hidden[-1], batch.mask
            )
        if options.attention_weight:
            # The last layer's input is the state before the last one.
            bias = attention_bias(batch.mask)
            with torch.no_grad():
                theirs = teacher.encoder.layers[-1].attention_logits(target.hidden[-2], bias)
            ours = student.encoder.layers[-1].attention_logits(output.hidden[-2], bias)
            total = total + options.attention_weight * batch.token_weight * attention_loss(ours, theirs, batch.mask)
        early = output.logits[:-1]
        if training.exit_weight and early:
            losses = [soft_loss(recipe.task, logits, goal, batch.answer_mask, options.temperature) for logits in early]
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
        on_step=on_step,
    )
    with quantized_linears(student.encoder) if options.quantize_aware else nullcontext():
        trainer.run(items)
    if curve:
        trainer.write_losses(curve)
    teacher.cpu()
    return student.cpu().eval()
