"""Saves and loads the model folders that a run's stages write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from pipeline.model.encoder import Encoder, EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.weights import read_json, read_weights


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Writes `model.safetensors` and `encoder.json` into an existing folder."""
    _write(encoder, encoder.config.to_dict(), folder, "encoder.json")


def load_encoder(folder: Path) -> Encoder:
    """Reads what `save_encoder` wrote. Returns the encoder in evaluation mode.

    Raises:
        UserError: a file is missing or truncated.
    """
    encoder = Encoder(EncoderConfig(**read_json(folder / "encoder.json")))
    encoder.load_state_dict(read_weights(folder))
    return encoder.eval()


def save_model(model: ExitModel, folder: Path) -> None:
    """Writes `model.safetensors` and `model.json` into an existing folder."""
    description = {
        "task": model.task,
        "labels": model.labels,
        "head": model.head_kind,
        "exit_layers": list(model.exit_layers),
        "temperatures": list(model.temperatures),
        "uncertainty": model.uncertainty,
        "encoder": model.config.to_dict(),
    }
    _write(model, description, folder, "model.json")


def load_model(folder: Path) -> ExitModel:
    """Reads what `save_model` wrote. Returns the model in evaluation mode.

    Raises:
        UserError: a file is missing or truncated.
    """
    raw = read_json(folder / "model.json")
    model = ExitModel(raw["task"], EncoderConfig(**raw["encoder"]), raw["labels"], raw["head"], raw["exit_layers"])
    model.temperatures = list(raw["temperatures"])
    model.uncertainty = raw.get("uncertainty", "entropy")
    model.load_state_dict(read_weights(folder))
    return model.eval()


def _write(module: nn.Module, description: dict[str, Any], folder: Path, description_name: str) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / description_name).write_text(json.dumps(description, indent=2) + "\n")
