"""The losses against plain numpy in float64, gradients too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
    p, q = (
        softmax(np.asarray(teacher, np.float64) / temperature),
        softmax(np.asarray(student, np.float64) / temperature),
    )
    return float((p * np.log(p / q)).sum(axis=-1).mean()) * temperature**2


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_target_loss_is_kl_times_the_squared_temperature(temperature):
    student, teacher = normal(6, 4), normal(6, 4, seed=1)
    given = float(soft_target_loss(student, teacher, temperature))
    assert given == pytest.approx(kl(teacher.numpy(), student.numpy(), temperature), rel=1e-4)
    assert float(soft_target_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)
    assert float(soft_target_loss(student + 5, teacher - 3, temperature)) == pytest.approx(
        given, rel=1e-4
    )  # only differences count


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
    assert float(given) == pytest.approx(
        float(soft_target_loss(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)), rel=1e-6
    )


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


def test_rows_without_a_label_add_nothing_to_the_hard_loss():
    logits = normal(3, 4)
    labelled = float(hard_loss("classification", logits[:2], torch.tensor([[1], [3]]), None))
    assert float(hard_loss("classification", logits, torch.tensor([[1], [3], [UNLABELLED]]), None)) == pytest.approx(
        labelled * 2 / 3
    )
    assert float(hard_loss("classification", logits, None, None)) == 0
    scores = normal(2, 1).requires_grad_()
    loss = hard_loss("regression", scores, torch.tensor([[0.5], [torch.nan]]), None)
    assert loss.item() == pytest.approx((scores[0].item() - 0.5) ** 2 / 2)
    loss.backward()
    assert scores.grad[0] != 0 and scores.grad[1] == 0


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
    for scores in get_task("qa").distributions(student, mask):
        probabilities = torch.softmax(scores, dim=-1)
        assert (probabilities[~mask] == 0).all()
        torch.testing.assert_close((probabilities * mask).sum(-1), torch.ones(2))


def test_classification_losses_are_torchs():
    student, teacher, targets = normal(6, 3), normal(6, 3, seed=1), torch.tensor([[0], [2], [1], [1], [0], [2]])
    expected = -np.log(softmax(student.double().numpy()))[np.arange(6), targets[:, 0].numpy()].mean()
    assert float(hard_loss("classification", student, targets, None)) == pytest.approx(expected, rel=1e-5)
    expected = kl(teacher.numpy(), student.numpy(), 2.0)
    assert float(soft_loss("classification", student, teacher, None, 2.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_targets_are_the_papers_cross_entropy_less_the_teachers_entropy(temperature):
    """DistilBERT, section 2: the sum of t_i * log(s_i), at a temperature; here times T^2, and 0 where student and teacher agree."""
    student, teacher = normal(5, 7), normal(5, 7, seed=1)
    t, s = (softmax(part.double().numpy() / temperature) for part in (teacher, student))
    cross_entropy, entropy = -(t * np.log(s)).sum(-1).mean(), -(t * np.log(t)).sum(-1).mean()
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(
        temperature**2 * (cross_entropy - entropy), rel=1e-4
    )


def test_cosine_loss_is_torchs_with_target_1():
    student, teacher = normal(2, 5, 8).requires_grad_(), normal(2, 5, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    flat = mask.flatten().bool()
    theirs = torch.nn.CosineEmbeddingLoss()(
        student.flatten(0, 1)[flat], teacher.flatten(0, 1)[flat], torch.ones(int(mask.sum()))
    )
    ours = cosine_loss(student, teacher, mask.float())
    torch.testing.assert_close(ours, theirs)
    for given, expected in zip(torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student)):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


def test_mlm_loss_is_the_cross_entropy_over_the_hidden_words_alone():
    """As BertForMaskedLM has it: labels of -100 wherever nothing is hidden."""
    logits, words = (
        normal(2, 6, 9).requires_grad_(),
        torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(5)),
    )
    chosen = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), words.masked_fill(~chosen, -100).flatten(), ignore_index=-100
    )
    ours = mlm_loss(logits[chosen], words[chosen])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    plain = [
        -np.log(softmax(logits[row, at].detach().double().numpy())[words[row, at]])
        for row, at in ((0, 1), (0, 4), (1, 0))
    ]
    assert float(ours) == pytest.approx(np.mean(plain), rel=1e-5)


def test_attention_loss_is_minilms():
    """Equation 5: the divergence of every head's distribution at every real token, in plain loops."""
    heads, lengths = 3, (5, 3)
    student, teacher = normal(2, heads, 5, 5), normal(2, heads, 5, 5, seed=1)
    mask = torch.tensor([[1.0] * length + [0.0] * (5 - length) for length in lengths])
    bias = (1 - mask)[:, None, None, :] * -1e4
    sums, count = 0.0, 0
    for row, length in enumerate(lengths):
        for at in range(length):
            for head in range(heads):
                sums += kl(teacher[row, head, at, :length].numpy(), student[row, head, at, :length].numpy(), 1.0)
                count += 1
    given = attention_loss(student + bias, teacher + bias, mask)
    assert float(given) == pytest.approx(sums / count, rel=1e-4)
    assert float(attention_loss(teacher + bias, teacher + bias, mask)) == pytest.approx(0, abs=1e-6)


def test_regression_losses_are_mean_squared_errors_at_any_temperature():
    student, teacher, labels = normal(6, 1).requires_grad_(), normal(6, 1, seed=1), torch.rand(6, 1)
    a, b, y = (part.detach().double().numpy() for part in (student, teacher, labels))
    hard = hard_loss("regression", student, labels, None)
    assert float(hard) == pytest.approx(np.mean((a - y) ** 2), rel=1e-5)
    np.testing.assert_allclose(torch.autograd.grad(hard, student)[0].numpy(), 2 * (a - y) / 6, rtol=1e-4)
    for temperature in (1.0, 4.0):
        soft = soft_loss("regression", student, teacher, None, temperature)
        assert float(soft) == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
        np.testing.assert_allclose(torch.autograd.grad(soft, student)[0].numpy(), 2 * (a - b) / 6, rtol=1e-4)
    assert soft_loss("regression", student.bfloat16(), teacher.bfloat16(), None, 1.0).dtype == torch.float32
