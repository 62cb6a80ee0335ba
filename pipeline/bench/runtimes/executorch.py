"""Hugging Face's module in ExecuTorch with XNNPACK, as people export it without this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.bench.runtimes.system import FORWARD, RunOnce, System, Variant, random_ids
from pipeline.bundle.manifest import Manifest
from pipeline.runtime.programs import MethodFile, binding
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights


class PlainProgram:
    """A `.pte` file with one method that takes token ids and an attention mask. It has a single depth."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        binding()
        self.path, self.threads, self.vocab_size = path, threads, manifest.model.vocab_size

    def load(self) -> None:
        self.file = MethodFile(self.path, self.threads)
        self.threads = self.file.threads
        self.file.load(FORWARD)

    def prepare(self, length: int, depth: int) -> RunOnce:
        inputs = [random_ids(self.vocab_size, length), torch.ones(1, length, dtype=torch.int64)]
        return lambda: self.file.run(FORWARD, inputs)


def lower_fixed_length(module: nn.Module, length: int, on_step: OnStep = silent) -> Any:
    """Lowers a module for one length by ExecuTorch's documented path: `torch.export`, then XNNPACK, nothing else.

    Args:
        module: takes token ids and an attention mask, int64 [1, length] each.
        on_step: called as "exporting BERT-base" before each of three steps.

    Returns:
        the `ExecutorchProgramManager`.
    """
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


def make_fixed_length(weights: StudentWeights, length: int) -> Path:
    """Exports the plain module for one length."""

    def build(path: Path) -> None:
        with open(path, "wb") as stream:
            lower_fixed_length(weights.plain_model(), length).write_to_file(stream)

    return weights.cached(f"executorch-length{length}.pte", build)


def make_any_length(weights: StudentWeights, longest: int) -> Path:
    """Exports the plain module for any length, as `optimum-executorch` 1.1 lowers an encoder for XNNPACK.

    The code repeats its `MaskedLMExportableModule.export` and its recipe "xnnpack". The package cannot be installed
    beside this project's transformers, since it requires 5.0.0rc1.
    """

    def build(path: Path) -> None:
        exir = import_quietly("executorch.exir")
        passes = import_quietly("executorch.exir.passes")
        xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        module = weights.plain_model()
        ids = torch.zeros(1, module.encoder.config.max_position_embeddings - 1, dtype=torch.int64)
        any_length = {1: torch.export.Dim.AUTO}
        with quiet_logging(), torch.no_grad():
            exported = torch.export.export(
                module,
                (ids,),
                {"attention_mask": torch.ones_like(ids)},
                dynamic_shapes={"input_ids": any_length, "attention_mask": any_length},
                strict=True,
            )
            edge = exir.to_edge_transform_and_lower(
                {FORWARD: exported},
                partitioner=[xnnpack.XnnpackPartitioner()],
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            )
            config = exir.ExecutorchBackendConfig(
                extract_delegate_segments=True,
                memory_planning_pass=passes.MemoryPlanningPass(alloc_graph_input=False),
                do_quant_fusion_and_const_prop=True,
            )
            with open(path, "wb") as stream:
                edge.to_executorch(config).write_to_file(stream)

    return weights.cached("executorch-dynamic.pte", build)


SYSTEMS = (
    System(
        "executorch-plain",
        PlainProgram,
        (
            Variant(make_any_length, "any length"),
            Variant(make_fixed_length, "fixed length", fixed_length=True),
        ),
        precision="fp32",
    ),
)
