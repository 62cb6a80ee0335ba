"""The losses of distillation, each a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.items import UNLABELLED
from pipeline.names import Task
from pipeline.tasks import get_task


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence from teacher to student at a temperature, times T^2 (Hinton et al. 2015; DistilBERT, section 2).

    It differs from the soft-target cross-entropy by the teacher's entropy, which has no gradient; so 0 means agreement. T^2 keeps the size of
    the gradient the same at every temperature.

    Args:
        student_logits, teacher_logits: [batch, classes].
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the hidden states, over real tokens (DistilBERT's third loss). Hidden [batch, length, width], mask [batch, length]."""
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return ((1 - cosine) * mask).sum() / mask.sum()


def mlm_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy with the hidden words; logits: [chosen tokens, vocabulary], words: [chosen tokens] (BERT, section 3.1, task 1)."""
    return F.cross_entropy(logits.float(), words)


def attention_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """KL divergence from the teacher's attention to the student's, mean over heads and real tokens (MiniLM, section 3.1, equation 5).

    Args:
        student_logits, teacher_logits: scores before the softmax, [batch, heads, length, length], padded keys already out of reach.
        mask: [batch, length]; a padded token's own attention does not count.
    """
    student = F.log_softmax(student_logits.float(), dim=-1)
    teacher = F.log_softmax(teacher_logits.float(), dim=-1)
    divergence = (
        F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)
    )  # [batch, length]
    return (divergence * mask).sum() / mask.sum()


def hard_loss(task: Task, logits: Tensor, targets: Tensor | None, answer_mask: Tensor | None) -> Tensor:
    """Cross-entropy with the labels, averaged over the task's distributions; for a number the mean squared error.

    The mean is over the whole batch. An item without a label adds nothing to it, so a batch with few labels pulls no harder at each.

    Args:
        logits: a head's, [batch, ...]; a number is a share of the label range, [batch, 1].
        targets: [batch, distributions], or the numbers [batch, 1], as `Batch` has them.
        answer_mask: [batch, length] bool, for tasks that have one.
    """
    if targets is None:
        return logits.new_zeros((), dtype=torch.float32)
    if get_task(task).predicts_number:
        return (logits.float() - torch.where(targets.isnan(), logits.float().detach(), targets)).square().mean()
    losses = [
        F.cross_entropy(distribution, targets[:, index], ignore_index=UNLABELLED, reduction="sum")
        for index, distribution in enumerate(get_task(task).distributions(logits, answer_mask))
    ]
    return torch.stack(losses).mean() / len(logits)


def soft_loss(task: Task, student: Tensor, teacher: Tensor, answer_mask: Tensor | None, temperature: float) -> Tensor:
    """`soft_target_loss` averaged over the task's distributions.

    A number has no distribution to soften: its loss is the mean squared error with the teacher's, whatever the temperature.
    """
    if get_task(task).predicts_number:
        return F.mse_loss(student.float(), teacher.float())
    distributions = get_task(task).distributions
    pairs = zip(distributions(student, answer_mask), distributions(teacher, answer_mask))
    return torch.stack([soft_target_loss(ours, theirs, temperature) for ours, theirs in pairs]).mean()
