"""Tests Hugging Face's module with the student's weights against the project's own encoder."""

import pytest
import torch

from pipeline.bench.runtimes.plain import PlainModel
from pipeline.model.checkpoint import save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel


def make_student(task, head, token_types=0, eps=1e-12):
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=90,
        hidden_size=32,
        layers=2,
        heads=4,
        intermediate_size=64,
        max_positions=24,
        token_types=token_types,
        layer_norm_eps=eps,
    )
    return ExitModel(task, config, 3, head, (1, 2)).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("task, head", [("classification", "pooled"), ("qa", "attention")])
def test_it_answers_as_the_last_exit_of_the_student(task, head, attention, tmp_path):
    student = make_student(task, head)
    save_model(student, tmp_path)
    ids, mask = torch.randint(0, 90, (1, 13)), (torch.arange(13) < 9).long()[None]
    with torch.no_grad():
        expected = student(ids, mask).logits[-1]
        answer = PlainModel.load(tmp_path, attention)(ids, mask)
    # Only the 9 real tokens are compared, since the two implementations compute different states at padding.
    if task == "qa":
        torch.testing.assert_close(torch.stack(answer, dim=-1)[:, :9], expected[:, :9], atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(answer[0], expected, atol=1e-5, rtol=1e-4)


def test_token_types_and_another_epsilon_are_kept():
    student = make_student("classification", "pooled", token_types=2, eps=1e-2)
    ids = torch.randint(0, 90, (1, 13))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = student(ids, mask).logits[-1]
        torch.testing.assert_close(PlainModel(student)(ids, mask)[0], expected, atol=1e-5, rtol=1e-4)
