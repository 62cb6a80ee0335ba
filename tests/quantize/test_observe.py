"""What is observed is what the layers are given, and the model is left without hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.items import Item
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.progress import silent
from quantize.observe import observe_inputs
from quantize.schemes import named_linears

CONFIG = EncoderConfig(vocab_size=50, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=16)
ITEMS = [Item(np.arange(length), np.zeros(length, int), None, None) for length in (3, 7)]


@pytest.fixture(scope="module")
def programs() -> Programs:
    torch.manual_seed(0)
    return Programs.of(ExitModel("classification", CONFIG, 2, "linear", [1]).eval())


def test_every_item_runs_by_itself_and_its_rows_are_handed_on(programs):
    rows: dict[str, list[torch.Tensor]] = {}
    steps = []
    observe_inputs(
        programs,
        named_linears(programs),
        ITEMS,
        lambda name, inputs: rows.setdefault(name, []).append(inputs),
        "observing",
        lambda *step: steps.append(step),
    )
    assert steps == [("observing", 1, 2), ("observing", 2, 2)]
    assert [tuple(inputs.shape) for inputs in rows["layers.0.ffn_out"]] == [(3, 64), (7, 64)]
    for item, inputs in zip(ITEMS, rows["layers.0.qkv"]):
        torch.testing.assert_close(inputs, programs.embed(torch.from_numpy(item.ids)[None])[0].detach())


def test_no_hook_stays_when_the_observer_fails(programs):
    linears = named_linears(programs)

    def fail(name: str, inputs: torch.Tensor) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="layers.0.qkv"):
        observe_inputs(programs, linears, ITEMS, fail, "observing", silent)
    assert all(not linear._forward_pre_hooks for linear in linears.values())
