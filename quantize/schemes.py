"""The quantization schemes, and the pass that puts one on the programs of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.segments import Programs
from pipeline.quiet import import_quietly, quiet_logging
from quantize.two_term import TwoTermLinear

# A head's linear layer with fewer parameters stays float: it is under 0.2 % of a model, its answer is the one people see, and
# quantizing its input at run time costs about what int8 saves.
SMALLEST_HEAD_LINEAR = 32_768


@dataclass(frozen=True)
class Scheme:
    """How linear layers are stored and computed.

    Args:
        summary: one line for people.
        config: makes the torchao configuration, `quantize_`'s second argument; None leaves the layers as they are. A function, so
            that torchao is imported by those who quantize alone.
        two_terms: whether the layers get their inputs in two terms (`TwoTermLinear`).
    """

    summary: str
    config: Callable[[], object] | None = None
    two_terms: bool = False


def int8_dynamic() -> object:
    """int8 weights with a scale per output channel, activations quantized per token at run time."""
    torchao = import_quietly("torchao.quantization")
    granularity = import_quietly("torchao.quantization.granularity")
    return torchao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=granularity.PerAxis(0)
    )


SCHEMES: dict[str, Scheme] = {
    "fp32": Scheme("linear layers in float32"),
    "int8": Scheme("int8 weights per output channel, int8 activations per token at run time", int8_dynamic),
    "int8-a16": Scheme("int8 weights per output channel, activations of 16 bits as two int8 terms", int8_dynamic, two_terms=True),
}
EMBEDDINGS: tuple[str, ...] = ("fp32", "int8")


class Int8Embedding(nn.Module):
    """An embedding table as int8 rows with a float scale each.

    Two plain lookups and a product, not torchao's quantized embedding: that one leaves an operator that ExecuTorch cannot run.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        # The smallest normal number keeps a row of zeros (padding) at 0 instead of 0 / 0.
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=torch.finfo(weight.dtype).tiny)
        self.register_buffer("table", torch.round(weight / scale).to(torch.int8))  # [vocabulary, hidden_size]
        self.register_buffer("scale", scale)  # [vocabulary, 1]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, length] integers. Returns [batch, length, hidden_size] float32."""
        return F.embedding(ids, self.table).to(self.scale.dtype) * F.embedding(ids, self.scale)


@torch.no_grad()
def apply_scheme(programs: Programs, scheme: str, embeddings: str) -> Programs:
    """A quantized copy of the programs: the quantized model in PyTorch, which every exported program is held against.

    All linear layers of the encoder are quantized, and those of the heads from `SMALLEST_HEAD_LINEAR` parameters on. The copy runs
    eagerly and can be exported; it shares no memory with `programs`.

    Args:
        scheme: a name in `SCHEMES`.
        embeddings: "fp32", or "int8" for the word table as `Int8Embedding`.

    Raises:
        UserError: an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(f"{scheme!r} is no scheme; take one of {', '.join(SCHEMES)}", field="quantize.scheme")
    if embeddings not in EMBEDDINGS:
        raise UserError(
            f"{embeddings!r} is no scheme for embeddings; take one of {', '.join(EMBEDDINGS)}", field="quantize.embeddings"
        )
    quantized = copy.deepcopy(programs).eval()
    if SCHEMES[scheme].config is not None:
        chosen = {id(module) for module in linears_to_quantize(quantized)}
        if SCHEMES[scheme].two_terms:
            chosen = {id(module.linear) for module in replaced_by_two_terms(quantized, chosen)}
        quantize_ = import_quietly("torchao.quantization").quantize_
        with quiet_logging():
            quantize_(quantized, SCHEMES[scheme].config(), filter_fn=lambda module, name: id(module) in chosen)
    if embeddings == "int8":
        table = quantized.embed.embeddings
        table.word = Int8Embedding(table.word.weight.detach())
    return quantized.requires_grad_(False)


def replaced_by_two_terms(programs: Programs, chosen: set[int]) -> list[TwoTermLinear]:
    """Puts a `TwoTermLinear` in the place of each chosen layer (by identity), and returns them."""
    replacements = []
    for parent in list(programs.modules()):
        for name, module in list(parent.named_children()):
            if id(module) in chosen:
                replacements.append(TwoTermLinear(module))
                setattr(parent, name, replacements[-1])
    return replacements


def linears_to_quantize(programs: Programs) -> list[nn.Linear]:
    """The linear layers that a scheme applies to: all in the encoder's layers, and the heads' large ones."""
    chosen = []
    for segment in programs.segments:
        chosen += [module for module in segment.layers.modules() if isinstance(module, nn.Linear)]
        chosen += [
            module
            for module in segment.head.modules()
            if isinstance(module, nn.Linear) and module.weight.numel() >= SMALLEST_HEAD_LINEAR
        ]
    return chosen
