"""`pocketbert verify` finds every fault that is planted in a bundle's packages, and says where it is.

The checksums are made to fit, so that only the numbers show a fault.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.bundle.manifest import read_manifest
from pipeline.data.items import Item
from pipeline.export.coreml import export_coreml
from pipeline.model.segments import Programs
from pipeline.support.quiet import import_quietly
from pipeline.verify.evaluator.loading import SPEC_FILE, WEIGHTS_FOLDER, load_package
from quantize.int8_inputs import STEP, input_gains
from tests.verify import tiny_bundle
from tests.verify.tiny_bundle import verify, write_coreml_bundle

BUCKETS = (16, 48)


FAITHFUL = [
    ("qa", "int8", "iOS18", "standard"),
    ("classification", "fp16", "iOS16", "standard"),
    ("classification", "int8", "iOS18", "ane"),
    ("qa", "int8-a8", "iOS18", "standard"),
]


@dataclass(frozen=True)
class Exported:
    path: Path
    segment: str  # the last segment
    vocab_size: int
    int8_inputs: bool


@pytest.fixture(scope="module", params=FAITHFUL, ids="-".join)
def exported(request, tmp_path_factory, tiny_vocab) -> Exported:
    """A bundle with only Core ML programs, for 16 and 48 tokens: two segments, a function or a package per bucket."""
    task, precision, target, layout = request.param
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export = {
        "coreml_buckets": list(BUCKETS),
        "coreml_precision": precision,
        "coreml_target": target,
        "coreml_layout": layout,
    }

    def export_programs(model, recipe):
        gains = None
        if precision == "int8-a8":
            random = np.random.default_rng(0)
            ids = random.integers(0, model.config.vocab_size, (32, 40))
            gains = input_gains(
                Programs.of(model), [Item(row, np.zeros(40, int), None, np.arange(40) > 4) for row in ids]
            )
        programs = export_coreml(model, folder, recipe, input_gains=gains)
        return programs, {"layout": layout, "input_gains": gains}

    model = write_coreml_bundle(folder, tiny_vocab, task, export, export_programs)
    return Exported(folder, "segment_1", model.config.vocab_size, int8_inputs=precision == "int8-a8")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "bundle"))


def packages(bundle: Path, program: str) -> list[Path]:
    """Returns the program's packages: one, or one for each bucket."""
    programs = read_manifest(bundle, check_files=False).programs
    return sorted({bundle / entry.file for entry in programs if entry.name == program})


def change_spec(package: Path, change) -> None:
    """Alters the saved specification; `change` is called with the block of every function."""
    ct = import_quietly("coremltools")
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString((package / SPEC_FILE).read_bytes())
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            change(block)
    (package / SPEC_FILE).write_bytes(spec.SerializeToString(deterministic=True))


def matrix_offset(package: Path, shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the offset of the first matrix of a shape in the weight file, and the bytes of each of its numbers."""
    data = np.frombuffer((package / WEIGHTS_FOLDER / "weight.bin").read_bytes(), dtype=np.uint8)
    (function, *_) = load_package(package).functions.values()
    for operation in function.operations:
        for value in (operation.outputs[0].val, getattr(getattr(operation, "data", None), "val", None)):
            if (
                isinstance(value, np.ndarray)
                and value.squeeze().shape == shape
                and operation.op_type.startswith("const")
            ):
                raw = np.frombuffer(value.tobytes(), dtype=np.uint8)
                offset = bytes(data).find(bytes(raw))
                assert offset >= 0
                return offset, value.dtype.itemsize
    raise AssertionError(f"no matrix {shape} in {package}")


def assert_fingerprints_fail(verified, program: str, buckets=BUCKETS) -> None:
    tiny_bundle.assert_fingerprints_fail(verified, "coreml", program, buckets)


def test_a_faithful_bundle_passes(copy, exported, monkeypatch, capsys):
    code, result, line = verify(copy, monkeypatch, capsys)
    assert code == 0 and result["passed"], line
    worst = min(check["value"] for check in result["checks"] if check["metric"].startswith("fingerprint_snr"))
    with_rounding = 2 if exported.int8_inputs else 0
    # One of the tokenizer, and the others for each bucket.
    assert worst > 100 and len(result["checks"]) == 1 + 2 * (3 + 2 + 3 + 2 * 3 + with_rounding)


@pytest.mark.parametrize("program", ["embed", "segment_0", "segment_1"])
def test_one_altered_weight(copy, exported, program, monkeypatch, capsys):
    for package in packages(copy, program):
        offset, size = matrix_offset(package, (exported.vocab_size, 64) if program == "embed" else (64, 128))
        file = package / WEIGHTS_FOLDER / "weight.bin"
        data = bytearray(file.read_bytes())
        data[offset + 100 * size + size - 1] ^= 0x40  # half of an int8's range, or a float16's exponent
        file.write_bytes(data)
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), program)


def test_a_transposed_matrix(copy, exported, monkeypatch, capsys):
    for package in packages(copy, exported.segment):
        offset, size = matrix_offset(package, (64, 64))
        file = package / WEIGHTS_FOLDER / "weight.bin"
        data = np.frombuffer(file.read_bytes(), dtype=np.uint8).copy()
        end = offset + 64 * 64 * size
        data[offset:end] = data[offset:end].reshape(64, 64, size).transpose(1, 0, 2).ravel()
        file.write_bytes(data.tobytes())
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), exported.segment)


def test_a_mask_of_minus_infinity(copy, exported, monkeypatch, capsys):
    """The bias is multiplied by infinity, so that masked tokens become -inf and the others NaN."""

    def multiply_by_infinity(block):
        cast = next(
            operation
            for operation in block.operations
            if operation.type == "cast" and operation.inputs["x"].arguments[0].name == "attention_bias"
        )
        constants = (
            operation
            for operation in block.operations
            if operation.type == "const" and operation.outputs[0].type.tensorType.dataType == 10
        )
        zero = next(constant for constant in constants if not constant.outputs[0].type.tensorType.dimensions)
        scalar = type(zero)()
        scalar.CopyFrom(zero)
        scalar.attributes["val"].immediateValue.tensor.bytes.values = np.float16(np.inf).tobytes()
        scalar.attributes["name"].immediateValue.tensor.strings.values[0] = scalar.outputs[0].name = "infinite"
        product = type(zero)()
        product.type = "mul"
        product.inputs["x"].arguments.add().name = "original_bias"
        product.inputs["y"].arguments.add().name = "infinite"
        product.outputs.add().CopyFrom(cast.outputs[0])
        product.attributes["name"].CopyFrom(scalar.attributes["name"])
        product.attributes["name"].immediateValue.tensor.strings.values[0] = "infinite_mask"
        cast.outputs[0].name = "original_bias"
        place = list(block.operations).index(cast) + 1
        operations = [*block.operations[:place], scalar, product, *block.operations[place:]]
        del block.operations[:]
        block.operations.extend(operations)

    for package in packages(copy, exported.segment):
        change_spec(package, multiply_by_infinity)
    verified = verify(copy, monkeypatch, capsys)
    assert_fingerprints_fail(verified, exported.segment)
    finite = [
        check for check in verified[1]["checks"] if check["metric"].startswith("finite_float16") and not check["passed"]
    ]
    assert {check["program"] for check in finite} == {exported.segment} and all(
        check["note"].startswith("mul ") for check in finite
    )


def test_a_swapped_output(copy, exported, monkeypatch, capsys):
    """Swaps start and end of a span; a classifier's hidden states are taken from before its last layer norm."""

    def swap(block):
        renamed = {"start_logits": "end_logits", "end_logits": "start_logits"}
        if "start_logits" in block.outputs:
            for operation in block.operations:
                for output in operation.outputs:
                    output.name = renamed.get(output.name, output.name)
            return
        by_output = {operation.outputs[0].name: operation for operation in block.operations}
        last = by_output["hidden_out"]
        norm = by_output[last.inputs["x"].arguments[0].name]
        while norm.type == "batch_norm":  # the layer norm's scale and offset, 1 and 0 in these models
            norm = by_output[norm.inputs["x"].arguments[0].name]
        last.inputs["x"].arguments[0].name = norm.inputs["x"].arguments[0].name

    (*_, package) = packages(copy, exported.segment)  # the longest bucket's, if every bucket has one
    change_spec(package, swap)
    separate = len(packages(copy, exported.segment)) > 1
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), exported.segment, BUCKETS[-1:] if separate else BUCKETS)


def scales_of(block, *operators: str) -> list:
    """Returns the constants that are the scales of these operators, in the program's order. One may be shared."""
    names = [
        operation.inputs["scale"].arguments[0].name for operation in block.operations if operation.type in operators
    ]
    return [
        constant
        for name in dict.fromkeys(names)
        for constant in block.operations
        if constant.outputs and constant.outputs[0].name == name
    ]


@pytest.mark.parametrize("operators", [("dequantize",), ("quantize",), ("quantize", "dequantize")], ids="-".join)
def test_an_altered_scale_of_activations(copy, exported, operators, monkeypatch, capsys):
    """Halves the scale of one matrix' inputs. If both operators change, only the range and the steps differ."""
    if not exported.int8_inputs:
        pytest.skip("no activations in int8")

    def halve(block):
        for operator in operators:
            scale = scales_of(block, operator)[0]
            assert np.frombuffer(scale.attributes["val"].immediateValue.tensor.bytes.values, np.float16) == STEP
            scale.attributes["val"].immediateValue.tensor.bytes.values = np.float16(STEP / 2).tobytes()

    (package,) = packages(copy, exported.segment)
    change_spec(package, halve)
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), exported.segment)


def test_an_altered_gain(copy, exported, monkeypatch, capsys):
    if not exported.int8_inputs:
        pytest.skip("no activations in int8")
    (package,) = packages(copy, exported.segment)
    (function, *_) = load_package(package).functions.values()
    product = next(operation.input.op for operation in function.operations if operation.op_type == "quantize")
    raw = next(factor.val for factor in (product.x, product.y) if factor.val is not None).tobytes()
    file = package / WEIGHTS_FOLDER / "weight.bin"
    data = bytearray(file.read_bytes())
    offset = data.find(raw)
    assert offset >= 0
    data[offset + 11] ^= 0x04  # changes a channel's gain by a factor of two
    file.write_bytes(data)
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), exported.segment)


def test_a_program_without_a_fingerprint_does_not_pass(copy, exported, monkeypatch, capsys):
    vectors = json.loads((copy / "conformance.json").read_text())
    if exported.int8_inputs:
        assert vectors["programs"][-1].pop("rounded_outputs")
    else:
        vectors["programs"].pop()
    (copy / "conformance.json").write_text(json.dumps(vectors))
    code, _, line = verify(copy, monkeypatch, capsys)
    assert code == 2 and "conformance.json: programs" in line


def test_an_output_of_another_name(copy, exported, monkeypatch, capsys):
    def rename(block):
        for operation in block.operations:
            for output in operation.outputs:
                if output.name == "uncertainty":
                    output.name = "certainty"
        block.outputs[list(block.outputs).index("uncertainty")] = "certainty"

    package = packages(copy, exported.segment)[0]
    change_spec(package, rename)
    code, _, line = verify(copy, monkeypatch, capsys)
    assert code == 2 and package.name in line and "segment_1.outputs.uncertainty" in line and "\n" not in line
