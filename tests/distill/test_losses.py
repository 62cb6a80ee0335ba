"""The losses and their gradients equal plain numpy in float64, or torch's own losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.data.items import UNLABELLED
from pipeline.distill.losses import (
    attention_loss,
    cosine_loss,
    hard_loss,
    mlm_loss,
    soft_loss,
    soft_target_loss,
)
from pipeline.tasks import get_task


def softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    p, q = (softmax(np.asarray(logits, np.float64) / temperature) for logits in (teacher, student))
    return float((p * np.log(p / q)).sum(axis=-1).mean()) * temperature**2


def draw_normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_soft_target_loss_is_kl_times_the_squared_temperature(temperature):
    student, teacher = draw_normal(6, 4), draw_normal(6, 4, seed=1)
    loss = float(soft_target_loss(student, teacher, temperature))
    assert loss == pytest.approx(kl(teacher.numpy(), student.numpy(), temperature), rel=1e-4)
    assert float(soft_target_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)
    # Only differences between logits matter.
    assert float(soft_target_loss(student + 5, teacher - 3, temperature)) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_target_gradient_equals_that_of_the_soft_cross_entropy(temperature):
    """Both are T * (q - p) / batch."""
    teacher = draw_normal(5, 3, seed=1)
    student = draw_normal(5, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)
    targets = torch.softmax(teacher / temperature, dim=-1)
    cross_entropy = torch.nn.functional.cross_entropy(student / temperature, targets) * temperature**2
    (expected,) = torch.autograd.grad(cross_entropy, student)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.detach().numpy() / temperature)
    np.testing.assert_allclose(gradient.numpy(), temperature * (q - p) / 5, atol=1e-5)


def test_losses_compute_in_float32_for_any_dtype():
    student, teacher = draw_normal(4, 3), draw_normal(4, 3, seed=1)
    loss = soft_target_loss(student.bfloat16(), teacher.bfloat16(), 2.0)
    assert loss.dtype == torch.float32
    expected = soft_target_loss(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_the_cosine_loss_equals_numpys_and_ignores_padding():
    student, teacher = draw_normal(2, 5, 8), draw_normal(2, 5, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).float()
    a, b = student.double().numpy(), teacher.double().numpy()
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    expected = (1 - cosine)[mask.numpy().astype(bool)].mean()
    assert float(cosine_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)
    other = student.clone()
    other[1, 2:] = 77
    assert float(cosine_loss(other, teacher, mask)) == float(cosine_loss(student, teacher, mask))
    assert float(cosine_loss(3 * teacher, teacher, mask)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss(-teacher, teacher, mask)) == pytest.approx(2, abs=1e-6)


@pytest.fixture
def qa():
    """Student and teacher logits, [batch, length, 2], answer mask and targets."""
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:8] = True
    mask[1, 2:5] = True
    return draw_normal(2, 9, 2), draw_normal(2, 9, 2, seed=1), mask, torch.tensor([[3, 6], [4, 4]])


def test_the_qa_hard_loss_is_the_cross_entropy_over_the_answer_tokens(qa):
    student, _, mask, targets = qa
    parts = [
        -np.log(softmax(student[row, mask[row], side].double().numpy())[int(mask[row, : targets[row, side]].sum())])
        for row in range(2)
        for side in range(2)
    ]
    assert float(hard_loss("qa", student, targets, mask)) == pytest.approx(np.mean(parts), rel=1e-5)


def test_items_without_a_label_add_nothing_to_the_hard_loss():
    logits = draw_normal(3, 4)
    labelled = float(hard_loss("classification", logits[:2], torch.tensor([[1], [3]]), None))
    mixed = float(hard_loss("classification", logits, torch.tensor([[1], [3], [UNLABELLED]]), None))
    assert mixed == pytest.approx(labelled * 2 / 3)
    assert float(hard_loss("classification", logits, None, None)) == 0
    scores = draw_normal(2, 1).requires_grad_()
    loss = hard_loss("regression", scores, torch.tensor([[0.5], [torch.nan]]), None)
    assert loss.item() == pytest.approx((scores[0].item() - 0.5) ** 2 / 2)
    loss.backward()
    assert scores.grad[0] != 0 and scores.grad[1] == 0


def test_a_class_for_each_token_adds_up_over_the_tokens_whatever_the_padding():
    logits, teacher = draw_normal(2, 5, 3), draw_normal(2, 5, 3, seed=1)
    targets = torch.tensor([[2, UNLABELLED, 0, UNLABELLED, UNLABELLED], [1, 1, 2, 0, UNLABELLED]])
    parts = [
        -np.log(softmax(logits[row, token].double().numpy())[targets[row, token]])
        for row, token in (targets != UNLABELLED).nonzero().tolist()
    ]
    loss = float(hard_loss("classification", logits, targets[:, None], None))
    assert loss == pytest.approx(sum(parts) / 2, rel=1e-5)
    padding = torch.full((2, 1, 2), UNLABELLED)
    padded = F.pad(logits, (0, 0, 0, 2), value=7.0)
    assert float(hard_loss("classification", padded, torch.cat([targets[:, None], padding], dim=2), None)) == loss
    parts = [kl(teacher[row, token].numpy(), logits[row, token].numpy(), 2.0) for row in range(2) for token in range(5)]
    assert float(soft_loss("classification", logits, teacher, None, 2.0)) == pytest.approx(sum(parts) / 2, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_qa_soft_loss_is_the_mean_over_start_and_end(qa, temperature):
    student, teacher, mask, _ = qa
    parts = [
        kl(teacher[row, mask[row], side].numpy(), student[row, mask[row], side].numpy(), temperature)
        for row in range(2)
        for side in range(2)
    ]
    assert float(soft_loss("qa", student, teacher, mask, temperature)) == pytest.approx(np.mean(parts), rel=1e-4)


def test_qa_losses_and_gradients_ignore_tokens_outside_the_answer_mask(qa):
    student, teacher, mask, targets = qa
    loud = torch.where(mask[..., None], student, torch.tensor(60.0)).requires_grad_()
    for loss in (
        lambda logits: hard_loss("qa", logits, targets, mask),
        lambda logits: soft_loss("qa", logits, teacher, mask, 2.0),
        lambda logits: soft_loss("qa", logits, torch.where(mask[..., None], teacher, torch.tensor(60.0)), mask, 2.0),
    ):
        assert loss(loud).item() == loss(student).item()
        (gradient,) = torch.autograd.grad(loss(loud), loud)
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


def test_qa_distributions_sum_to_one_over_the_mask(qa):
    student, _, mask, _ = qa
    for scores in get_task("qa").distributions(student, mask):
        probabilities = torch.softmax(scores, dim=-1)
        assert (probabilities[~mask] == 0).all()
        torch.testing.assert_close((probabilities * mask).sum(-1), torch.ones(2))


def test_classification_losses_equal_their_definitions():
    student, teacher, targets = (
        draw_normal(6, 3),
        draw_normal(6, 3, seed=1),
        torch.tensor([[0], [2], [1], [1], [0], [2]]),
    )
    expected = -np.log(softmax(student.double().numpy()))[np.arange(6), targets[:, 0].numpy()].mean()
    assert float(hard_loss("classification", student, targets, None)) == pytest.approx(expected, rel=1e-5)
    expected = kl(teacher.numpy(), student.numpy(), 2.0)
    assert float(soft_loss("classification", student, teacher, None, 2.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_soft_target_loss_is_the_papers_cross_entropy_minus_the_teachers_entropy(temperature):
    """DistilBERT, section 2, has the sum of t_i * log(s_i). Ours is times T^2, and 0 if student and teacher agree."""
    student, teacher = draw_normal(5, 7), draw_normal(5, 7, seed=1)
    t, s = (softmax(logits.double().numpy() / temperature) for logits in (teacher, student))
    cross_entropy, entropy = -(t * np.log(s)).sum(-1).mean(), -(t * np.log(t)).sum(-1).mean()
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(
        temperature**2 * (cross_entropy - entropy), rel=1e-4
    )


def test_the_cosine_loss_equals_torchs_with_target_1():
    student, teacher = draw_normal(2, 5, 8).requires_grad_(), draw_normal(2, 5, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    flat = mask.flatten().bool()
    theirs = torch.nn.CosineEmbeddingLoss()(
        student.flatten(0, 1)[flat], teacher.flatten(0, 1)[flat], torch.ones(int(mask.sum()))
    )
    ours = cosine_loss(student, teacher, mask.float())
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_mlm_loss_is_the_cross_entropy_over_the_masked_words():
    """Hugging Face's BertForMaskedLM computes it with labels of -100 at all other tokens."""
    logits = draw_normal(2, 6, 9).requires_grad_()
    words = torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(5))
    chosen = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), words.masked_fill(~chosen, -100).flatten(), ignore_index=-100
    )
    ours = mlm_loss(logits[chosen], words[chosen])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    plain = [
        -np.log(softmax(logits[row, token].detach().double().numpy())[words[row, token]])
        for row, token in ((0, 1), (0, 4), (1, 0))
    ]
    assert float(ours.detach()) == pytest.approx(np.mean(plain), rel=1e-5)


def test_the_attention_loss_equals_minilms():
    """Computes MiniLM's equation 5 in plain loops over heads and real tokens."""
    heads, lengths = 3, (5, 3)
    student, teacher = draw_normal(2, heads, 5, 5), draw_normal(2, heads, 5, 5, seed=1)
    mask = torch.tensor([[1.0] * length + [0.0] * (5 - length) for length in lengths])
    bias = (1 - mask)[:, None, None, :] * -1e4
    sums, count = 0.0, 0
    for row, length in enumerate(lengths):
        for token in range(length):
            for head in range(heads):
                sums += kl(teacher[row, head, token, :length].numpy(), student[row, head, token, :length].numpy(), 1.0)
                count += 1
    loss = attention_loss(student + bias, teacher + bias, mask)
    assert float(loss) == pytest.approx(sums / count, rel=1e-4)
    assert float(attention_loss(teacher + bias, teacher + bias, mask)) == pytest.approx(0, abs=1e-6)


def test_regression_losses_are_mean_squared_errors_at_any_temperature():
    student, teacher, labels = draw_normal(6, 1).requires_grad_(), draw_normal(6, 1, seed=1), torch.rand(6, 1)
    a, b, y = (part.detach().double().numpy() for part in (student, teacher, labels))
    hard = hard_loss("regression", student, labels, None)
    assert hard.item() == pytest.approx(np.mean((a - y) ** 2), rel=1e-5)
    np.testing.assert_allclose(torch.autograd.grad(hard, student)[0].numpy(), 2 * (a - y) / 6, rtol=1e-4)
    for temperature in (1.0, 4.0):
        soft = soft_loss("regression", student, teacher, None, temperature)
        assert soft.item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
        np.testing.assert_allclose(torch.autograd.grad(soft, student)[0].numpy(), 2 * (a - b) / 6, rtol=1e-4)
    assert soft_loss("regression", student.bfloat16(), teacher.bfloat16(), None, 1.0).dtype == torch.float32
