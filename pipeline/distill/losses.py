"""The losses of distillation. Each is a mean over the batch, computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.items import UNLABELLED
from pipeline.names import Task
from pipeline.tasks import get_task


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the KL divergence from teacher to student at temperature T (DistilBERT, section 2).

    It was introduced by Hinton et al. 2015. It is the soft-target cross-entropy minus the teacher's entropy. The
    latter has no gradient; without it, 0 means agreement. The factor T^2 keeps the gradient's size the same at every
    temperature.

    Args:
        student_logits, teacher_logits: [batch, classes], or [batch, length, classes], whose divergences are summed over
            the tokens.
        temperature: T.

    Returns:
        a scalar.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns 1 - cosine similarity of the hidden states, averaged over real tokens (DistilBERT, section 2).

    Args:
        student_hidden, teacher_hidden: [batch, length, width].
        mask: [batch, length], 1 at real tokens.

    Returns:
        a scalar.
    """
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return ((1 - cosine) * mask).sum() / mask.sum()


def mlm_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Returns the cross-entropy with the masked words (BERT, section 3.1, task 1).

    Args:
        logits: [chosen tokens, vocab_size].
        words: [chosen tokens], the original ids.

    Returns:
        a scalar.
    """
    return F.cross_entropy(logits.float(), words)


def attention_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """Returns the KL divergence from the teacher's attention to the student's (MiniLM, section 3.1, equation 5).

    Args:
        student_logits, teacher_logits: scores before the softmax, [batch, heads, length, length], with padded keys
            masked.
        mask: [batch, length], 1 at real tokens; only their attention counts.

    Returns:
        a scalar, the mean over heads and real tokens.
    """
    student = F.log_softmax(student_logits.float(), dim=-1)
    teacher = F.log_softmax(teacher_logits.float(), dim=-1)
    # [batch, length]
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)
    return (divergence * mask).sum() / mask.sum()


def hard_loss(task: Task, logits: Tensor, targets: Tensor | None, answer_mask: Tensor | None) -> Tensor:
    """Returns the cross-entropy with the labels, averaged over the task's distributions.

    For a task that predicts a number it is the mean squared error. The mean is over the whole batch, and items
    without a label add 0. So in a batch with few labels, a label weighs no more than in others. Where each token has
    a class, an item adds the sum over its tokens, which does not depend on the padding.

    Args:
        logits: a head's, [batch, ...]; a number is a share of the label range, [batch, 1].
        targets: [batch, distributions], [batch, distributions, length] with a class for each token, or the numbers,
            [batch, 1], see `Batch`; None if no item has a label.
        answer_mask: [batch, length] bool, for tasks that have one.

    Returns:
        a scalar.
    """
    if targets is None:
        return logits.new_zeros((), dtype=torch.float32)
    if get_task(task).predicts_number:
        return (logits.float() - torch.where(targets.isnan(), logits.float().detach(), targets)).square().mean()
    losses = [
        F.cross_entropy(
            distribution.flatten(0, -2), targets[:, index].flatten(), ignore_index=UNLABELLED, reduction="sum"
        )
        for index, distribution in enumerate(get_task(task).distributions(logits, answer_mask))
    ]
    return torch.stack(losses).mean() / len(logits)


def soft_loss(task: Task, student: Tensor, teacher: Tensor, answer_mask: Tensor | None, temperature: float) -> Tensor:
    """Returns `soft_target_loss`, averaged over the task's distributions.

    A number has no distribution to soften, so its loss is the mean squared error at any temperature.

    Args:
        student, teacher: logits of a head, [batch, ...].
        answer_mask: [batch, length] bool, for tasks that have one.

    Returns:
        a scalar.
    """
    if get_task(task).predicts_number:
        return F.mse_loss(student.float(), teacher.float())
    distributions = get_task(task).distributions
    pairs = zip(distributions(student, answer_mask), distributions(teacher, answer_mask))
    return torch.stack([soft_target_loss(ours, theirs, temperature) for ours, theirs in pairs]).mean()
