"""Shows what linear layers are given while a model runs on texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.items import Item
from pipeline.model.encoder import attention_bias
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias
from pipeline.support.progress import OnStep

OnRows = Callable[[str, Tensor], None]


@torch.no_grad()
def observe_inputs(
    programs: Programs,
    linears: Mapping[str, nn.Linear],
    items: Sequence[Item],
    on_rows: OnRows,
    step: str,
    on_step: OnStep,
) -> None:
    """Runs every item by itself, without padding, and hands on the inputs of some linear layers.

    Args:
        linears: layers of `programs` by name.
        on_rows: called with a layer's name and its inputs for one item, [tokens, inputs], whenever the layer runs.
        step: the name of the work for `on_step`, which is called after each item.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: on_rows(name, inputs[0].flatten(0, -2))

    hooks = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        for done, item in enumerate(items, start=1):
            ids = torch.from_numpy(item.ids).long()[None]
            answers = None if item.answer_mask is None else answer_bias(torch.from_numpy(item.answer_mask)[None])
            programs(ids, attention_bias(torch.ones_like(ids)), answers)
            on_step(step, done, len(items))
    finally:
        for handle in hooks:
            handle.remove()
