"""The losses against plain numpy in float64, gradients too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.distill.losses import cosine_loss, distributions, hard_loss, soft_loss, soft_target_loss


def softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    p, q = softmax(np.asarray(teacher, np.float64) / temperature), softmax(np.asarray(student, np.float64) / temperature)
    return float((p * np.log(p / q)).sum(axis=-1).mean()) * temperature**2


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_target_loss_is_kl_times_the_squared_temperature(temperature):
    student, teacher = normal(6, 4), normal(6, 4, seed=1)
    given = float(soft_target_loss(student, teacher, temperature))
    assert given == pytest.approx(kl(teacher.numpy(), student.numpy(), temperature), rel=1e-4)
    assert float(soft_target_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)
    assert float(soft_target_loss(student + 5, teacher - 3, temperature)) == pytest.approx(given, rel=1e-4)  # only differences count


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_target_gradient_is_that_of_the_soft_cross_entropy(temperature):
    """And both are T * (q - p) / batch, by hand."""
    teacher = normal(5, 3, seed=1)
    student = normal(5, 3).requires_grad_()
    (given,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)
    targets = torch.softmax(teacher / temperature, dim=-1)
    cross_entropy = torch.nn.functional.cross_entropy(student / temperature, targets) * temperature**2
    (expected,) = torch.autograd.grad(cross_entropy, student)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.detach().numpy() / temperature)
    np.testing.assert_allclose(given.numpy(), temperature * (q - p) / 5, atol=1e-5)


def test_losses_compute_in_float32_whatever_they_are_given():
    student, teacher = normal(4, 3), normal(4, 3, seed=1)
    given = soft_target_loss(student.bfloat16(), teacher.bfloat16(), 2.0)
    assert given.dtype == torch.float32
    assert float(given) == pytest.approx(float(soft_target_loss(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)), rel=1e-6)


def test_cosine_loss_is_numpys_and_ignores_padding():
    student, teacher = normal(2, 5, 8), normal(2, 5, 8, seed=1)
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
    """student and teacher logits [batch, length, 2], answer mask, targets."""
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:8] = True
    mask[1, 2:5] = True
    return normal(2, 9, 2), normal(2, 9, 2, seed=1), mask, torch.tensor([[3, 6], [4, 4]])


def test_qa_hard_loss_is_the_cross_entropy_over_the_tokens_that_may_answer(qa):
    student, _, mask, targets = qa
    parts = [
        -np.log(softmax(student[row, mask[row], side].double().numpy())[int(mask[row, : targets[row, side]].sum())])
        for row in range(2)
        for side in range(2)
    ]
    assert float(hard_loss("qa", student, targets, mask)) == pytest.approx(np.mean(parts), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_qa_soft_loss_is_the_mean_over_start_and_end(qa, temperature):
    student, teacher, mask, _ = qa
    parts = [
        kl(teacher[row, mask[row], side].numpy(), student[row, mask[row], side].numpy(), temperature)
        for row in range(2)
        for side in range(2)
    ]
    assert float(soft_loss("qa", student, teacher, mask, temperature)) == pytest.approx(np.mean(parts), rel=1e-4)


def test_qa_losses_and_gradients_ignore_other_tokens(qa):
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
    for scores in distributions("qa", student, mask):
        probabilities = torch.softmax(scores, dim=-1)
        assert (probabilities[~mask] == 0).all()
        torch.testing.assert_close((probabilities * mask).sum(-1), torch.ones(2))


def test_classification_losses_are_torchs():
    student, teacher, targets = normal(6, 3), normal(6, 3, seed=1), torch.tensor([[0], [2], [1], [1], [0], [2]])
    expected = -np.log(softmax(student.double().numpy()))[np.arange(6), targets[:, 0].numpy()].mean()
    assert float(hard_loss("classification", student, targets, None)) == pytest.approx(expected, rel=1e-5)
    expected = kl(teacher.numpy(), student.numpy(), 2.0)
    assert float(soft_loss("classification", student, teacher, None, 2.0)) == pytest.approx(expected, rel=1e-4)
