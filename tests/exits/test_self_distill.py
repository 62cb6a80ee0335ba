"""The early exits learn the last one's answer, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.distill.losses import soft_loss
from pipeline.exits.self_distill import self_distill
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe

CONFIG = EncoderConfig(vocab_size=40, hidden_size=32, layers=3, heads=2, intermediate_size=64, max_positions=32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_recipe(task: str, precision: str, head: str = "default") -> Recipe:
    training = {"epochs": 6, "batch_size": 16, "head_learning_rate": 1e-2, "weight_decay": 0.0}
    return Recipe.model_validate(
        {"name": "test", "task": task, "precision": precision, "exits": {"head": head, "training": training}}
    )


def make_model(task: str, head: str, exits=(1, 2, 3)) -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel(task, CONFIG, 3 if task == "classification" else 2, head, exits)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.2 if parameter.ndim > 1 else 0.1) * torch.randn_like(parameter))
    return model


def make_items(task: str, count: int = 96) -> list[Item]:
    """Returns items without labels."""
    random = np.random.default_rng(0)
    items = []
    for _ in range(count):
        length = int(random.integers(5, 13))
        mask = np.arange(length) >= 3 if task == "qa" else None
        items.append(Item(random.integers(0, 40, length), np.zeros(length, np.int64), None, mask))
    return items


@torch.no_grad()
def divergences(model: ExitModel, task: str, items: list[Item]) -> np.ndarray:
    """Returns the mean KL divergence of each early exit from the last one."""
    sums = np.zeros(len(model.heads) - 1)
    for item in items:
        logits = model(torch.from_numpy(item.ids)[None], torch.ones(1, len(item.ids))).logits
        mask = None if item.answer_mask is None else torch.from_numpy(item.answer_mask)[None]
        sums += [float(soft_loss(task, early, logits[-1], mask, 1.0)) for early in logits[:-1]]
    return sums / len(items)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("task", "head"), [("classification", "pooled"), ("classification", "bert"), ("qa", "attention"), ("qa", "linear")]
)
def test_only_the_early_heads_learn(tmp_path, task, head, precision):
    """Under bf16, autocast caches casts of the weights; one cached without a gradient would block training."""
    model, items = make_model(task, head), make_items(task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = divergences(model, task, items)
    returned = self_distill(model, items, make_recipe(task, precision, head), tmp_path / "checkpoint.pt")
    assert returned is model and not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        early = name.startswith(("heads.0.", "heads.1."))
        assert value.dtype == torch.float32
        if not early or value.ndim > 1:  # some biases never get a gradient, since a softmax ignores a constant
            assert torch.equal(value, before[name]) != early, name
    assert (divergences(model, task, items) < 0.7 * start).all()


def test_only_early_heads_ever_get_a_gradient(tmp_path, monkeypatch):
    model = make_model("classification", "pooled")
    largest = {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: largest.__setitem__(name, float(gradient.abs().max())))
    self_distill(
        model, make_items("classification", 32), make_recipe("classification", "bf16"), tmp_path / "checkpoint.pt"
    )
    assert set(largest) == {name for name, _ in model.named_parameters() if name.startswith(("heads.0.", "heads.1."))}
    assert all(value > 0 for name, value in largest.items() if not name.endswith("score.bias"))


def test_a_model_with_a_single_exit_does_not_change(tmp_path):
    model = make_model("classification", "pooled", exits=(3,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    self_distill(
        model, make_items("classification", 8), make_recipe("classification", "fp32"), tmp_path / "checkpoint.pt"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padding_does_not_change_what_is_learned(tmp_path):
    """Neither the heads' attention nor the span distributions may see the padding."""
    weights = []
    for extra in (0, 6):
        model = make_model("qa", "attention")
        items = make_items("qa", 4)
        ids = np.arange(12 + extra)
        # With a single candidate its divergence is 0 at every exit, so this item only adds padding to the others.
        long = Item(ids, np.zeros(len(ids), np.int64), None, ids == 5)
        recipe = make_recipe("qa", "fp32")
        self_distill(model, [*items, long], recipe, tmp_path / f"{extra}.pt")
        weights.append(model.heads[0].direct.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)
