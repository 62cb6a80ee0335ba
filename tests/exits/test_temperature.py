"""Temperature scaling calibrates heads without changing their answers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.data.items import UNLABELLED, Item
from pipeline.exits.predictions import ExitOutputs, run_model
from pipeline.exits.temperature import (
    BOUNDS,
    calibrate_heads,
    expected_calibration_error,
    fit_temperature,
    labelled_logits,
)
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel


def make_model(task: str, head: str) -> ExitModel:
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=100, hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=32)
    model = ExitModel(task, config, 2, head, [1, 2])
    for part in model.heads.parameters():  # a new head's logits are close to 0
        part.data *= 20
    return model.eval()


def draw_labels(temperature: float, examples: int = 20000, classes: int = 4):
    """Returns random logits, and labels drawn from their softmax at a temperature, which a fit must find again."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(examples, classes, generator=generator)
    return logits, torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_found(truth):
    logits, targets = draw_labels(truth)
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(truth, rel=0.05)
    # By torch's loss, temperatures around it are worse.
    best = F.cross_entropy(logits / found, targets)
    for other in (0.9 * found, 1.1 * found):
        assert F.cross_entropy(logits / other, targets) > best
    assert expected_calibration_error(logits / found, targets) < 0.02
    if truth != 1.0:
        assert expected_calibration_error(logits, targets) > 0.05


def test_masked_classes_do_not_count():
    logits, targets = draw_labels(2.0)
    padded = F.pad(logits, (0, 3), value=float("-inf"))
    assert fit_temperature(padded, targets) == pytest.approx(fit_temperature(logits, targets))


def test_a_head_that_is_always_right_or_always_wrong_stays_within_bounds():
    logits = torch.eye(3).repeat(10, 1)
    assert fit_temperature(logits, logits.argmax(dim=-1)) == pytest.approx(BOUNDS[0], rel=1e-3)
    assert fit_temperature(logits, (logits.argmax(dim=-1) + 1) % 3) == pytest.approx(BOUNDS[1], rel=1e-3)


def test_every_exit_of_a_classifier_gets_its_own_temperature():
    model = make_model("classification", "pooled")
    random = np.random.default_rng(0)
    items = [
        Item(random.integers(5, 100, random.integers(4, 20)), np.zeros(0, np.int64), (int(random.integers(0, 2)),))
        for _ in range(64)
    ]
    items = [Item(item.ids, np.zeros_like(item.ids), item.target) for item in items]
    before = run_model(model, items)
    report = calibrate_heads(model, items)
    after = run_model(model, items)
    assert model.temperatures == [entry["temperature"] for entry in report] and len(report) == len(model.heads)
    for exit, entry in enumerate(report):
        hotter = entry["temperature"] > 1
        for unscaled, scaled in zip(before, after):
            assert np.array_equal(unscaled.logits[exit], scaled.logits[exit])
            if unscaled.uncertainty[exit] < 1:
                assert (scaled.uncertainty[exit] >= unscaled.uncertainty[exit]) == hotter


def test_a_span_counts_as_two_examples_over_the_answer_tokens():
    model = make_model("qa", "attention")
    ids = np.arange(5, 15)
    mask = np.array([False] * 4 + [True] * 6)
    (logits, targets), *_ = labelled_logits(
        model, [Item(ids, np.zeros_like(ids), (5, 7), mask), Item(ids[:8], np.zeros(8, int), (4, 4), mask[:8])]
    )
    assert logits.shape == (4, 10) and targets.tolist() == [5, 7, 4, 4]
    assert torch.isinf(logits[:, :4]).all() and torch.isinf(logits[2:, 8:]).all()
    assert torch.isfinite(logits[:2, 4:]).all()


def test_a_token_with_a_class_counts_as_an_example(monkeypatch):
    model = make_model("classification", "pooled")
    outputs = [ExitOutputs(np.arange(16.0).reshape(2, 4, 2), np.zeros(2))]  # two exits, four tokens, two classes
    monkeypatch.setattr("pipeline.exits.temperature.run_model", lambda *_: outputs)
    ids, classes = np.arange(5, 9), np.array([UNLABELLED, 1, 0, UNLABELLED])
    item = Item(ids, np.zeros_like(ids), (classes,), classes != UNLABELLED)
    first, second = labelled_logits(model, [item])
    assert first[0].tolist() == [[2, 3], [4, 5]] and second[0].tolist() == [[10, 11], [12, 13]]
    assert first[1].tolist() == second[1].tolist() == [1, 0]
