"""A structure that was converted once computes what any module of that structure does, with the module's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bundle.manifest import TensorSpec
from pipeline.export.packages import write_package
from pipeline.export.structure import Structure
from pipeline.verify.evaluator.evaluator import evaluate
from pipeline.verify.evaluator.loading import load_package

OUTPUT = (TensorSpec(name="y", dtype="float32", shape=[3, 8]),)


class Block(nn.Module):
    """Two linear layers with equal biases, which a converter may store once, and a buffer."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.second.load_state_dict({"weight": self.second.weight, "bias": self.first.bias})
        self.register_buffer("scale", torch.tensor([seed + 0.5]))

    def forward(self, x):
        return self.second(self.norm(self.first(x))) * self.scale


class Folded(Block):
    def forward(self, x):
        return nn.functional.linear(x, self.first.weight * self.second.weight, self.first.bias)


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: value.detach().numpy().copy() for name, value in (*module.named_parameters(), *module.named_buffers())
    }


def test_one_structure_takes_the_weights_of_several_modules(tmp_path):
    x = torch.linspace(-2, 2, 24).view(3, 8)
    structure = Structure(Block(0), (x,), OUTPUT, "iOS18", half=False)
    for seed in (1, 2, 1):  # a place can be filled again
        module = Block(seed)
        structure.fill(weights_of(module))
        package = tmp_path / f"{len(list(tmp_path.iterdir()))}.mlpackage"
        write_package({"main": structure}, package)
        actual = evaluate(load_package(package), "main", {"x": x.numpy()}).outputs["y"]
        np.testing.assert_allclose(actual, module(x).detach().numpy(), atol=1e-5)


def test_a_weight_that_the_converter_changed_is_an_error():
    with pytest.raises(RuntimeError, match="the converter made .* of a weight"):
        Structure(Folded(0), (torch.zeros(3, 8),), OUTPUT, "iOS18", half=False)
