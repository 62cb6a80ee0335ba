"""A run's model folders load as they were saved; a missing or truncated file is named."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.support.errors import UserError


@torch.no_grad()
def test_a_saved_model_loads_unchanged(tmp_path):
    config = EncoderConfig(
        vocab_size=50, hidden_size=32, layers=3, heads=2, intermediate_size=64, max_positions=20, layer_norm_eps=1e-5
    )
    model = ExitModel("classification", config, 3, "pooled", [1, 3]).eval()
    model.temperatures, model.uncertainty = [1.5, 0.5], "margin"
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.config, loaded.exit_layers, loaded.temperatures, loaded.labels) == (config, (1, 3), [1.5, 0.5], 3)
    assert loaded.uncertainty == "margin"
    assert not loaded.training
    ids, mask = torch.randint(0, 50, (2, 12)), torch.ones(2, 12)
    for saved_logits, loaded_logits in zip(model(ids, mask).logits, loaded(ids, mask).logits):
        assert torch.equal(saved_logits, loaded_logits)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_or_truncated_file_is_named(tmp_path, name):
    config = EncoderConfig(vocab_size=50, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=20)
    save_model(ExitModel("qa", config, 2, "linear", [1]), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=name):
        load_model(tmp_path)
