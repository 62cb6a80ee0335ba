"""The bundle itself, and its programs merged into a single one that always runs to full depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.bench.runtimes.system import FORWARD, RunOnce, System, Variant, random_ids
from pipeline.bundle.manifest import Manifest, Program
from pipeline.runtime.programs import MethodFile, binding
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights


class BundlePrograms:
    """The embedding program and the segment programs of a bundle."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        binding()
        self.bundle, self.threads, self.manifest = path, threads, manifest
        self.programs = [manifest.program("embed")]
        self.programs += [manifest.program(f"segment_{index}") for index in range(manifest.segments)]

    def load(self) -> None:
        self.file = MethodFile(self.bundle / self.programs[0].file, self.threads)
        self.threads = self.file.threads
        for program in self.programs:
            self.file.load(program.method)

    def prepare(self, length: int, depth: int) -> RunOnce:
        embed, *segments = self.programs
        embed_inputs = [tensor for tensor in self._inputs(embed, length) if tensor is not None]
        segment_inputs = [self._inputs(segment, length) for segment in segments[:depth]]
        answer_outputs = len(get_task(self.manifest.task).exit_outputs)

        def run_once() -> list[Tensor]:
            outputs = self.file.run(embed.method, embed_inputs)
            for segment, inputs in zip(segments[:depth], segment_inputs):
                outputs = self.file.run(segment.method, [outputs[0] if tensor is None else tensor for tensor in inputs])
            return outputs[1 : 1 + answer_outputs]

        return run_once

    def _inputs(self, program: Program, length: int) -> list[Tensor | None]:
        """Returns the inputs that the manifest lists; None stands for the hidden states of the program before."""
        inputs: list[Tensor | None] = []
        for spec in program.inputs:
            shape = [length if size == "length" else size for size in spec.shape]
            dtype = getattr(torch, spec.dtype)
            if spec.name == "hidden":
                inputs.append(None)
            elif spec.name == "input_ids":
                inputs.append(random_ids(self.manifest.model.vocab_size, length).to(dtype))
            else:
                inputs.append(torch.zeros(shape, dtype=dtype))  # an attention or answer bias of 0 keeps every token
        return inputs


class MonolithicProgram:
    """The bundle's programs as one (`pipeline.model.segments.Monolith`)."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        binding()
        self.path, self.threads, self.manifest = path, threads, manifest

    def load(self) -> None:
        self.file = MethodFile(self.path, self.threads)
        self.threads = self.file.threads
        self.file.load(FORWARD)

    def prepare(self, length: int, depth: int) -> RunOnce:
        task = get_task(self.manifest.task)
        inputs = [random_ids(self.manifest.model.vocab_size, length), torch.zeros(1, 1, length)]
        if task.uses_answer_mask:
            inputs.append(torch.zeros(1, length))
        answer_outputs = len(task.exit_outputs)
        uncertainty_outputs = int(task.measures_uncertainty)

        def run_once() -> list[Tensor]:
            outputs = self.file.run(FORWARD, inputs)
            end = len(outputs) - uncertainty_outputs
            return outputs[end - answer_outputs : end]

        return run_once


def make_monolithic(weights: StudentWeights, longest: int) -> Path:
    """Exports the bundle's programs as one, quantized as the bundle is."""

    def build(path: Path) -> None:
        from pipeline.export.executorch import export_monolith

        export_monolith(weights.quantized_programs(), path, longest)

    return weights.cached("monolithic.pte", build)


SYSTEMS = (
    System("pocketbert", BundlePrograms),
    System("pocketbert-monolithic", MonolithicProgram, (Variant(make_monolithic),)),
)
