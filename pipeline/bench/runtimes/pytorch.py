"""PyTorch, eager and compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.bench.runtimes.system import RunOnce, System, Variant, random_ids
from pipeline.bundle.manifest import Manifest

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights


class EagerProgram:
    """The plain module (`pipeline.bench.runtimes.plain`) from a folder of weights, in PyTorch as it is."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        from pipeline.bench.runtimes.plain import PlainModel
        from pipeline.support.quiet import import_quietly

        # transformers imports the code of a model when it is first asked for.
        import_quietly("transformers").DistilBertModel  # noqa: B018
        self.model_class = PlainModel
        self.path, self.threads, self.vocab_size = path, threads, manifest.model.vocab_size

    def load(self) -> None:
        torch.set_num_threads(self.threads)
        self.model: Callable[[Tensor, Tensor], Sequence[Tensor]] = self.model_class.load(self.path)

    def prepare(self, length: int, depth: int) -> RunOnce:
        ids = random_ids(self.vocab_size, length)
        mask = torch.ones_like(ids)

        def run_once() -> Sequence[Tensor]:
            with torch.inference_mode():
                return self.model(ids, mask)

        return run_once


class CompiledProgram(EagerProgram):
    """The same module compiled once for every length. Loading compiles it, unless PyTorch cached the kernels before."""

    BACKEND = "inductor"

    def load(self) -> None:
        super().load()
        self.model = torch.compile(self.model, dynamic=True, backend=self.BACKEND)


def make_weights_folder(weights: StudentWeights, longest: int) -> Path:
    """Saves the student with its last exit only, as `save_model` writes it."""

    def build(path: Path) -> None:
        from pipeline.model.checkpoint import save_model
        from pipeline.model.exit_model import ExitModel

        model = weights.model()
        last = ExitModel(model.task, model.config, model.labels, model.head_kind, (model.config.layers,))
        last.encoder.load_state_dict(model.encoder.state_dict())
        last.heads[0].load_state_dict(model.heads[-1].state_dict())
        path.mkdir()
        save_model(last, path)

    return weights.cached("torch", build)


def missing_compiler() -> str | None:
    """Returns why `torch.compile` cannot run here, or None if it can."""
    if shutil.which(os.environ.get("CXX") or "c++"):
        return None
    return "torch.compile needs a C++ compiler and there is none; install one, or name it in CXX"


SYSTEMS = (
    System("torch-eager", EagerProgram, (Variant(make_weights_folder),), precision="fp32"),
    System(
        "torch-compile",
        CompiledProgram,
        (Variant(make_weights_folder),),
        precision="fp32",
        find_obstacle=missing_compiler,
    ),
)
