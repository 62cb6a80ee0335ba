"""Task distillation by the teacher's attention: learned where the recipe asks for it, computed nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.items import Item, collate
from pipeline.distill.losses import attention_loss
from pipeline.distill.student import initialise_student
from pipeline.distill.task import distill
from pipeline.model.encoder import EncoderConfig, Layer, attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError

CONFIG = EncoderConfig(vocab_size=40, hidden_size=64, layers=3, heads=4, intermediate_size=96, max_positions=32)


def items_of(count: int = 24) -> list[Item]:
    chance = np.random.default_rng(3)
    return [
        Item(chance.integers(1, 40, size), np.zeros(size, np.int64), (at % 2,))
        for at, size in enumerate(chance.integers(4, 14, count))
    ]


def recipe_of(**weights) -> Recipe:
    training = {"epochs": 8, "batch_size": 8, "learning_rate": 2e-3}
    return Recipe.model_validate(
        {"name": "t", "task": "classification", "precision": "fp32", "distill": {"training": training} | weights}
    )


def models(heads: int = 4) -> tuple[ExitModel, ExitModel]:
    """(student of two random layers, teacher that attends to something)."""
    torch.manual_seed(1)
    teacher = ExitModel("classification", CONFIG, 2, "pooled", [3]).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    student = ExitModel("classification", CONFIG.with_(layers=2, heads=heads), 2, "pooled", [1, 2])
    return student, teacher


@torch.no_grad()
def apart(student: ExitModel, teacher: ExitModel) -> float:
    """How far the last layers' attention is apart: from every layer's own forward pass, not from what training keeps."""
    batch = collate(items_of())
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    bias, logits = attention_bias(mask), []
    for model in (student, teacher):
        hidden = model.encoder.embeddings(ids)
        for layer in model.encoder.layers[:-1]:
            hidden = layer(hidden, bias)
        logits.append(model.encoder.layers[-1].attention_logits(hidden, bias))
    return float(attention_loss(*logits, mask))


def test_the_student_attends_as_its_teacher(tmp_path):
    student, teacher = models()
    before = apart(student, teacher)
    distill(
        student,
        teacher,
        items_of(),
        recipe_of(soft_weight=0, hard_weight=0, attention_weight=1.0),
        tmp_path / "checkpoint.pt",
    )
    assert apart(student, teacher) < 0.8 * before


def test_attention_is_only_computed_where_it_is_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(Layer, "attention_logits", lambda *_: pytest.fail("computed"))
    student, teacher = models()
    distill(student, teacher, items_of(), recipe_of(), tmp_path / "checkpoint.pt")


def test_another_number_of_heads_is_refused(tmp_path):
    student, teacher = models(heads=2)
    with pytest.raises(UserError, match=r"^distill\.attention_weight: .*; set it to 0"):
        distill(student, teacher, items_of(), recipe_of(attention_weight=1.0), tmp_path / "checkpoint.pt")


def test_a_student_of_all_layers_attends_as_its_teacher_from_the_start():
    _, teacher = models()
    assert apart(initialise_student(teacher, [0, 1, 2], None, "pooled").eval(), teacher) == pytest.approx(0, abs=1e-6)
