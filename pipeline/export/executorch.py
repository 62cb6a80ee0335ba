"""The programs of a model as one ExecuTorch file, with XNNPACK's kernels and free length.

Lowering retraces a graph dozens of times, some 15 s for one layer whatever its width, and the layers of a transformer differ in their
weights alone. So a structure is lowered once; further segments of that structure get a copy of the lowered graph with their own
weights, for which only the delegates that hold weights are compiled again (`with_weights`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.bundle import manifest
from pipeline.model.encoder import ExportLayer
from pipeline.model.segments import Monolith, Programs
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.quiet import import_quietly, quiet_logging
from pipeline.tasks import get_task

SHORTEST = 2  # [CLS] [SEP]; for a length of 1 torch would make a graph of its own


@dataclass(frozen=True)
class Lowered:
    """A structure that has been lowered: the program before and after."""

    exported: ExportedProgram
    edge: ExportedProgram


def export_executorch(
    programs: Programs, path: Path, max_length: int, precision: str, on_step: OnStep = silent
) -> list[manifest.Program]:
    """Writes one `.pte` with the methods `embed`, `segment_0`, ..., for any length from 2 to `max_length`.

    The same programs give the same bytes.

    Args:
        programs: float or quantized (`quantize.schemes.apply_scheme`); left as they are.
        path: the file; it appears when it is whole.
        precision: what the manifest says of it, the scheme's name.
        on_step: told before each step and after the last; a step takes 3 to 15 s.

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
    entries, edges, structures = [], {}, {}
    for done, (name, module) in enumerate(modules.items()):
        on_step(f"ExecuTorch, {name}", done, len(modules) + 1)
        with quiet_logging():
            exported = export_program(module, programs, max_length)
            structure = structure_of(exported)
            if structure in structures:
                edges[name] = with_weights(structures[structure], exported.state_dict)
            else:
                edges[name] = lower(exported)
                structures[structure] = Lowered(exported, edges[name])
        entries.append(describe(name, exported, programs.task, path.name, precision))
    on_step(f"ExecuTorch, {path.name}", len(modules), len(modules) + 1)
    with quiet_logging():
        write(edges, path)
    on_step(f"ExecuTorch, {path.name}", len(modules) + 1, len(modules) + 1)
    return entries


def export_monolith(programs: Programs, path: Path, max_length: int) -> None:
    """Writes the programs as one, a `Monolith`, into a `.pte` with the method `forward`; arguments and errors as of `export_executorch`.

    Its layers are lowered together, which takes a minute or two.
    """
    check_length(programs, max_length)
    import_quietly("executorch.exir")
    with quiet_logging():
        write({"forward": lower(export_program(Monolith(programs), programs, max_length))}, path)


def check_length(programs: Programs, max_length: int) -> None:
    """UserError unless the model has that many positions."""
    positions = programs.embed.embeddings.position.num_embeddings
    if max_length > positions:
        raise UserError(f"{max_length} is longer than the model's {positions} positions", field="export.max_length")


def example_inputs(module: nn.Module, programs: Programs, length: int) -> dict[str, Tensor]:
    """A program's inputs at one length, by name."""
    ids = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
    if module is programs.embed:
        return ids
    hidden = {"hidden": torch.zeros(1, length, programs.embed.embeddings.norm.normalized_shape[0])}
    inputs = {**(ids if isinstance(module, Monolith) else hidden), "attention_bias": torch.zeros(1, 1, length)}
    return {**inputs, "answer_bias": torch.zeros(1, length)} if get_task(programs.task).uses_answer_mask else inputs


LENGTH_AXIS = {"input_ids": 1, "hidden": 1, "attention_bias": 2, "answer_bias": 1}


def export_program(module: nn.Module, programs: Programs, max_length: int) -> ExportedProgram:
    """The program as a graph of free length; its weights are plain tensors, torchao's subclasses taken apart."""
    plain = import_quietly("torchao.utils").unwrap_tensor_subclass(with_parts(module))
    length = Dim("length", min=SHORTEST, max=max_length)
    inputs = example_inputs(module, programs, min(16, max_length))
    with torch.no_grad():
        return torch.export.export(
            plain, tuple(inputs.values()), dynamic_shapes=tuple({LENGTH_AXIS[name]: length} for name in inputs)
        )


class QueryKeyValue(nn.Module):
    """A fused layer of query, key and value as three with its rows, which give the same bits.

    Between the fused one and the attention ExecuTorch copies all it gave, 16 bytes at a time: a layer of DistilBERT's takes 3 to 7 % longer at 128 tokens.
    """

    def __init__(self, fused: nn.Linear):
        super().__init__()
        outputs = fused.out_features // 3
        self.query, self.key, self.value = (
            rows_of(fused, slice(at, at + outputs)) for at in range(0, fused.out_features, outputs)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden: [batch, length, hidden_size]. Returns three like it."""
        return self.query(hidden), self.key(hidden), self.value(hidden)


def rows_of(linear: nn.Linear, rows: slice) -> nn.Linear:
    """A layer, plain or torchao's, that gives some of the outputs of one."""
    part = nn.Linear(linear.in_features, rows.stop - rows.start, device="meta")
    part.weight, part.bias = (
        nn.Parameter(each[rows].clone(), requires_grad=False) for each in (linear.weight, linear.bias)
    )
    return part


def with_parts(module: nn.Module) -> nn.Module:
    """A copy whose layers have `QueryKeyValue`s, where query, key and value are one plain or torchao linear layer."""
    copied = copy.deepcopy(module)
    for layer in copied.modules():
        if isinstance(layer, ExportLayer) and isinstance(layer.qkv, nn.Linear):
            layer.qkv = QueryKeyValue(layer.qkv)
    return copied


def structure_of(exported: ExportedProgram) -> tuple:
    """All of a program but its weights' values: the graph with every constant in it, the weights' names, shapes and types."""
    weights = {**exported.state_dict, **exported.constants}
    shapes = tuple((name, tuple(weight.shape), weight.dtype) for name, weight in sorted(weights.items()))
    return exported.graph_module.code, str(exported.graph_signature), str(exported.range_constraints), shapes


def lower(exported: ExportedProgram) -> ExportedProgram:
    """The edge program with all that XNNPACK can run handed to it, by one partitioner.

    ExecuTorch's examples put one for dynamically quantized layers in front of it: each linear layer is then a call of its own, and the whole
    graph is decomposed once more.
    """
    exir = import_quietly("executorch.exir")
    xnnpack = import_quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    return exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()]).exported_program()


def with_weights(lowered: Lowered, weights: Mapping[str, Tensor]) -> ExportedProgram:
    """A lowered program with other weights, equal to what `lower` makes of a program of that structure with those weights.

    Lowering hands weights on unchanged, to the delegates' own programs or to what is left outside; both are looked up by name.
    Compiling a delegate is a function of its program alone (`BackendDetails.preprocess`), and is repeated.

    Raises:
        RuntimeError: lowering did change a weight, so that it cannot be looked up (another version of ExecuTorch, perhaps).
    """
    lowered_backend_module = import_quietly("executorch.exir.lowered_backend_module")
    backend = import_quietly("executorch.backends.xnnpack.xnnpack_preprocess").XnnpackBackend

    def replaced(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: replacement(name, tensor) for name, tensor in state.items()}

    def replacement(name: str, tensor: Tensor) -> Tensor:
        original = lowered.exported.state_dict.get(name)
        if (
            original is None and tensor.numel() == 1
        ):  # a number in the graph, made a tensor: equal structures have equal ones
            return tensor
        if original is None or not torch.equal(original, tensor):
            raise RuntimeError(f"lowering changed the weight {name}; this version of ExecuTorch is not supported")
        return weights[name]

    root = copy.deepcopy(lowered.edge.graph_module)
    for name, module, _ in lowered_backend_module.get_lowered_submodules(root):
        program = module.original_module
        if not program.state_dict:
            continue
        own = rebuilt(program, copy.deepcopy(program.graph_module), replaced(program.state_dict))
        # preprocess works on the graph it is given.
        result = backend.preprocess(rebuilt(own, copy.deepcopy(own.graph_module), own.state_dict), module.compile_specs)
        delegate = lowered_backend_module.LoweredBackendModule(
            edge_program=own,
            backend_id=module.backend_id,
            processed_bytes=result.processed_bytes,
            compile_specs=module.compile_specs,
            named_data_store_output=result.data_store_output,
        )
        delegate.meta = {"debug_handle_map": result.debug_handle_map}
        setattr(root, name, delegate)
    return rebuilt(lowered.edge, root, replaced(lowered.edge.state_dict))


def rebuilt(program: ExportedProgram, root: torch.fx.GraphModule, state: dict[str, Tensor]) -> ExportedProgram:
    """The same program on a copy of its graph and with other weights."""
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


def write(edges: dict[str, ExportedProgram], path: Path) -> None:
    """Plans the memory of all methods, and writes them as one file, whole or not at all. Raises OSError."""
    exir = import_quietly("executorch.exir")
    shapes = import_quietly("executorch.exir.passes.sym_shape_eval_pass")
    manager = exir.EdgeProgramManager(edges)
    config = exir.ExecutorchBackendConfig(sym_shape_eval_pass=shapes.ConstraintBasedSymShapeEvalPass())
    program = manager.to_executorch(config)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as stream:
            program.write_to_file(stream)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def describe(name: str, exported: ExportedProgram, task: str, file: str, precision: str) -> manifest.Program:
    """The manifest's entry of a program, with the shapes of its graph."""
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
        inputs=[tensor_of(each, nodes[each]) for each in signature.user_inputs],
        outputs=[tensor_of(label, nodes[each]) for label, each in zip(outputs, signature.user_outputs, strict=True)],
    )


def tensor_of(name: str, value: Tensor) -> manifest.TensorSpec:
    """The manifest's form of a graph's tensor; its symbolic dimension is the length."""
    shape = [size if isinstance(size, int) else "length" for size in value.shape]
    return manifest.TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape)
