"""A lint for the Neural Engine: what in a package is publicly known to keep an operator off it, or to cost accuracy on it.

Apple does not document what the Neural Engine runs; Core ML decides when it loads a package, by device and system. So a warning here is what others
have published, each with its source, and no warning is no promise. The judge is a device: Xcode's performance report, or `MLComputePlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.bundle.manifest import read_manifest
from pipeline.names import APPLE_BACKENDS
from pipeline.verify.evaluator.evaluator import Function, Package, is_constant, load_package, shape_of

MOST_RANK = 5
LONGEST_DIMENSION = 16_384
LEAST_FLOAT16 = -65_504.0


@dataclass(frozen=True)
class Reason:
    """Why an operator is named: one sentence, and who says so."""

    text: str
    source: str


REASONS: dict[str, Reason] = {
    "dimension": Reason(
        f"a dimension is longer than {LONGEST_DIMENSION:,}, the Neural Engine's longest width and height",
        "https://ane-guide.readthedocs.io/en/latest/part-5-practice/17-model-design-rules.html (measured on M1); "
        "ONNX Runtime's Core ML provider refuses the same, https://github.com/microsoft/onnxruntime/issues/19543",
    ),
    "rank": Reason(
        f"a tensor has more than {MOST_RANK} dimensions, which Core ML does not run",
        "https://github.com/apple/coremltools/issues/1723 (a maintainer's answer)",
    ),
    "gather": Reason(
        "looks up rows of a table; Core ML's compute plans of transformers give their embedding tables' lookups to the CPU alone",
        "https://huggingface.co/mickekringai/kb-whisper-coreml (base/TextDecoder.mlcomputeplan.json: gather, supported: CPU); "
        "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md",
    ),
    "operator": Reason(
        "runs on the CPU or the GPU",
        "coremltools, converters/mil/frontend/torch/ops.py: scatter \"falls off ANE\"; "
        "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md: recurrent and custom layers; "
        "https://ane-guide.readthedocs.io/en/latest/part-1-machine/04-capability-surface.html: the scatter family, recurrent cells, reduce_prod",
    ),
    "float32": Reason(
        "computes in float32, which only the CPU and the GPU do",
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
    ),
    "mask": Reason(
        f"a constant is beyond what float16 holds ({LEAST_FLOAT16:,.0f} to {-LEAST_FLOAT16:,.0f}), as a mask of -inf or -1e9 is; "
        "the Neural Engine computes in float16",
        "https://github.com/hollance/neural-engine/blob/master/docs/16-bit.md; "
        "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html",
    ),
    "int8": Reason(
        "rounds activations to int8, which the Neural Engine computes with from A17 Pro and M4 on; before, and on the CPU and the GPU, they are "
        "made float16 again at run time, which costs time",
        "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-perf.html",
    ),
    "flexible": Reason(
        "an input's shape has a range: the Neural Engine runs its default shape alone, all others run on the CPU or the GPU",
        "https://developer.apple.com/forums/thread/724930 (an Apple engineer's answer)",
    ),
}  # fmt: skip

# By name in the operator set; `scatter`, `scatter_nd` and `scatter_along_axis` by their beginning.
KNOWN_TO_FALL_BACK = ("scatter", "lstm", "gru", "rnn", "reduce_prod", "custom")
# Moves numbers, computes nothing: a float32 result of it is the program's border.
MOVES = ("cast", "const", "identity")


@dataclass(frozen=True)
class EngineWarning:
    """One operator (or input) of one function, and the reason in `REASONS`; `detail` says what it is there."""

    package: str
    function: str
    operator: str
    name: str
    reason: str
    detail: str

    def to_json(self) -> dict:
        """All fields, and the reason's text and source."""
        return {**asdict(self), "text": REASONS[self.reason].text, "source": REASONS[self.reason].source}


def lint_bundle(bundle: str | Path) -> list[EngineWarning]:
    """The warnings of every Core ML package of a bundle, and of what its ExecuTorch files hand to Core ML. Raises UserError when one cannot be read."""
    from pipeline.verify.evaluator.delegate import load_delegate_file

    manifest, warnings = read_manifest(bundle, check_files=False), []
    for file, backend in dict.fromkeys(
        (program.file, program.backend) for program in manifest.programs if program.backend in APPLE_BACKENDS
    ):
        path = Path(bundle) / file
        warnings += lint(load_package(path) if backend == "coreml" else load_delegate_file(path).package)
    return warnings


def lint(package: Package) -> list[EngineWarning]:
    """The warnings of every function, in the order of its operators."""
    return [
        EngineWarning(package.path.name, function.name, operator, name, reason, detail)
        for function in package.functions.values()
        for operator, name, reason, detail in findings(function)
    ]


def by_reason(warnings: Iterable[EngineWarning]) -> dict[str, list[EngineWarning]]:
    """The warnings of each reason that there are any of, in the order of `REASONS`."""
    named = {reason: [warning for warning in warnings if warning.reason == reason] for reason in REASONS}
    return {reason: each for reason, each in named.items() if each}


Finding = tuple[str, str, str, str]  # operator, name, reason, detail


def findings(function: Function) -> Iterator[Finding]:
    for tensor in function.inputs:
        if None in tensor.shape:
            yield "input", tensor.name, "flexible", f"shape {described(tensor.shape)}"
        yield from sizes("input", tensor.name, tensor.shape)
    # A clip's bound may be infinite, and a compressed weight's parts are no tensors of the program.
    readers = [
        operation for operation in function.operations if not is_constant(operation) and operation.op_type != "clip"
    ]
    used = {var.name for operation in readers for var in arguments(operation)}
    for operation in function.operations:
        kind, name = operation.op_type, operation.outputs[0].name
        if is_constant(operation):
            if name in used:
                yield from out_of_float16(kind, name, function.constants[name])
            continue
        if kind in ("gather", "gather_along_axis", "gather_nd") and is_constant(operation.x.op):
            yield kind, name, "gather", f"a table of {described(shape_of(operation.x))}"
        elif kind.startswith(KNOWN_TO_FALL_BACK):
            yield kind, name, "operator", f"operator {kind}"
        elif kind == "quantize":
            yield kind, name, "int8", f"{described(shape_of(operation.input))} to {dtype_of(operation.outputs[0])}"
        elif kind not in MOVES and any(dtype_of(output) == "fp32" for output in operation.outputs):
            yield kind, name, "float32", f"result of {described(shape_of(operation.outputs[0]))}"
        for output in operation.outputs:
            yield from sizes(kind, output.name, shape_of(output))
        if kind not in ("gather", "gather_along_axis", "gather_nd"):
            for var in arguments(operation):
                if var.op is not None and is_constant(var.op):
                    yield from sizes(kind, f"{name} (weight {var.name})", shape_of(var))


def sizes(kind: str, name: str, shape: Sequence[int | None]) -> Iterator[Finding]:
    if len(shape) > MOST_RANK:
        yield kind, name, "rank", f"{len(shape)} dimensions, {described(shape)}"
    if any(size is not None and size > LONGEST_DIMENSION for size in shape):
        yield kind, name, "dimension", described(shape)


def out_of_float16(kind: str, name: str, value) -> Iterator[Finding]:
    value = np.asarray(value)
    if value.dtype.kind == "f" and value.size and not np.abs(value).max() <= -LEAST_FLOAT16:
        worst = value.ravel()[np.argmax(~(np.abs(value.ravel()) <= -LEAST_FLOAT16))]
        yield kind, name, "mask", f"holds {worst:.4g}"


def arguments(operation) -> Iterable:
    """The variables that an operation reads, those in lists, too."""
    for value in operation.inputs.values():
        yield from value if isinstance(value, (list, tuple)) else (value,)


def dtype_of(var) -> str:
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(var.dtype)


def described(shape: Sequence) -> str:
    return "x".join("any" if size is None else str(size) for size in shape) or "one number"
