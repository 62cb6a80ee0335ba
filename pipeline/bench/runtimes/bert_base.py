"""BERT-base in float32 in ExecuTorch, exported as everybody exports it: what a bundle is measured against."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.bench.cache import cached_path
from pipeline.bench.runtimes.executorch import PlainProgram, lower_fixed_length
from pipeline.bench.runtimes.system import System
from pipeline.bundle.manifest import Manifest
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging

if TYPE_CHECKING:
    from pipeline.model.encoder import EncoderConfig

WEIGHTS_SEED = 0
# Ids below this are valid in every BERT vocabulary, whatever the bundle's is. Which ids they are does not change the
# work.
VOCAB_SIZE = 1000


class BertBaseProgram(PlainProgram):
    """The program of `bert_base_program`."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        super().__init__(path, threads, manifest)
        self.vocab_size = VOCAB_SIZE


class LogitsOnly(nn.Module):
    """A Hugging Face classifier that returns its logits as a tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Takes integers [1, length] and returns logits [1, 2]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def bert_base_module(shape: EncoderConfig) -> LogitsOnly:
    """Returns Hugging Face's `BertForSequenceClassification` of that shape, unchanged, with seeded random weights.

    Neither the time of a run nor the size of a file depends on the values of the weights, so none are downloaded. The
    program stands for both tasks: `BertForQuestionAnswering` has the same encoder, and its head differs by less than a
    thousandth of the work.
    """
    transformers = import_quietly("transformers")
    config = transformers.BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
        type_vocab_size=shape.token_types,
        layer_norm_eps=shape.layer_norm_eps,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        with quiet_logging():  # transformers imports the code of a model when it is first asked for
            return LogitsOnly(transformers.BertForSequenceClassification(config)).eval()


def bert_base_program(length: int, shape: EncoderConfig, on_step: OnStep = silent) -> Path:
    """Returns BERT-base as an ExecuTorch file for XNNPACK with one method, `forward(input_ids, attention_mask) ->
    logits`.

    The first call exports it, which takes 40 s and 3 GB of memory for BERT-base on two cores. The cache folder then
    keeps one file for each length, shape and set of tools.

    Args:
        length: inputs are padded to this many tokens.
        shape: BERT-base's, or a smaller one in tests.

    Raises:
        UserError: BERT has fewer positions than `length`, or the cache folder cannot be written.
    """
    if not 2 <= length <= shape.max_positions:
        raise UserError(
            f"BERT cannot take {length} tokens; give a number from 2 to {shape.max_positions}", field="reference_length"
        )

    def build(path: Path) -> None:
        with open(path, "wb") as stream:
            lower_fixed_length(bert_base_module(shape), length, on_step).write_to_file(stream)
        on_step("exporting BERT-base", 3, 3)

    return cached_path(file_name(length, shape), build)


def file_name(length: int, shape: EncoderConfig) -> str:
    """Returns the file's name in the cache; it contains everything that the file depends on."""
    tools = "-".join(f"{name}{version(name).split('+')[0]}" for name in ("torch", "executorch", "transformers"))
    layers = f"{shape.layers}x{shape.hidden_size}h{shape.heads}i{shape.intermediate_size}"
    return f"bert-{layers}v{shape.vocab_size}p{shape.max_positions}-fp32-length{length}-{tools}.pte"


SYSTEMS = (System("bert-base", BertBaseProgram, precision="fp32"),)
