"""A student starts as its teacher's layers."""

from __future__ import annotations

import pytest
import torch

from pipeline.distill.student import default_layers, initialise_student
from pipeline.errors import UserError
from pipeline.model.encoder import EncoderConfig, parameter_count
from pipeline.model.exit_model import ExitModel

CONFIG = EncoderConfig(vocab_size=100, hidden_size=32, layers=4, heads=2, intermediate_size=64, max_positions=40, token_types=2)


def teacher_of(config: EncoderConfig = CONFIG, head: str = "bert", task: str = "classification") -> ExitModel:
    torch.manual_seed(0)
    teacher = ExitModel(task, config, 3 if task == "classification" else 2, head, [config.layers]).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher


def test_default_layers():
    assert default_layers(12) == [0, 2, 4, 6, 8, 10]  # DistilBERT's
    assert default_layers(6) == [0, 1, 2, 3, 4, 5]
    assert default_layers(2) == [0, 1]
    assert default_layers(24) == list(range(0, 24, 2))


def test_a_12_layer_teacher_gives_a_student_of_every_other_layer():
    teacher = teacher_of(CONFIG.with_(layers=12))
    student = initialise_student(teacher, None, None, "pooled")
    assert student.config.layers == 6 and student.exit_layers == (1, 2, 3, 4, 5, 6) and student.config.token_types == 0
    for ours, theirs in enumerate([0, 2, 4, 6, 8, 10]):
        for name, tensor in student.encoder.layers[ours].state_dict().items():
            assert torch.equal(tensor, teacher.encoder.layers[theirs].state_dict()[name])


def test_bert_base_becomes_a_distilbert_in_size():
    with torch.device("meta"):
        teacher = ExitModel("classification", EncoderConfig(layers=12, token_types=2), 2, "bert", [12])
        assert parameter_count(initialise_student(teacher, None, [6], "linear").encoder) == 66_362_880


@pytest.mark.parametrize("task", ["classification", "qa"])
@torch.no_grad()
def test_with_all_layers_the_student_is_the_teacher(task):
    head = "bert" if task == "classification" else "linear"
    teacher = teacher_of(head=head, task=task)
    student = initialise_student(teacher, list(range(4)), None, head).eval()
    ids = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([20, 5, 13])[:, None]).float()
    given, expected = student(ids, mask), teacher(ids, mask)
    for ours, theirs in zip(given.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.logits[-1], expected.logits[-1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_student_shares_no_memory_with_the_teacher():
    teacher = teacher_of()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for parameter in initialise_student(teacher, None, None, "bert").parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1, 2], [0, 4]], ids=str)
def test_layers_the_teacher_does_not_have(layers):
    with pytest.raises(UserError, match=r"^student\.layers: .* within 0 to 3"):
        initialise_student(teacher_of(), layers, None, "pooled")


@pytest.mark.parametrize("exits", [[], [1], [0, 2], [2, 1, 2], [1, 3]], ids=str)
def test_exits_must_end_with_the_students_last_layer(exits):
    with pytest.raises(UserError, match=r"^student\.exit_layers: .* end with 2"):
        initialise_student(teacher_of(), [0, 2], exits, "pooled")
