"""A lint for the Neural Engine: names what is publicly known to keep an operator off it, or to cost accuracy on it.

Apple does not document what the Neural Engine runs. Core ML decides when it loads a package, by device and system. So
each warning repeats what others have published, with the source, and having no warning is no promise. Only a device can
tell: use Xcode's performance report or `MLComputePlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.bundle.manifest import read_manifest
from pipeline.names import APPLE_BACKENDS
from pipeline.verify.checks import EngineWarning
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.evaluator.mil import dtype_of, is_constant, shape_of, variables_read
from pipeline.verify.evaluator.program import Function, Package

MAX_RANK = 5
MAX_DIMENSION = 16_384
MAX_FLOAT16 = 65_504.0


@dataclass(frozen=True)
class Reason:
    """Why an operator is named: one sentence, and who published it."""

    text: str
    source: str


REASONS: dict[str, Reason] = {
    "dimension": Reason(
        f"a dimension is longer than {MAX_DIMENSION:,}, the Neural Engine's longest width and height",
        "https://ane-guide.readthedocs.io/en/latest/part-5-practice/17-model-design-rules.html (measured on M1); "
        "ONNX Runtime's Core ML provider refuses the same, https://github.com/microsoft/onnxruntime/issues/19543",
    ),
    "rank": Reason(
        f"a tensor has more than {MAX_RANK} dimensions, which Core ML does not run",
        "https://github.com/apple/coremltools/issues/1723 (a maintainer's answer)",
    ),
    "gather": Reason(
        "looks up rows of a table; Core ML's compute plans of transformers give their embedding tables' lookups "
        "to the CPU alone",
        "https://huggingface.co/mickekringai/kb-whisper-coreml (base/TextDecoder.mlcomputeplan.json: gather, "
        "supported: CPU); "
        "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md",
    ),
    "operator": Reason(
        "runs on the CPU or the GPU",
        "coremltools, converters/mil/frontend/torch/ops.py: scatter \"falls off ANE\"; "
        "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md: "
        "recurrent and custom layers; "
        "https://ane-guide.readthedocs.io/en/latest/part-1-machine/04-capability-surface.html: the scatter family, "
        "recurrent cells, reduce_prod",
    ),
    "float32": Reason(
        "computes in float32, which only the CPU and the GPU do",
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
    ),
    "mask": Reason(
        f"a constant is beyond what float16 holds ({-MAX_FLOAT16:,.0f} to {MAX_FLOAT16:,.0f}), as a mask of -inf or "
        "-1e9 is; the Neural Engine computes in float16",
        "https://github.com/hollance/neural-engine/blob/master/docs/16-bit.md; "
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html",
    ),
    "int8": Reason(
        "rounds activations to int8, which the Neural Engine computes with from A17 Pro and M4 on; before, and on the "
        "CPU and the GPU, they are made float16 again at run time, which costs time",
        "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-perf.html",
    ),
    "flexible": Reason(
        "an input's shape has a range: the Neural Engine runs its default shape alone, all others run on the CPU "
        "or the GPU",
        "https://developer.apple.com/forums/thread/724930 (an Apple engineer's answer)",
    ),
}  # fmt: skip

# Operator types; `scatter` also stands for `scatter_nd` and `scatter_along_axis`, which begin with it.
FALLBACK_PREFIXES = ("scatter", "lstm", "gru", "rnn", "reduce_prod", "custom")
# These move numbers and compute nothing: a float32 result of theirs is at the program's border.
MOVES = ("cast", "const", "identity")
GATHERS = ("gather", "gather_along_axis", "gather_nd")


def lint_bundle(bundle: str | Path, files: SavedFiles | None = None) -> list[EngineWarning]:
    """Lints every Core ML package of a bundle, and the Core ML models in its ExecuTorch files.

    Args:
        files: the bundle's files, where other checks have read some of them.

    Raises:
        UserError: a file cannot be read.
    """
    manifest, warnings, saved = read_manifest(bundle, check_files=False), [], files or SavedFiles(bundle)
    for file, backend in dict.fromkeys(
        (program.file, program.backend) for program in manifest.programs if program.backend in APPLE_BACKENDS
    ):
        warnings += lint(saved.package(file) if backend == "coreml" else saved.delegate(file).package)
    return warnings


def lint(package: Package) -> list[EngineWarning]:
    """Returns the warnings of every function, in the order of its operators."""
    return [
        EngineWarning(
            package=package.path.name,
            function=function.name,
            operator=finding.operator,
            name=finding.name,
            reason=finding.reason,
            detail=finding.detail,
            text=REASONS[finding.reason].text,
            source=REASONS[finding.reason].source,
        )
        for function in package.functions.values()
        for finding in find_in_function(function)
    ]


def by_reason(warnings: Iterable[EngineWarning]) -> dict[str, list[EngineWarning]]:
    """Groups warnings by reason, in the order of `REASONS`; reasons without warnings are left out."""
    groups: dict[str, list[EngineWarning]] = {reason: [] for reason in REASONS}
    for warning in warnings:
        groups[warning.reason].append(warning)
    return {reason: group for reason, group in groups.items() if group}


class Finding(NamedTuple):
    """The fields of a warning that come from the program; `reason` is a key of `REASONS`."""

    operator: str
    name: str
    reason: str
    detail: str


def find_in_function(function: Function) -> Iterator[Finding]:
    for spec in function.inputs:
        if None in spec.shape:
            yield Finding("input", spec.name, "flexible", f"shape {shape_text(spec.shape)}")
        yield from find_sizes("input", spec.name, spec.shape)
    # The bounds of a clip may be infinite, and the parts of a compressed weight are not tensors of the program.
    readers = [
        operation for operation in function.operations if not is_constant(operation) and operation.op_type != "clip"
    ]
    names_read = {variable.name for operation in readers for variable in variables_read(operation)}
    for operation in function.operations:
        operator, name = operation.op_type, operation.outputs[0].name
        if is_constant(operation):
            if name in names_read:
                yield from find_large_constant(operator, name, function.constants[name])
            continue
        if operator in GATHERS and is_constant(operation.x.op):
            yield Finding(operator, name, "gather", f"a table of {shape_text(shape_of(operation.x))}")
        elif operator.startswith(FALLBACK_PREFIXES):
            yield Finding(operator, name, "operator", f"operator {operator}")
        elif operator == "quantize":
            shape, dtype = shape_text(shape_of(operation.input)), dtype_of(operation.outputs[0])
            yield Finding(operator, name, "int8", f"{shape} to {dtype}")
        elif operator not in MOVES and any(dtype_of(output) == "fp32" for output in operation.outputs):
            yield Finding(operator, name, "float32", f"result of {shape_text(shape_of(operation.outputs[0]))}")
        for output in operation.outputs:
            yield from find_sizes(operator, output.name, shape_of(output))
        if operator not in GATHERS:
            for variable in variables_read(operation):
                if variable.op is not None and is_constant(variable.op):
                    yield from find_sizes(operator, f"{name} (weight {variable.name})", shape_of(variable))


def find_sizes(operator: str, name: str, shape: Sequence[int | None]) -> Iterator[Finding]:
    """Finds shapes with too many dimensions or too long a dimension."""
    if len(shape) > MAX_RANK:
        yield Finding(operator, name, "rank", f"{len(shape)} dimensions, {shape_text(shape)}")
    if any(size is not None and size > MAX_DIMENSION for size in shape):
        yield Finding(operator, name, "dimension", shape_text(shape))


def find_large_constant(operator: str, name: str, value: Any) -> Iterator[Finding]:
    """Finds constants that float16 cannot hold; NaN is one of them."""
    value = np.asarray(value)
    if value.dtype.kind != "f":
        return
    too_large = value.ravel()[~(np.abs(value.ravel()) <= MAX_FLOAT16)]
    if too_large.size:
        yield Finding(operator, name, "mask", f"holds {too_large[0]:.4g}")


def shape_text(shape: Sequence[int | None]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape) or "one number"
