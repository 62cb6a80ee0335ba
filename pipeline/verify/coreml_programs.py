"""Runs the saved programs that Core ML computes, by the evaluator: one by one, or in sequence as a runner would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.bundle.exit_rule import change_uncertainty
from pipeline.bundle.manifest import Manifest, Program, TensorSpec
from pipeline.data.inputs import MASKED, program_inputs
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.verify.evaluator.evaluator import Evaluation, evaluate
from pipeline.verify.evaluator.faults import Fault
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.evaluator.precision import Precision
from pipeline.verify.evaluator.program import EXPORT_AGAIN, Package

BACKEND_NAMES: dict[Backend, str] = {"coreml": "Core ML", "executorch-coreml": "ExecuTorch's Core ML"}

# Evaluates a program on inputs by the manifest's names.
RunProgram = Callable[[Program, Mapping[str, np.ndarray], Precision], Evaluation]


def program_runner(bundle: Path, backend: Backend, files: SavedFiles | None = None) -> RunProgram:
    """Returns a function that evaluates a bundle's programs of one backend. Each file is read once, when first needed.

    The function raises UserError if a file cannot be read or evaluated, or holds another program than the manifest
    says.

    Args:
        files: the bundle's files, where other checks have read some of them.
    """
    saved = files or SavedFiles(bundle)

    def run_package(program: Program, inputs: Mapping[str, np.ndarray], precision: Precision) -> Evaluation:
        package = saved.package(program.file)
        check_signature(package, program)
        return evaluate(package, program.method, inputs, precision)

    def run_method(program: Program, inputs: Mapping[str, np.ndarray], precision: Precision) -> Evaluation:
        return saved.delegate(program.file).run(program, inputs, precision)

    return run_package if backend == "coreml" else run_method


def check_signature(package: Package, program: Program) -> None:
    """Raises UserError unless the inputs and outputs of a program's function are those of the manifest."""
    function = package.function(program.method)
    for side, declared, found in (
        ("inputs", program.inputs, function.inputs),
        ("outputs", program.outputs, function.outputs),
    ):
        expected = {tensor.name: f"{tensor.dtype} {list(tensor.shape)}" for tensor in declared}
        actual = {spec.name: f"{spec.dtype} {list(spec.shape)}" for spec in found}
        for name in {**expected, **actual}:
            if expected.get(name) != actual.get(name):
                raise UserError(
                    f"{function.name} has {actual.get(name, 'no such tensor')}, the manifest says "
                    f"{expected.get(name, 'that there is none')}; {EXPORT_AGAIN}",
                    file=package.path,
                    field=f"{program.name}.{side}.{name}",
                )


class CoreMLPrograms:
    """The programs of one backend for one length, which run in sequence.

    Attributes:
        faults: for each program, the first fault of every run with finite inputs, None for a run without a fault.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, length: int, run_program: RunProgram, backend: Backend = "coreml"
    ):
        self.run_program, self.by_change = run_program, manifest.uncertainty == "change"
        programs = {
            program.name: program
            for program in manifest.programs
            if program.backend == backend and length in (program.lengths or ())
        }
        names = ["embed", *(f"segment_{index}" for index in range(manifest.segments))]
        if missing := [name for name in names if name not in programs]:
            raise UserError(
                f"no {BACKEND_NAMES[backend]} program {missing[0]} for length {length}; {EXPORT_AGAIN}",
                file=bundle,
                field="programs",
            )
        self.embed, *self.segments = [programs[name] for name in names]
        self.faults: dict[str, list[Fault | None]] = {}

    def run(self, program: Program, inputs: Mapping[str, np.ndarray], precision: Precision) -> dict[str, np.ndarray]:
        """Runs one program. Inputs that it does not take are ignored.

        Hidden states are [1, length, hidden_size] here, whatever the program's layout.
        """
        inputs = {tensor.name: to_layout(inputs[tensor.name], tensor) for tensor in program.inputs}
        evaluation = self.run_program(program, inputs, precision)
        if all(np.isfinite(value).all() for value in inputs.values()):
            self.faults.setdefault(program.name, []).append(next(iter(evaluation.faults), None))
        return {
            name: value[:, :, 0].swapaxes(1, 2) if value.ndim == 4 else value
            for name, value in evaluation.outputs.items()
        }

    def run_all(self, inputs: Mapping[str, np.ndarray], precision: Precision) -> list[dict[str, np.ndarray]]:
        """Runs `embed` and every segment, and returns each segment's outputs.

        The first output of a program is the next one's `hidden`. If the exits decide by change, `uncertainty` is added,
        which a runner computes from the answers.
        """
        hidden = self.run(self.embed, inputs, precision)[self.embed.outputs[0].name]
        outputs: list[dict[str, np.ndarray]] = []
        for segment in self.segments:
            outputs.append(self.run(segment, {**inputs, "hidden": hidden}, precision))
            hidden = outputs[-1][segment.outputs[0].name]
            if self.by_change:
                answers = [float(values["logits"][0, 0]) for values in outputs]
                outputs[-1]["uncertainty"] = np.array([change_uncertainty(answers)])
        return outputs


def to_layout(value: np.ndarray, tensor: TensorSpec) -> np.ndarray:
    """Returns an input in the shape that a program takes: in the layout "ane" hidden states have the channels first."""
    if tensor.name == "hidden" and len(tensor.shape) == 4 and value.ndim == 3:
        return value.swapaxes(1, 2)[:, :, None]
    return value.reshape(tensor.shape)


def bundle_buckets(manifest: Manifest, backend: Backend = "coreml") -> list[int]:
    """Returns the lengths of a backend's programs, ascending."""
    return sorted(
        {length for program in manifest.programs if program.backend == backend for length in program.lengths or ()}
    )


def padded_inputs(
    input_ids: Sequence[int] | np.ndarray, answer_mask: Sequence[int] | None, length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Pads an input to a bucket. No token attends to the padding, and the padding is no answer.

    Returns:
        input_ids [1, length] int32, attention_bias [1, 1, length] and answer_bias [1, length], both float32. Without a
        mask, answer_bias is -1e4 everywhere.
    """
    allowed = np.zeros(len(input_ids)) if answer_mask is None else np.asarray(answer_mask)
    inputs = program_inputs(np.asarray(input_ids), allowed)
    assert inputs.answer_bias is not None  # a mask was given

    def pad(values: np.ndarray, filler: float) -> np.ndarray:
        widths = [(0, 0)] * (values.ndim - 1) + [(0, length - len(input_ids))]
        return np.pad(values, widths, constant_values=filler)

    return {
        "input_ids": pad(inputs.input_ids.astype(np.int32), pad_id),
        "attention_bias": pad(inputs.attention_bias, MASKED),
        "answer_bias": pad(inputs.answer_bias, MASKED),
    }
