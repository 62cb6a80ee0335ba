"""What every program that Core ML computes must give for inputs that anyone can make again, in a few numbers: enough to tell one altered weight.

The reference is the model in PyTorch in float32, with its weights compressed and decompressed as the package has them. So a package and its
fingerprint come from the same model by two ways, which agree up to the order of float32 sums. Where activations are rounded to int8 they agree no
better than some of those fall to one side or the other of a step: such programs have a second fingerprint, with the range of int8 and without its
steps, that is as exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bundle.conformance import ProgramVector
from pipeline.bundle.manifest import Program
from pipeline.data.inputs import MASKED
from pipeline.export.coreml import Source, StoredWeights, asked_for, sources
from pipeline.export.vectors import rounded
from pipeline.model.exit_model import ExitModel
from pipeline.names import APPLE_BACKENDS
from quantize.coreml_schemes import decompressed
from quantize.int8_inputs import reciprocals, set_rounding

NUMBERS = 8


def fingerprint(values: np.ndarray) -> list[float]:
    """Random projections of an array: its numbers summed with random signs, over the root of their count.

    A sign is the product of one for the row and one for the column, so that a whole vocabulary's rows take no memory to speak of. The noise in the
    fingerprint is to the fingerprint what the noise in the array is to the array (Johnson and Lindenstrauss 1984), in the mean; a
    number that moves alone moves every projection by as much.

    Args:
        values: any shape; the last dimension is the columns'.

    Returns:
        `NUMBERS` projections, or the values themselves where they are no more than that.
    """
    if values.size <= NUMBERS:
        return [float(value) for value in values.ravel()]
    table = values.reshape(-1, values.shape[-1]).astype(np.float64)
    random = np.random.RandomState(0)  # its streams are frozen for good; those of numpy's newer generators are not
    rows = random.randint(0, 2, (NUMBERS, table.shape[0])) * 2.0 - 1.0
    columns = random.randint(0, 2, (NUMBERS, table.shape[1])) * 2.0 - 1.0
    return [float(value) for value in ((rows @ table) * columns).sum(axis=1) / np.sqrt(values.size)]


def fingerprint_inputs(program: Program, vocab_size: int) -> list[dict[str, np.ndarray]]:
    """The inputs of a fixed-length program's runs, whose outputs are one array after the other.

    `embed` runs as often as it takes to look up every row of the vocabulary. A segment runs once, with normally distributed hidden states; the last
    half of the tokens is masked, and of the others the first half is no answer.
    """
    (length,), random = program.lengths, np.random.RandomState(0)
    if program.inputs[0].name == "input_ids":
        ids = np.arange(-(-vocab_size // length) * length) % vocab_size
        return [{"input_ids": row[None]} for row in ids.reshape(-1, length).astype(np.int32)]
    at, real = np.arange(length), max(length // 2, 1)
    given = {
        "hidden": random.standard_normal(program.inputs[0].shape),
        "attention_bias": np.where(at < real, 0.0, MASKED),
        "answer_bias": np.where((at >= real // 2) & (at < real), 0.0, MASKED),
    }
    return [{tensor.name: given[tensor.name].reshape(tensor.shape).astype(np.float32) for tensor in program.inputs}]


@torch.no_grad()
def make_fingerprints(
    model: ExitModel,
    programs: list[Program],
    layout: str = "standard",
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
) -> list[ProgramVector]:
    """The reference for each program among `programs` that Core ML computes, in their order.

    `layout`, `matrix_schemes` and `input_gains` are as of `pipeline.export.coreml.export_coreml`.
    """
    made: dict[str, dict[str, Source]] = {}
    vectors, saved = [], None
    for program in programs:
        if program.backend in APPLE_BACKENDS:
            if program.precision not in made:
                chosen = asked_for(program.precision, matrix_schemes, input_gains)
                made[program.precision] = {source.name: source for source in sources(model, layout, **chosen)}
            source, (length,) = made[program.precision][program.name], program.lengths
            if saved is None or (saved.source, saved.precision) != (source, program.precision):
                saved = SavedModule(source, program.precision)
            inputs, module = fingerprint_inputs(program, model.config.vocab_size), saved.at(length)
            with_rounding = outputs_of(source, set_rounding(module, "int8"), inputs) if reciprocals(module) else None
            vectors.append(
                ProgramVector(
                    program=program.name,
                    backend=program.backend,
                    length=length,
                    outputs=outputs_of(source, set_rounding(module, "range"), inputs),
                    rounded_outputs=with_rounding,
                )
            )
    return vectors


def outputs_of(source: Source, module: nn.Module, inputs: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """The fingerprints of all runs of a module, by the outputs' names."""
    runs = []
    for each in inputs:
        outputs = module(*(torch.from_numpy(each[tensor.name]) for tensor in source.inputs))
        runs.append((outputs,) if isinstance(outputs, Tensor) else outputs)
    arrays = [np.concatenate([each.numpy() for each in of]) for of in zip(*runs)]
    return {tensor.name: rounded(fingerprint(array)) for tensor, array in zip(source.outputs, arrays, strict=True)}


class SavedModule:
    """A program's module with its weights as the packages of a precision have them."""

    def __init__(self, source: Source, precision: str):
        self.source, self.precision = source, precision
        self.weights, self.made = StoredWeights(source, precision), (0, source.module)

    def at(self, length: int) -> nn.Module:
        """The module of a length; the one before is let go. A segment's is one for all lengths."""
        made_for, module = self.made
        if made_for == 0 or (self.source.name == "embed" and made_for != length):
            module = self.source.at(length)
            named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, weight in self.weights.at(length).items():
                named[name].copy_(torch.from_numpy(decompressed(weight)).view_as(named[name]))
            self.made = (length, module)
        return module
