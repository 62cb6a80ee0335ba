"""The reference that a bundle is measured against: BERT-base in float32, exported as everybody exports it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.bench.cache import kept
from pipeline.model.encoder import EncoderConfig
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging
from quantize.size import BERT_BASE

METHOD = "forward"
SEED = 0


class Classifier(nn.Module):
    """`BertForSequenceClassification` with tensors in and a tensor out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: [1, length] integers. Returns logits [1, 2]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def reference_module(shape: EncoderConfig = BERT_BASE) -> Classifier:
    """Hugging Face's `BertForSequenceClassification` of that shape, unchanged, with seeded random weights.

    What a run costs and a file weighs does not depend on the weights' values, so none need to be fetched. The program serves both
    tasks: `BertForQuestionAnswering` has the same encoder and differs in the head, which is less than a thousandth of the work.
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
        torch.manual_seed(SEED)
        with quiet_logging():  # transformers imports a model's code when it is first asked for
            return Classifier(transformers.BertForSequenceClassification(config)).eval()


def reference_program(length: int, on_step: OnStep = silent, shape: EncoderConfig = BERT_BASE) -> Path:
    """The reference as an ExecuTorch file for XNNPACK with one method, `forward(input_ids, attention_mask) -> logits`.

    It takes inputs padded to `length`, int64 [1, length] each. Made on first use (40 s and 3 GB of memory for BERT-base on two cores)
    and then kept in the cache folder, a file for every length, shape and set of tools. The file is there whole or not at all.

    Raises:
        UserError: `length` is more than BERT has positions, or the cache folder cannot be written.
    """
    if not 2 <= length <= shape.max_positions:
        raise UserError(
            f"{length} is none that BERT takes; give one from 2 to {shape.max_positions}", field="reference_length"
        )

    def build(path: Path) -> None:
        with open(path, "wb") as stream:
            lower(reference_module(shape), length, on_step).write_to_file(stream)
        on_step("exporting BERT-base", 3, 3)

    return kept(file_name(length, shape), build)


def file_name(length: int, shape: EncoderConfig) -> str:
    """Says all that the file depends on."""
    tools = "-".join(f"{name}{version(name).split('+')[0]}" for name in ("torch", "executorch", "transformers"))
    sizes = f"{shape.layers}x{shape.hidden_size}h{shape.heads}i{shape.intermediate_size}v{shape.vocab_size}p{shape.max_positions}"
    return f"bert-{sizes}-fp32-length{length}-{tools}.pte"


def lower(module: Classifier, length: int, on_step: OnStep):
    """The ExecuTorch program, by the documented path: `torch.export`, lowering to XNNPACK, nothing else."""
    on_step("exporting BERT-base", 0, 3)
    exir = import_quietly("executorch.exir")
    xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    inputs = (torch.zeros(1, length, dtype=torch.int64), torch.ones(1, length, dtype=torch.int64))
    with quiet_logging(), torch.no_grad():
        exported = torch.export.export(module, inputs)
        on_step("exporting BERT-base", 1, 3)
        edge = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
        on_step("exporting BERT-base", 2, 3)
        return edge.to_executorch()
