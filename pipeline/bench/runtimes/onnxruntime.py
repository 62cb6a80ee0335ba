"""ONNX Runtime, float32 and int8, each with and without its fusions for BERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.bench.runtimes.system import RunOnce, System, Variant, random_ids
from pipeline.bundle.manifest import Manifest
from pipeline.support.quiet import import_quietly, quiet_logging

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights

OPSET = 17


class OnnxProgram:
    """An `.onnx` file in ONNX Runtime's CPU provider, at its default optimization level."""

    def __init__(self, path: Path, threads: int, manifest: Manifest):
        import onnxruntime

        self.runtime = onnxruntime
        self.path, self.threads, self.vocab_size = path, threads, manifest.model.vocab_size

    def load(self) -> None:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        self.session = self.runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def prepare(self, length: int, depth: int) -> RunOnce:
        ids = random_ids(self.vocab_size, length)
        inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        return lambda: self.session.run(None, inputs)


def make_exported(weights: StudentWeights, longest: int) -> Path:
    """Exports the plain module as ONNX with the tracing exporter and attention written out.

    ONNX Runtime's transformer fusions recognise only this form of what torch 2.13 can write. In the newer exporter's
    files they find no attention, and `quantize_dynamic` refuses those files because inferred shapes contradict the
    written ones.
    """

    def build(path: Path) -> None:
        ids = torch.zeros(1, 16, dtype=torch.int64)
        with quiet_logging(), torch.no_grad():
            torch.onnx.export(
                weights.plain_model(attention="eager"),
                (ids, torch.ones_like(ids)),
                str(path),
                input_names=["input_ids", "attention_mask"],
                dynamic_axes={name: {1: "length"} for name in ("input_ids", "attention_mask")},
                opset_version=OPSET,
                dynamo=False,
            )

    return weights.cached("exported.onnx", build)


def make_fused(weights: StudentWeights, longest: int) -> Path:
    """Applies the BERT fusions of `onnxruntime.transformers.optimizer` to the exported file."""

    def build(path: Path) -> None:
        optimizer = import_quietly("onnxruntime.transformers.optimizer")
        shape = weights.manifest.model
        with quiet_logging():
            fused = optimizer.optimize_model(
                str(make_exported(weights, longest)),
                model_type="bert",
                num_heads=shape.heads,
                hidden_size=shape.hidden_size,
                opt_level=0,
            )
            fused.save_model_to_file(str(path))

    return weights.cached("fused.onnx", build)


def make_int8(weights: StudentWeights, longest: int, make_float: Callable[[StudentWeights, int], Path]) -> Path:
    """Quantizes a float ONNX file by `quantize_dynamic`: int8 weights per output channel, activations at run time."""
    float_path = make_float(weights, longest)

    def build(path: Path) -> None:
        onnx = import_quietly("onnx")
        quantization = import_quietly("onnxruntime.quantization")
        with quiet_logging():
            quantization.quantize_dynamic(
                float_path,
                path,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                # ONNX infers types for its own operators only, and fused ones are not among them.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )

    return weights.cached(f"{float_path.stem}-int8.onnx", build)


def onnx_system(
    precision: str,
    make_plain: Callable[[StudentWeights, int], Path],
    make_optimized: Callable[[StudentWeights, int], Path],
) -> System:
    """Describes ONNX Runtime at one precision, with the programs from before and after its fusions."""
    return System(
        f"onnxruntime-{precision}",
        OnnxProgram,
        (Variant(make_plain, "as exported"), Variant(make_optimized, "fused")),
        precision=precision,
        fastest_only=True,
        modules=("onnx", "onnxruntime"),
        converter_packages=("onnx", "onnxruntime"),
        runtime_package="onnxruntime",
    )


SYSTEMS = (
    onnx_system("fp32", make_exported, make_fused),
    onnx_system("int8", partial(make_int8, make_float=make_exported), partial(make_int8, make_float=make_fused)),
)
