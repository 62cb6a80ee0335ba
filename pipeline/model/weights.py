"""Reads a checkpoint's JSON and tensor files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.support.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("is missing from the checkpoint folder", file=path) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", file=path) from None
    if not isinstance(raw, dict):
        raise UserError("holds no JSON object; it does not belong to a checkpoint", file=path)
    return raw


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Reads `model.safetensors` or `pytorch_model.bin` of a folder.

    Returns:
        the tensors in float32. Old BERT files' `gamma` and `beta` are renamed to `weight` and `bias`.

    Raises:
        UserError: there is no such file, it is truncated, or a weight is not a float.
    """
    path = folder / "model.safetensors"
    if path.is_file():
        try:
            state = load_file(path)
        except Exception as error:  # safetensors raises an undocumented type of its own for a truncated file
            raise UserError(f"is not a whole safetensors file ({error})", file=path) from None
    elif (folder / "pytorch_model.bin").is_file():
        path = folder / "pytorch_model.bin"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch errors all mean a truncated file
            raise UserError(f"is not a whole PyTorch weights file ({error})", file=path) from None
    else:
        raise UserError("holds neither model.safetensors nor pytorch_model.bin", file=folder)
    renamed = {}
    for name, tensor in state.items():
        # Other integers are buffers (position ids). A weight in integers or float8 was quantized, and its scales
        # would be lost.
        if tensor.dtype not in FLOATS and name.endswith((".weight", ".bias")):
            raise UserError(
                f"is {str(tensor.dtype).removeprefix('torch.')}; give weights in float32, float16 or bfloat16",
                file=path,
                field=name,
            )
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        renamed[name] = tensor.float()
    return renamed
