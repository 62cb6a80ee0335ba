"""The attention loss of task distillation: it is learned if the recipe asks for it, and computed only then."""

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


def make_items(count: int = 24) -> list[Item]:
    random = np.random.default_rng(3)
    return [
        Item(random.integers(1, 40, length), np.zeros(length, np.int64), (index % 2,))
        for index, length in enumerate(random.integers(4, 14, count))
    ]


def make_recipe(**weights) -> Recipe:
    training = {"epochs": 8, "batch_size": 8, "learning_rate": 2e-3}
    return Recipe.model_validate(
        {"name": "t", "task": "classification", "precision": "fp32", "distill": {"training": training} | weights}
    )


def make_models(heads: int = 4) -> tuple[ExitModel, ExitModel]:
    """Returns a student of two random layers, and a teacher whose attention is not uniform."""
    torch.manual_seed(1)
    teacher = ExitModel("classification", CONFIG, 2, "pooled", [3]).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    student = ExitModel("classification", CONFIG.with_(layers=2, heads=heads), 2, "pooled", [1, 2])
    return student, teacher


@torch.no_grad()
def attention_distance(student: ExitModel, teacher: ExitModel) -> float:
    """Returns the attention loss between the last layers, computed layer by layer and not by the training code."""
    batch = collate(make_items())
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    bias, logits = attention_bias(mask), []
    for model in (student, teacher):
        hidden = model.encoder.embeddings(ids)
        for layer in model.encoder.layers[:-1]:
            hidden = layer(hidden, bias)
        logits.append(model.encoder.layers[-1].attention_logits(hidden, bias))
    return float(attention_loss(*logits, mask))


def test_the_students_attention_approaches_its_teachers(tmp_path):
    student, teacher = make_models()
    before = attention_distance(student, teacher)
    recipe = make_recipe(soft_weight=0, hard_weight=0, attention_weight=1.0)
    distill(student, teacher, make_items(), recipe, tmp_path / "checkpoint.pt")
    assert attention_distance(student, teacher) < 0.8 * before


def test_attention_is_computed_only_if_it_is_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(Layer, "attention_logits", lambda *_: pytest.fail("computed"))
    student, teacher = make_models()
    distill(student, teacher, make_items(), make_recipe(), tmp_path / "checkpoint.pt")


def test_different_numbers_of_heads_are_refused(tmp_path):
    student, teacher = make_models(heads=2)
    with pytest.raises(UserError, match=r"^distill\.attention_weight: .*; set it to 0"):
        distill(student, teacher, make_items(), make_recipe(attention_weight=1.0), tmp_path / "checkpoint.pt")


def test_a_student_of_all_layers_starts_with_its_teachers_attention():
    _, teacher = make_models()
    student = initialise_student(teacher, [0, 1, 2], None, "pooled").eval()
    assert attention_distance(student, teacher) == pytest.approx(0, abs=1e-6)
