"""The peers of a bundle: what else one could run the same weights with. Here their programs are made; `pipeline.bench.runtimes.worker` runs them.

All but `pocketbert-monolithic` get the student as Hugging Face's module with its last head (`pipeline.bench.runtimes.plain`): who has no exits wants
no exit heads. Every program is kept in the cache folder, under a digest of the weights and of the libraries' versions.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.bench.cache import code_digest, kept
from pipeline.bench.runtimes.plain import PlainModel
from pipeline.bundle.manifest import Manifest
from pipeline.model.checkpoint import load_model, save_model
from pipeline.model.exit_model import ExitModel
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version as installed
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.support.workspace import fingerprint

MODEL_FILES = ("model.safetensors", "model.json")
TOOLS = (
    "torch", "executorch", "torchao", "transformers", "onnx", "onnxruntime", "litert-torch", "litert-converter", "ai-edge-quantizer",
)  # fmt: skip
ONNX_OPSET = 17
PEERS_EXTRA = "pip install -c constraints.txt -e '.[peers]'"
LITERT_EXTRA = f"{PEERS_EXTRA} && pip install --no-deps -r litert.txt"


@dataclass(frozen=True)
class Weights:
    """The float student that a bundle was made from, and where the programs made from it are kept.

    Args:
        folder: as `save_model` wrote it: OUT/exits of a run.
        manifest: the bundle's.
    """

    folder: Path
    manifest: Manifest

    def __post_init__(self):
        missing = [name for name in MODEL_FILES if not (self.folder / name).is_file()]
        if missing:
            raise UserError(
                f"has no {missing[0]}; the peers need the weights that the bundle was made from: give the folder OUT/exits of its run",
                file=self.folder,
                field="--weights",
            )
        config, shape = self.model().config, self.manifest.model
        names = ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size")
        for name in names:
            if getattr(config, name) != getattr(shape, name):
                raise UserError(
                    f"{name} is {getattr(config, name)}, the bundle has {getattr(shape, name)}; give the weights it was made from",
                    file=self.folder,
                    field="--weights",
                )

    def model(self) -> ExitModel:
        return load_model(self.folder)

    def kept(self, name: str, build: Callable[[Path], None]) -> Path:
        """`pipeline.bench.cache.kept`, in a folder for these weights, this scheme and these libraries."""
        manifest = self.manifest
        mark = fingerprint(
            [sha256_of(self.folder / each) for each in MODEL_FILES],
            [manifest.scheme, manifest.embeddings_scheme, manifest.matrix_schemes],
            [manifest.max_length, manifest.exits.model_dump()],
            [installed(tool) for tool in TOOLS],
            code_digest(),
        )
        return kept(f"peers-{mark[:16]}/{name}", build)


@dataclass(frozen=True)
class Source:
    """Something that a worker loads, and what the measurements say of it.

    Attributes:
        system: a name in `pipeline.bench.runtimes.worker.SYSTEMS`.
        path: what the worker opens.
        file_bytes: what an app would ship of it.
        lengths, depths: that it is measured at.
        variant: what tells it from others of the same system.
        contender: whether only the faster one of its system's variants is reported.
    """

    system: str
    path: Path
    model: str
    precision: str
    file_bytes: int
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    variant: str = ""
    contender: bool = False


@dataclass(frozen=True)
class Peer:
    """A way to run the weights.

    Attributes:
        make: gives the program's path for the weights and a length: the only one it will take if `fixed`, else the longest.
        needs: modules it cannot do without.
        remedy: how to get them.
    """

    system: str
    precision: str
    make: Callable[[Weights, int], Path]
    variant: str = ""
    fixed: bool = False
    contender: bool = False
    needs: tuple[str, ...] = ()
    remedy: str = PEERS_EXTRA


def monolithic(weights: Weights, longest: int) -> Path:
    """The bundle's own programs as one, quantized as the bundle is."""
    from pipeline.export.executorch import export_monolith
    from pipeline.model.segments import Programs
    from quantize.schemes import quantize_programs

    manifest = weights.manifest

    def build(path: Path) -> None:
        programs = Programs.of(weights.model())
        quantized = quantize_programs(programs, manifest.scheme, manifest.embeddings_scheme, manifest.matrix_schemes)
        export_monolith(quantized, path, longest)

    return weights.kept("monolithic.pte", build)


def executorch_fixed(weights: Weights, length: int) -> Path:
    """The plain module for one length, by ExecuTorch's documented path."""

    def build(path: Path) -> None:
        from pipeline.bench.reference import lower

        with open(path, "wb") as stream:
            lower(PlainModel.load(weights.folder), length, silent).write_to_file(stream)

    return weights.kept(f"executorch-length{length}.pte", build)


def executorch_dynamic(weights: Weights, longest: int) -> Path:
    """The plain module for any length, as `optimum-executorch` 1.1 lowers an encoder for XNNPACK.

    That is its `MaskedLMExportableModule.export` and its recipe "xnnpack". The package itself wants transformers 5.0.0rc1, so that it
    cannot be installed beside this project's.
    """

    def build(path: Path) -> None:
        exir = import_quietly("executorch.exir")
        passes = import_quietly("executorch.exir.passes")
        xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        module = PlainModel.load(weights.folder)
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
                {"forward": exported},
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

    return weights.kept("executorch-dynamic.pte", build)


def onnx_exported(weights: Weights, longest: int) -> Path:
    """The plain module as ONNX.

    By the exporter that traces, with attention spelled out: of what torch 2.13 can write, this is what ONNX Runtime's transformer fusions
    know. They find no attention in what the newer exporter writes, and `quantize_dynamic` refuses it (inferred shapes contradict those
    in the file).
    """

    def build(path: Path) -> None:
        ids = torch.zeros(1, 16, dtype=torch.int64)
        with quiet_logging(), torch.no_grad():
            torch.onnx.export(
                PlainModel.load(weights.folder, attention="eager"),
                (ids, torch.ones_like(ids)),
                str(path),
                input_names=["input_ids", "attention_mask"],
                dynamic_axes={name: {1: "length"} for name in ("input_ids", "attention_mask")},
                opset_version=ONNX_OPSET,
                dynamo=False,
            )

    return weights.kept("exported.onnx", build)


def onnx_fused(weights: Weights, longest: int) -> Path:
    """The same after `onnxruntime.transformers.optimizer`, its fusions for BERT."""

    def build(path: Path) -> None:
        optimizer = import_quietly("onnxruntime.transformers.optimizer")
        shape = weights.manifest.model
        with quiet_logging():
            fused = optimizer.optimize_model(
                str(onnx_exported(weights, longest)),
                model_type="bert",
                num_heads=shape.heads,
                hidden_size=shape.hidden_size,
                opt_level=0,
            )
            fused.save_model_to_file(str(path))

    return weights.kept("fused.onnx", build)


def onnx_int8(weights: Weights, longest: int, source: Callable[[Weights, int], Path]) -> Path:
    """An ONNX program quantized by `quantize_dynamic`: int8 weights per output channel, activations at run time."""
    exact = source(weights, longest)

    def build(path: Path) -> None:
        onnx = import_quietly("onnx")
        quantization = import_quietly("onnxruntime.quantization")
        with quiet_logging():
            quantization.quantize_dynamic(
                exact,
                path,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                # Fused operators are none of ONNX's own, whose types it would infer.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )

    return weights.kept(f"{exact.stem}-int8.onnx", build)


def litert_int8(weights: Weights, length: int) -> Path:
    """The plain module for one length by `litert-torch`, then int8 weights per channel and activations at run time."""

    def build(path: Path) -> None:
        ids = torch.zeros(1, length, dtype=torch.int32)
        exact = path.with_name("float.tflite")
        # Converter and quantizer report their progress on both streams.
        with quiet_logging(), quiet_stderr(), redirect_stdout(io.StringIO()):
            litert = import_quietly("litert_torch")
            quantizer = import_quietly("ai_edge_quantizer.quantizer")
            recipe = import_quietly("ai_edge_quantizer.recipe")
            litert.convert(PlainModel.load(weights.folder), (ids, torch.ones_like(ids))).export(str(exact))
            quantizing = quantizer.Quantizer(str(exact))
            quantizing.load_quantization_recipe(recipe.dynamic_wi8_afp32())
            quantizing.quantize().export_model(str(path))

    return weights.kept(f"litert-int8-length{length}.tflite", build)


def torch_folder(weights: Weights, longest: int) -> Path:
    """The student without all exits but the last, as `save_model` writes it."""

    def build(path: Path) -> None:
        model = weights.model()
        last = ExitModel(model.task, model.config, model.labels, model.head_kind, (model.config.layers,))
        last.encoder.load_state_dict(model.encoder.state_dict())
        last.heads[0].load_state_dict(model.heads[-1].state_dict())
        path.mkdir()
        save_model(last, path)

    return weights.kept("torch", build)


ONNX = ("onnx", "onnxruntime")
PEERS: tuple[Peer, ...] = (
    Peer("pocketbert-monolithic", "", monolithic),
    Peer("executorch-plain", "fp32", executorch_dynamic, "any length"),
    Peer("executorch-plain", "fp32", executorch_fixed, "fixed length", fixed=True),
    Peer("onnxruntime-fp32", "fp32", onnx_exported, "as exported", contender=True, needs=ONNX),
    Peer("onnxruntime-fp32", "fp32", onnx_fused, "fused", contender=True, needs=ONNX),
    Peer("onnxruntime-int8", "int8", partial(onnx_int8, source=onnx_exported), "as exported", contender=True, needs=ONNX),
    Peer("onnxruntime-int8", "int8", partial(onnx_int8, source=onnx_fused), "fused", contender=True, needs=ONNX),
    Peer(
        "litert-int8", "int8", litert_int8, "fixed length", fixed=True,
        needs=("ai_edge_litert", "litert_torch", "litert_converter", "ai_edge_quantizer"), remedy=LITERT_EXTRA,
    ),
    Peer("torch-eager", "fp32", torch_folder),
    Peer("torch-compile", "fp32", torch_folder),
)  # fmt: skip


def left_out(peers: Sequence[Peer] = PEERS) -> dict[str, str]:
    """The systems that cannot be measured here, and for each in one line why and the way out."""
    reasons = {}
    for peer in peers:
        missing = [name for name in peer.needs if importlib.util.find_spec(name) is None]
        if missing:
            reasons[peer.system] = f"{', '.join(missing)} cannot be imported; {peer.remedy}"
    if not shutil.which(os.environ.get("CXX") or "c++"):
        reasons["torch-compile"] = "there is no C++ compiler, which torch.compile needs; install one, or name it in CXX"
    return reasons


def peer_sources(
    weights: Weights,
    lengths: Sequence[int],
    model: str,
    precision: str,
    on_step: OnStep = silent,
    peers: Sequence[Peer] = PEERS,
) -> Iterator[Source]:
    """Makes the program of every peer that can be had, or finds it in the cache.

    Args:
        weights: of the bundle.
        lengths: that are measured.
        model: what measurements call the model.
        precision: of the bundle.
    """
    out, depth = left_out(peers), weights.manifest.segments
    chosen = [peer for peer in peers if peer.system not in out]
    wanted = [
        (peer, at) for peer in chosen for at in ([(each,) for each in lengths] if peer.fixed else [tuple(lengths)])
    ]
    for done, (peer, at) in enumerate(wanted):
        on_step(f"making the peers, {peer.system} {peer.variant}", done, len(wanted))
        path = peer.make(weights, at[0] if peer.fixed else weights.manifest.max_length)
        yield Source(
            system=peer.system,
            path=path,
            model=model,
            precision=peer.precision or precision,
            file_bytes=(path / "model.safetensors" if path.is_dir() else path).stat().st_size,
            lengths=at,
            depths=(depth,),
            variant=peer.variant,
            contender=peer.contender,
        )
    on_step("making the peers", len(wanted), len(wanted))
