"""Writes a model's programs as one ExecuTorch file, with XNNPACK's kernels and free length.

Lowering retraces a graph dozens of times: some 15 s for one layer, whatever its width. But the layers of a transformer
differ only in their weights. So a structure is lowered once. Further segments of that structure get a copy of the
lowered graph with their own weights, and only the delegates that hold weights are compiled again (`with_weights`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.bundle import manifest
from pipeline.model.encoder import ExportLayer
from pipeline.model.segments import Monolith, Programs
from pipeline.names import Task
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging
from pipeline.tasks import get_task

MIN_LENGTH = 2  # [CLS] [SEP]; for a length of 1 torch would make a graph of its own


# Everything in a program but the values of its weights.
StructureKey = tuple[object, ...]


@dataclass(frozen=True)
class Lowered:
    """A structure that was lowered.

    Attributes:
        exported: the program before.
        edge: the program after.
        prepared: the delegates' programs after XNNPACK's passes, by the delegate's name; None where the passes compute
            something from the weights, so that they must run again for other weights.
    """

    exported: ExportedProgram
    edge: ExportedProgram
    prepared: dict[str, ExportedProgram | None] = field(default_factory=dict)

    def prepare(self, name: str, program: ExportedProgram) -> ExportedProgram | None:
        """Returns the `prepared` program of a delegate, and runs XNNPACK's passes the first time.

        The passes trace the program 17 times, which takes nine tenths of the time to compile a delegate.
        """
        if name not in self.prepared:
            transformed = run_xnnpack_passes(program)
            weights = self.exported.state_dict
            unchanged = transformed.constants.keys() == program.constants.keys() and all(
                tensor.numel() == 1 if key not in weights else torch.equal(weights[key], tensor)
                for key, tensor in transformed.state_dict.items()
            )
            self.prepared[name] = transformed if unchanged else None
        return self.prepared[name]


def export_executorch(
    programs: Programs, path: Path, max_length: int, precision: str, on_step: OnStep = silent
) -> list[manifest.Program]:
    """Writes one `.pte` with the methods `embed`, `segment_0`, ..., for any length from 2 to `max_length`.

    The same programs give the same bytes.

    Args:
        programs: float or quantized (`quantize.schemes.apply_scheme`); they are not changed.
        path: the file; it appears when it is complete.
        precision: the scheme's name, for the manifest.
        on_step: called before each program or file and after the last; each takes 3 to 15 s.

    Returns:
        the manifest's entry of each program.

    Raises:
        UserError: the model has no positions for `max_length`.
        OSError: the file cannot be written.
    """
    check_length(programs, max_length)
    import_quietly("executorch.exir")
    modules: dict[str, nn.Module] = {"embed": programs.embed}
    modules.update((f"segment_{index}", segment) for index, segment in enumerate(programs.segments))
    entries: list[manifest.Program] = []
    edges: dict[str, ExportedProgram] = {}
    lowered: dict[StructureKey, Lowered] = {}
    for done, (name, module) in enumerate(modules.items()):
        on_step(f"ExecuTorch, {name}", done, len(modules) + 1)
        with quiet_logging():
            exported = export_program(module, programs, max_length)
            key = structure_key(exported)
            if key in lowered:
                edges[name] = with_weights(lowered[key], exported.state_dict)
            else:
                edges[name] = lower(exported)
                lowered[key] = Lowered(exported, edges[name])
        entries.append(describe_program(name, exported, programs.task, path.name, precision))
    on_step(f"ExecuTorch, {path.name}", len(modules), len(modules) + 1)
    with quiet_logging():
        write_pte(edges, path)
    on_step(f"ExecuTorch, {path.name}", len(modules) + 1, len(modules) + 1)
    return entries


def export_monolith(programs: Programs, path: Path, max_length: int) -> None:
    """Writes the programs as one, a `Monolith`, into a `.pte` with the method `forward`.

    Its layers are lowered together, which takes a minute or two. Arguments and errors are those of `export_executorch`.
    """
    check_length(programs, max_length)
    import_quietly("executorch.exir")
    with quiet_logging():
        write_pte({"forward": lower(export_program(Monolith(programs), programs, max_length))}, path)


def check_length(programs: Programs, max_length: int) -> None:
    """Raises UserError if the model has too few positions."""
    positions = programs.embed.embeddings.position.num_embeddings
    if max_length > positions:
        raise UserError(f"{max_length} is longer than the model's {positions} positions", field="export.max_length")


def example_inputs(module: nn.Module, programs: Programs, length: int) -> dict[str, Tensor]:
    """Returns a program's inputs at one length, by name."""
    ids = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
    if module is programs.embed:
        return ids
    hidden = {"hidden": torch.zeros(1, length, programs.embed.embeddings.norm.normalized_shape[0])}
    inputs = {**(ids if isinstance(module, Monolith) else hidden), "attention_bias": torch.zeros(1, 1, length)}
    return {**inputs, "answer_bias": torch.zeros(1, length)} if get_task(programs.task).uses_answer_mask else inputs


LENGTH_AXIS = {"input_ids": 1, "hidden": 1, "attention_bias": 2, "answer_bias": 1}


def export_program(module: nn.Module, programs: Programs, max_length: int) -> ExportedProgram:
    """Exports a program as a graph of free length. Weights of torchao's types are unwrapped to plain tensors."""
    plain = import_quietly("torchao.utils").unwrap_tensor_subclass(split_qkv(module))
    length = Dim("length", min=MIN_LENGTH, max=max_length)
    inputs = example_inputs(module, programs, min(16, max_length))
    with torch.no_grad():
        return torch.export.export(
            plain, tuple(inputs.values()), dynamic_shapes=tuple({LENGTH_AXIS[name]: length} for name in inputs)
        )


class QueryKeyValue(nn.Module):
    """Three linear layers in place of a fused layer of query, key and value; they give the same bits.

    ExecuTorch copies the fused layer's output before the attention, 16 bytes at a time. That makes a layer of
    DistilBERT 3 to 7 % slower at 128 tokens.
    """

    def __init__(self, fused: nn.Linear):
        super().__init__()
        outputs = fused.out_features // 3
        self.query, self.key, self.value = (
            rows_of(fused, slice(first, first + outputs)) for first in range(0, fused.out_features, outputs)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden: [batch, length, hidden_size]. Returns three tensors of that shape."""
        return self.query(hidden), self.key(hidden), self.value(hidden)


def rows_of(linear: nn.Linear, rows: slice) -> nn.Linear:
    """Returns a layer that computes some outputs of a linear layer, which may be torchao's."""
    part = nn.Linear(linear.in_features, rows.stop - rows.start, device="meta")
    part.weight = nn.Parameter(linear.weight[rows].clone(), requires_grad=False)
    part.bias = nn.Parameter(linear.bias[rows].clone(), requires_grad=False)
    return part


def split_qkv(module: nn.Module) -> nn.Module:
    """Returns a copy whose layers have a `QueryKeyValue` in place of a fused linear layer."""
    copied = copy.deepcopy(module)
    for layer in copied.modules():
        if isinstance(layer, ExportLayer) and isinstance(layer.qkv, nn.Linear):
            layer.register_module("qkv", QueryKeyValue(layer.qkv))  # `layer.qkv = ` would need the type nn.Linear
    return copied


def structure_key(exported: ExportedProgram) -> StructureKey:
    """Returns the graph with all its constants, and the names, shapes and types of the weights."""
    weights = {**exported.state_dict, **exported.constants}
    shapes = tuple((name, tuple(weight.shape), weight.dtype) for name, weight in sorted(weights.items()))
    return exported.graph_module.code, str(exported.graph_signature), str(exported.range_constraints), shapes


def lower(exported: ExportedProgram) -> ExportedProgram:
    """Lowers a program: hands all that XNNPACK can run to it, by one partitioner.

    ExecuTorch's examples put a partitioner for dynamically quantized layers in front. Each linear layer is then a call
    of its own, and the whole graph is decomposed once more.
    """
    exir = import_quietly("executorch.exir")
    xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    return exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()]).exported_program()


def with_weights(lowered: Lowered, weights: Mapping[str, Tensor]) -> ExportedProgram:
    """Returns a lowered program with other weights, as if a program of that structure with those weights were lowered.

    Lowering passes weights on unchanged, to the delegates' own programs or to the graph outside them. Both are looked
    up by name. Compiling a delegate depends only on its program (`BackendDetails.preprocess`), and is repeated.

    Raises:
        RuntimeError: lowering changed a weight, so that it cannot be looked up (perhaps a newer ExecuTorch).
    """
    lowered_backend_module = import_quietly("executorch.exir.lowered_backend_module")
    backend = import_quietly("executorch.backends.xnnpack.xnnpack_preprocess").XnnpackBackend

    def replace_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: replacement(name, tensor) for name, tensor in state.items()}

    def replacement(name: str, tensor: Tensor) -> Tensor:
        original = lowered.exported.state_dict.get(name)
        # Lowering makes tensors of numbers in the graph, which are equal in equal structures.
        if original is None and tensor.numel() == 1:
            return tensor
        if original is None or not torch.equal(original, tensor):
            raise RuntimeError(f"lowering changed the weight {name}; this version of ExecuTorch is not supported")
        return weights[name]

    root = copy.deepcopy(lowered.edge.graph_module)
    for name, module, _ in lowered_backend_module.get_lowered_submodules(root):
        program = module.original_module
        if not program.state_dict:
            continue
        with_new_weights = rebuild(program, copy.deepcopy(program.graph_module), replace_weights(program.state_dict))
        prepared, specs = lowered.prepare(name, program), module.compile_specs
        if prepared is not None:
            specs = [*specs, one_pass()]
        source = prepared or program
        # preprocess changes the graph that it is given.
        scratch = rebuild(source, copy.deepcopy(source.graph_module), replace_weights(source.state_dict))
        result = backend.preprocess(scratch, specs)
        delegate = lowered_backend_module.LoweredBackendModule(
            edge_program=with_new_weights,
            backend_id=module.backend_id,
            processed_bytes=result.processed_bytes,
            compile_specs=module.compile_specs,
            named_data_store_output=result.data_store_output,
        )
        delegate.meta = {"debug_handle_map": result.debug_handle_map}
        setattr(root, name, delegate)
    return rebuild(lowered.edge, root, replace_weights(lowered.edge.state_dict))


def run_xnnpack_passes(program: ExportedProgram) -> ExportedProgram:
    """Returns a delegate's program after the passes with which `XnnpackBackend.preprocess` begins."""
    passes = import_quietly("executorch.backends.xnnpack._passes")
    verifier = import_quietly("executorch.exir.verification.verifier").EXIREdgeDialectVerifier
    config = import_quietly("executorch.backends.xnnpack.utils.configs").get_xnnpack_edge_compile_config()
    scratch = rebuild(program, copy.deepcopy(program.graph_module), program.state_dict)
    # After the passes the graph has linear layers, which the dialect's own verifier refuses.
    scratch._verifiers = [verifier(edge_compile_config=config, class_only=True)]
    transformed: ExportedProgram = passes.XNNPACKPassManager(scratch).transform()
    return transformed


def one_pass() -> object:
    """Returns the option with which `XnnpackBackend.preprocess` runs one pass only, which finds nothing to do here."""
    spec = import_quietly("executorch.exir.backend.compile_spec_schema")
    return spec.CompileSpec("dqlinear_partitioner", b"")


def rebuild(program: ExportedProgram, root: torch.fx.GraphModule, state: dict[str, Tensor]) -> ExportedProgram:
    """Returns the same program with another graph and other weights."""
    return ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=state,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        constants=program.constants,
        verifiers=[program.verifier],
    )


def write_pte(edges: Mapping[str, ExportedProgram], path: Path) -> None:
    """Plans the memory of all methods, and writes them as one file, completely or not at all. Raises OSError."""
    exir = import_quietly("executorch.exir")
    shapes = import_quietly("executorch.exir.passes.sym_shape_eval_pass")
    manager = exir.EdgeProgramManager(dict(edges))
    config = exir.ExecutorchBackendConfig(sym_shape_eval_pass=shapes.ConstraintBasedSymShapeEvalPass())
    program = manager.to_executorch(config)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as stream:
            program.write_to_file(stream)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def describe_program(name: str, exported: ExportedProgram, task: Task, file: str, precision: str) -> manifest.Program:
    """Returns the manifest's entry of a program, with the shapes of its graph."""
    nodes = {node.name: node.meta["val"] for node in exported.graph_module.graph.nodes if "val" in node.meta}
    signature = exported.graph_signature
    definition = get_task(task)
    if name == "embed":
        outputs = ["hidden"]
    else:
        outputs = ["hidden", *definition.exit_outputs, *(["uncertainty"] if definition.measures_uncertainty else [])]
    return manifest.Program(
        name=name,
        backend="executorch",
        file=file,
        method=name,
        precision=precision,
        inputs=[describe_tensor(node, nodes[node]) for node in signature.user_inputs],
        outputs=[
            describe_tensor(output, nodes[node]) for output, node in zip(outputs, signature.user_outputs, strict=True)
        ],
    )


def describe_tensor(name: str, value: Tensor) -> manifest.TensorSpec:
    """Returns the manifest's entry of a tensor in a graph; its symbolic dimension is the length."""
    shape = [size if isinstance(size, int) else "length" for size in value.shape]
    return manifest.TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape)
