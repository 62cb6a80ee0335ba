"""The losses of distillation. Each is a mean over the batch, computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.inputs import MASKED
from pipeline.data.items import UNLABELLED
from pipeline.names import Task


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns T^2 times the KL divergence from teacher to student at temperature T (DistilBERT, section 2).

    It was introduced by Hinton et al. 2015. It is the soft-target cross-entropy minus the teacher's entropy. The
    latter has no gradient; without it, 0 means agreement. The factor T^2 keeps the gradient's size the same at every
    temperature.

    Args:
        student_logits, teacher_logits: [batch, classes].
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


def distributions(task: Task, logits: Tensor, answer_mask: Tensor | None) -> list[Tensor]:
    """The logits of each distribution that a head gives: one over the labels, or start and end over the tokens that may answer.

    Args:
        logits: [batch, labels], or [batch, length, 2] for QA.
        answer_mask: [batch, length] bool, QA only.
    """
    if task == "classification":
        return [logits.float()]
    return [scores.float().masked_fill(~answer_mask, MASKED) for scores in logits.unbind(dim=-1)]


def hard_loss(task: Task, logits: Tensor, targets: Tensor | None, answer_mask: Tensor | None) -> Tensor:
    """Cross-entropy with the labels, averaged over start and end for QA, or for regression the mean squared error.

    A mean over the whole batch, to which an item without a label adds nothing: a batch with few labels pulls no harder at each.

    Args:
        logits: see `distributions`; for regression [batch, 1], as a share of the label range.
        targets: [batch, 1], or [batch, 2] for QA; for regression as the logits; as `Batch` has them.
    """
    if targets is None:
        return logits.new_zeros((), dtype=torch.float32)
    if task == "regression":
        return (logits.float() - torch.where(targets.isnan(), logits.float().detach(), targets)).square().mean()
    parts = distributions(task, logits, answer_mask)
    losses = [
        F.cross_entropy(part, targets[:, at], ignore_index=UNLABELLED, reduction="sum") for at, part in enumerate(parts)
    ]
    return torch.stack(losses).mean() / len(logits)


def soft_loss(task: Task, student: Tensor, teacher: Tensor, answer_mask: Tensor | None, temperature: float) -> Tensor:
    """`soft_target_loss` of a head's distributions, averaged over start and end for QA.

    A regression has no distribution to soften: it is the mean squared error with the teacher's prediction, whatever the temperature.
    """
    if task == "regression":
        return F.mse_loss(student.float(), teacher.float())
    pairs = zip(distributions(task, student, answer_mask), distributions(task, teacher, answer_mask))
    return torch.stack([soft_target_loss(ours, theirs, temperature) for ours, theirs in pairs]).mean()
