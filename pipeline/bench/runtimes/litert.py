"""LiteRT (TensorFlow Lite), int8."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.bench.runtimes.system import PEERS_REMEDY, RunOnce, System, Variant, random_ids
from pipeline.bundle.manifest import Manifest
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights


class LiteRtProgram:
    """A `.tflite` file of one length in LiteRT's interpreter, with its XNNPACK delegate."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter
        self.path, self.threads, self.vocab_size = path, threads, manifest.model.vocab_size

    def load(self) -> None:
        self.runner = self.interpreter(str(self.path), num_threads=self.threads).get_signature_runner()

    def prepare(self, length: int, depth: int) -> RunOnce:
        ids = random_ids(self.vocab_size, length).to(torch.int32)
        inputs = {"args_0": ids.numpy(), "args_1": torch.ones_like(ids).numpy()}
        return lambda: [output for _, output in sorted(self.runner(**inputs).items())]


def make_int8(weights: StudentWeights, length: int) -> Path:
    """Converts the plain module for one length by `litert-torch`: int8 weights per channel, activations at run time."""

    def build(path: Path) -> None:
        ids = torch.zeros(1, length, dtype=torch.int32)
        float_path = path.with_name("float.tflite")
        # The converter and the quantizer print their progress on both streams.
        with quiet_logging(), quiet_stderr(), redirect_stdout(io.StringIO()):
            litert = import_quietly("litert_torch")
            quantizer = import_quietly("ai_edge_quantizer.quantizer")
            recipe = import_quietly("ai_edge_quantizer.recipe")
            litert.convert(weights.plain_model(), (ids, torch.ones_like(ids))).export(str(float_path))
            quantizing = quantizer.Quantizer(str(float_path))
            quantizing.load_quantization_recipe(recipe.dynamic_wi8_afp32())
            quantizing.quantize().export_model(str(path))

    return weights.cached(f"litert-int8-length{length}.tflite", build)


SYSTEMS = (
    System(
        "litert-int8",
        LiteRtProgram,
        (Variant(make_int8, "fixed length", fixed_length=True),),
        precision="int8",
        modules=("ai_edge_litert", "litert_torch", "litert_converter", "ai_edge_quantizer"),
        remedy=f"{PEERS_REMEDY} && pip install --no-deps -r litert.txt",
        converter_packages=("litert-torch", "litert-converter", "ai-edge-quantizer"),
        runtime_package="ai-edge-litert",
    ),
)
