"""Kept targets equal the teacher's logits, and a student learns the same from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.data.items import Item, collate
from pipeline.distill import targets
from pipeline.distill.student import initialise_student
from pipeline.distill.targets import keep_targets
from pipeline.distill.task import distill
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe, load_recipe
from pipeline.support.errors import UserError

CONFIG = EncoderConfig(vocab_size=40, hidden_size=64, layers=2, heads=2, intermediate_size=64, max_positions=32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(targets, "BLOCK", 4)


def make_items(task: str) -> list[Item]:
    random = np.random.default_rng(0)
    items = []
    for index in range(14):  # 4 blocks, the last of 2 items
        length = int(random.integers(3, 20))
        mask = np.arange(length) >= 2 if task == "qa" else None
        target = (2, 2) if task == "qa" else (index % 3,)
        items.append(Item(random.integers(1, 40, length), np.zeros(length, np.int64), target, mask))
    return items


def make_model(task: str) -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel(task, CONFIG, 3 if task == "classification" else 2, "linear", [2]).eval()
    with torch.no_grad():
        model.heads[0].out.weight.mul_(30)  # logits as large as a trained teacher's
    return model


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_every_item_gets_its_logits_back(tmp_path, task):
    items, model = make_items(task), make_model(task)
    kept = keep_targets(
        tmp_path / "targets", lambda batch: model(batch.ids, batch.mask, batch.types).logits[-1], items, "fp32"
    )
    rows = np.array([13, 0, 7, 4])
    batch = collate([items[row] for row in rows])
    with torch.no_grad():
        expected = model(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).logits[-1]
    if task == "qa":
        expected = expected * torch.from_numpy(batch.mask)[..., None]
    logits = kept.batch(rows, torch.device("cpu"))
    assert logits.shape == expected.shape and logits.dtype == torch.float32
    assert 4 < expected.abs().max() < 16
    torch.testing.assert_close(logits, expected, rtol=2**-11, atol=1e-3)
    assert all(isinstance(block, np.memmap) for block in kept.blocks)


def test_an_interrupted_pass_computes_only_the_missing_blocks(tmp_path):
    items, model, batch_sizes = make_items("classification"), make_model("classification"), []

    def teacher(batch, stop_at=None):
        if len(batch_sizes) == stop_at:
            raise KeyboardInterrupt
        batch_sizes.append(len(batch.ids))
        return model(batch.ids, batch.mask).logits[-1]

    with pytest.raises(KeyboardInterrupt):
        keep_targets(tmp_path / "t", lambda batch: teacher(batch, 2), items, "fp32")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["00000.npy", "00001.npy"]
    kept = keep_targets(tmp_path / "t", teacher, items, "fp32")
    assert batch_sizes == [4, 4, 4, 2]
    whole = keep_targets(tmp_path / "w", teacher, items, "fp32")
    assert all(np.array_equal(kept.of(index), whole.of(index)) for index in range(len(items)))


@pytest.mark.parametrize("task", ["classification", "qa"])
def test_a_student_learns_the_same_from_kept_targets(tmp_path, task):
    losses, calls, call_counts = [], [], []
    for keep in (False, True):
        teacher = make_model(task)
        torch.manual_seed(1)
        student = initialise_student(teacher, [0], None, "linear")
        training = {"epochs": 3, "batch_size": 4, "exit_weight": 0.5}
        recipe = Recipe.model_validate(
            {"name": "t", "task": task, "precision": "fp32", "distill": {"keep_targets": keep, "training": training}}
        )
        teacher.register_forward_hook(lambda *_: calls.append(1))
        distill(student, teacher, make_items(task), recipe, tmp_path / f"{keep}.pt", curve=tmp_path / f"{keep}.json")
        call_counts.append(len(calls))
        calls.clear()
        losses.append(json.loads((tmp_path / f"{keep}.json").read_text())["losses"])
    assert call_counts == [12, 4]  # once a step without kept targets; once a block with them
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_keeping_targets_is_refused_where_hidden_states_are_compared(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "t"\ntask = "classification"\n[distill]\nkeep_targets = true\nhidden_weight = 1.0\n')
    with pytest.raises(
        UserError, match=r"r\.toml: distill\.keep_targets: keeps the teacher's logits.*hidden_weight.*to 0"
    ):
        load_recipe(recipe)
    assert load_recipe(recipe, ["distill.hidden_weight=0"]).distill.keep_targets
