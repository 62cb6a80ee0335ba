"""The programs of a model as ExecuTorch files for Apple's devices: every program goes, whole, to ExecuTorch's Core ML delegate.

A method is one call of the delegate. What the delegate holds is a Core ML model, made by coremltools as the packages in `coreml/` are, in ExecuTorch's
in-memory file system (`pipeline.export.payload`). Methods take and give float32 (ids int32); Core ML computes in float16 and the delegate converts.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from pipeline.bundle import manifest
from pipeline.export.coreml import NAMESPACE, Source, bucket_lengths, settle, sources
from pipeline.export.executorch import write
from pipeline.export.payload import pack, unpack
from pipeline.model.exit_model import ExitModel
from pipeline.names import Backend
from pipeline.recipe import Recipe
from pipeline.schemes import DELEGATE_SCHEME
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr

BACKEND: Backend = "executorch-coreml"
DELEGATE = "CoreMLBackend"
METADATA_FILE = "metadata.json"
DEBUG_FILE = "debug_info.json"
PACKAGE = "model.mlpackage"
# The delegate's bytes begin so where its model lies elsewhere in the file, for several methods: JSON with the model's key follows.
REFERENCE = b"CMJR"
SHARES_WEIGHTS = "iOS18"


def method_name(program: str, length: int) -> str:
    """`segment_0` for 128 tokens is the method `segment_0_128`."""
    return f"{program}_{length}"


def file_name(length: int | None = None) -> str:
    """The file of all lengths, or of one."""
    return "model-coreml.pte" if length is None else f"model-coreml-{length}.pte"


def export_executorch_coreml(
    model: ExitModel, folder: Path, recipe: Recipe, on_step: OnStep | None = None
) -> list[manifest.Program]:
    """Writes one or several `.pte` into `folder`, and describes their methods for the manifest: an entry for each program and bucket.

    With iOS 18 there is one file, `model-coreml.pte`, in which the methods of a program share one Core ML model, a function each, and its weights.
    Before, Core ML knew one function a model, and the delegate has no other way to share: every bucket is a file of its own
    (`model-coreml-32.pte`) with weights of its own, so that an app can ship those it needs. Few buckets make a small bundle there.
    The same model gives the same bytes.

    Args:
        folder: the bundle's folder; a file appears when it is whole.
        on_step: told of every program that was lowered, which takes some 10 s a bucket.

    Raises:
        UserError: no bucket is left at or below `export.max_length`, or a part of a program would run outside of Core ML.
    """
    options, on_step = recipe.export, on_step or silent
    lengths, every = bucket_lengths(recipe, model.config.max_positions), sources(model, options.coreml_layout)
    groups = (
        {file_name(): lengths}
        if options.coreml_target == SHARES_WEIGHTS
        else {file_name(length): [length] for length in lengths}
    )
    entries, done = [], 0
    for file, of_file in groups.items():
        edges: dict[str, ExportedProgram] = {}
        for source in every:
            edges |= lower(source, of_file, options.coreml_target)
            entries += [describe(source, file, length) for length in of_file]
            done += 1
            on_step("ExecuTorch with Core ML", done, len(groups) * len(every))
        with quiet_logging():
            write(edges, folder / file)
    return entries


def describe(source: Source, file: str, length: int) -> manifest.Program:
    """The manifest's entry of one method: the same names and shapes as the Core ML package's."""
    return source.program(file, method_name(source.name, length), length, DELEGATE_SCHEME).model_copy(
        update={"backend": BACKEND}
    )


def lower(source: Source, lengths: Sequence[int], target: str) -> dict[str, ExportedProgram]:
    """The edge programs of one program at each length, by the methods' names; those of several lengths share one Core ML model.

    Args:
        target: the oldest system that must run it, a name in `coremltools.target`. Several lengths need iOS 18.

    Raises:
        UserError: a part of the program is none that the delegate takes.
    """
    exir = import_quietly("executorch.exir")
    partition = import_quietly("executorch.backends.apple.coreml.partition")
    with quiet_stderr(), quiet_logging(), torch.no_grad():
        exported = {
            method_name(source.name, length): torch.export.export(source.module.eval(), source.example(length))
            for length in lengths
        }
        partitioner = partition.CoreMLPartitioner(compile_specs=compile_specs(target))
        # The delegate's operators are ATen's own, which the validity check of ExecuTorch's edge dialect does not know.
        config = exir.EdgeCompileConfig(_check_ir_validity=False)
        manager = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner], compile_config=config)
    edges = {
        name: manager.exported_program(name) for name in exported
    }  # the manager sorts its methods in an order of its own
    for name, edge in edges.items():
        require_whole(name, edge)
    settle_delegates(list(edges.values()))
    return edges


def compile_specs(target: str) -> list:
    """What the delegate is told: float16, any processor, the oldest system, one model for all methods."""
    ct = import_quietly("coremltools")
    backend = import_quietly("executorch.backends.apple.coreml.compiler").CoreMLBackend
    return backend.generate_compile_specs(
        compute_unit=ct.ComputeUnit.ALL,
        minimum_deployment_target=ct.target[target],
        compute_precision=ct.precision.FLOAT16,
    )


def require_whole(method: str, edge: ExportedProgram) -> None:
    """Raises UserError, with the operators left outside, unless the method is one delegate and nothing else."""
    calls = [node for node in edge.graph_module.graph.nodes if node.op == "call_function"]
    delegates = [node for node in calls if node.target is torch.ops.higher_order.executorch_call_delegate]
    # Results are taken out of the delegate's tuple one by one.
    outside = [node for node in calls if node not in delegates and not (node.args and node.args[0] in delegates)]
    if outside or len(delegates) != 1:
        names = ", ".join(sorted({str(node.target).removeprefix("aten.") for node in outside})) or "none"
        raise UserError(
            f"is {len(delegates)} Core ML delegates instead of one; operators left outside: {names}. Set export.executorch_coreml=false",
            field=f"export.executorch_coreml, {method}",
        )


def settle_delegates(edges: Sequence[ExportedProgram]) -> None:
    """Takes out of the delegates, all of one `lower`, what differs from run to run: see `settled`. Their modules are changed in place."""
    lowered = import_quietly("executorch.exir.lowered_backend_module")
    store = import_quietly("executorch.exir._serialize._named_data_store")
    shared: dict[str, tuple[str, object]] = {}  # by the old key, the new one and where its model is
    for edge in edges:
        ((_, module, _),) = lowered.get_lowered_submodules(edge.graph_module)
        processed = module.processed_bytes
        if not processed.startswith(REFERENCE):
            module._processed_bytes = settled(processed)[1]
            continue
        reference = json.loads(processed[len(REFERENCE) :])
        if reference["key"] not in shared:
            data = module.named_data_store_output
            identifier, payload = settled(data.buffers[data.pte_data[reference["key"]].buffer_index])
            named = store.NamedDataStore()
            named.add_named_data(f"coreml_{identifier}", payload)
            shared[reference["key"]] = (f"coreml_{identifier}", named.get_named_data_store_output())
        reference["key"], module._named_data_store_output = shared[reference["key"]]
        module._processed_bytes = REFERENCE + json.dumps(reference).encode("ascii")


def settled(payload: bytes) -> tuple[str, bytes]:
    """The delegate's file system without dates, random identifiers and debugging files; with it the model's identifier, a digest of the rest.

    A device keeps compiled models by that identifier: another model has to have another one, and the same may have the same.
    """
    files = unpack(payload)
    files.pop(DEBUG_FILE, None)
    with tempfile.TemporaryDirectory() as folder:
        for path, contents in files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_bytes(contents)
        settle(Path(folder) / PACKAGE)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
        }
    metadata = json.loads(files.pop(METADATA_FILE))
    del metadata["identifier"]
    digest = hashlib.sha256(pack({**files, METADATA_FILE: json.dumps(metadata, sort_keys=True).encode()})).hexdigest()
    identifier = f"executorch_{uuid.uuid5(NAMESPACE, digest)}"
    files[METADATA_FILE] = json.dumps({"identifier": identifier, **metadata}).encode()
    return identifier, pack(files)
