"""Writes a model's programs as ExecuTorch files in which Core ML computes every program completely.

A method is one call of ExecuTorch's Core ML delegate. The delegate holds a Core ML model, made by coremltools as the
packages in `coreml/` are, in ExecuTorch's in-memory file system (`pipeline.export.payload`). Methods take and give
float32 (ids int32); Core ML computes in float16, and the delegate converts.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline.bundle import manifest
from pipeline.export.executorch import write_pte
from pipeline.export.packages import NAMESPACE, make_reproducible
from pipeline.export.payload import pack, unpack, write_files
from pipeline.export.program_modules import ProgramModule, bucket_lengths, program_modules
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
# Begins the bytes of a delegate whose model is elsewhere in the file, for several methods. JSON with the model's key
# follows.
REFERENCE = b"CMJR"
TARGET_WITH_SHARED_WEIGHTS = "iOS18"


def method_name(program: str, length: int) -> str:
    """Returns a method's name: `segment_0` for 128 tokens is `segment_0_128`."""
    return f"{program}_{length}"


def file_name(length: int | None = None) -> str:
    """Returns the name of the file of one length, or of all lengths."""
    return "model-coreml.pte" if length is None else f"model-coreml-{length}.pte"


def export_executorch_coreml(
    model: ExitModel, folder: Path, recipe: Recipe, on_step: OnStep | None = None
) -> list[manifest.Program]:
    """Writes one or several `.pte` into `folder`, and returns the manifest's entry of every program and bucket.

    With iOS 18 there is one file, `model-coreml.pte`. The methods of a program share one Core ML model in it, with a
    function for each and the weights once. Older systems know only one function per model, and the delegate cannot
    share weights in another way. So every bucket is a file with weights of its own (`model-coreml-32.pte`), and an app
    can ship only those it needs; few buckets make a small bundle. The same model gives the same bytes.

    Args:
        folder: the bundle's folder; a file appears when it is complete.
        on_step: called after every program that was lowered, which takes some 10 s per bucket.

    Raises:
        UserError: no bucket is at most `export.max_length`, or a part of a program would run outside Core ML.
    """
    options, on_step = recipe.export, on_step or silent
    lengths = bucket_lengths(recipe, model.config.max_positions)
    programs = program_modules(model, options.coreml_layout)
    if options.coreml_target == TARGET_WITH_SHARED_WEIGHTS:
        lengths_by_file = {file_name(): lengths}
    else:
        lengths_by_file = {file_name(length): [length] for length in lengths}
    entries: list[manifest.Program] = []
    done = 0
    for file, file_lengths in lengths_by_file.items():
        edges: dict[str, ExportedProgram] = {}
        for program in programs:
            edges |= lower(program, file_lengths, options.coreml_target)
            entries += [
                program.describe(BACKEND, file, method_name(program.name, length), length, DELEGATE_SCHEME)
                for length in file_lengths
            ]
            done += 1
            on_step("ExecuTorch with Core ML", done, len(lengths_by_file) * len(programs))
        with quiet_logging():
            write_pte(edges, folder / file)
    return entries


def lower(program: ProgramModule, lengths: Sequence[int], target: str) -> dict[str, ExportedProgram]:
    """Lowers one program at each length, and returns the edge programs by method.

    Several lengths share one Core ML model.

    Args:
        target: the oldest system that must run it, a name in `coremltools.target`. Several lengths need iOS 18.

    Raises:
        UserError: the delegate does not take a part of the program.
    """
    exir = import_quietly("executorch.exir")
    partition = import_quietly("executorch.backends.apple.coreml.partition")
    with quiet_stderr(), quiet_logging(), torch.no_grad():
        exported = {
            method_name(program.name, length): torch.export.export(
                program.module.eval(), program.example_inputs(length)
            )
            for length in lengths
        }
        partitioner = partition.CoreMLPartitioner(compile_specs=compile_specs(target))
        # The delegate's operators are ATen's own, which the validity check of ExecuTorch's edge dialect does not know.
        config = exir.EdgeCompileConfig(_check_ir_validity=False)
        manager = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner], compile_config=config)
    edges = {name: manager.exported_program(name) for name in exported}  # the manager has an order of its own
    for name, edge in edges.items():
        require_whole(name, edge)
    make_delegates_reproducible(list(edges.values()))
    return edges


def compile_specs(target: str) -> list[Any]:
    """Returns the delegate's options: float16, any processor, the oldest system, one model for all methods."""
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
            f"is {len(delegates)} Core ML delegates instead of one; operators left outside: {names}. "
            "Set export.executorch_coreml=false",
            field=f"export.executorch_coreml, {method}",
        )


def make_delegates_reproducible(edges: Sequence[ExportedProgram]) -> None:
    """Removes run-dependent bytes from the delegates that one `lower` made. Their modules are changed in place."""
    lowered = import_quietly("executorch.exir.lowered_backend_module")
    store = import_quietly("executorch.exir._serialize._named_data_store")
    shared: dict[str, tuple[str, Any]] = {}  # by the old key: the new key, and the data store with the model
    for edge in edges:
        ((_, module, _),) = lowered.get_lowered_submodules(edge.graph_module)
        processed = module.processed_bytes
        if not processed.startswith(REFERENCE):
            module._processed_bytes = reproducible_payload(processed)[1]
            continue
        reference = json.loads(processed[len(REFERENCE) :])
        if reference["key"] not in shared:
            data = module.named_data_store_output
            identifier, payload = reproducible_payload(data.buffers[data.pte_data[reference["key"]].buffer_index])
            named = store.NamedDataStore()
            named.add_named_data(f"coreml_{identifier}", payload)
            shared[reference["key"]] = (f"coreml_{identifier}", named.get_named_data_store_output())
        reference["key"], module._named_data_store_output = shared[reference["key"]]
        module._processed_bytes = REFERENCE + json.dumps(reference).encode("ascii")


def reproducible_payload(payload: bytes) -> tuple[str, bytes]:
    """Removes dates, random identifiers and debugging files from a delegate's file system.

    Returns:
        the model's new identifier, a digest of everything else, and the file system with it. A device caches compiled
        models by the identifier, so different models need different ones, and equal models may share one.
    """
    files = unpack(payload)
    files.pop(DEBUG_FILE, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(files, folder)
        make_reproducible(folder / PACKAGE)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    metadata = json.loads(files.pop(METADATA_FILE))
    del metadata["identifier"]
    digest = hashlib.sha256(pack({**files, METADATA_FILE: json.dumps(metadata, sort_keys=True).encode()})).hexdigest()
    identifier = f"executorch_{uuid.uuid5(NAMESPACE, digest)}"
    files[METADATA_FILE] = json.dumps({"identifier": identifier, **metadata}).encode()
    return identifier, pack(files)
