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
import torch

from pipeline import cli
from pipeline.bundle.manifest import MANIFEST_FILE, describe_files, read_manifest
from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.data.items import Item
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import BundleSource, Labels, describe
from pipeline.export.coreml import export_coreml
from pipeline.export.fingerprints import make_fingerprints
from pipeline.export.vectors import make_vectors
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.quiet import import_quietly
from pipeline.verify.evaluator.loading import SPEC_FILE, WEIGHTS_FOLDER, load_package
from quantize.int8_inputs import STEP, input_gains

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
    torch.manual_seed(5)
    vocabulary = tiny_vocab.read_text(encoding="utf-8").split()
    config = EncoderConfig(
        vocab_size=len(vocabulary), hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=48
    )
    model = ExitModel(task, config, 2, "attention" if task == "qa" else "pooled", [1, 2]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 48},
            "qa": {"window": 48, "stride": 8, "max_question": 12, "max_answer": 8},
            "export": {
                "max_length": 48,
                "coreml_buckets": list(BUCKETS),
                "coreml_precision": precision,
                "coreml_target": target,
                "coreml_layout": layout,
            },
        }
    )
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    folder.mkdir()
    shutil.copyfile(tiny_vocab, folder / "vocab.txt")
    tokenizer = WordPieceTokenizer.from_vocab(folder / "vocab.txt", True)
    texts = [" ".join(vocabulary[9 + 5 * index : 12 + 8 * index]) for index in range(6)]
    if task == "qa":
        examples = [QAExample(str(index), "ba be?", text, ()) for index, text in enumerate(texts)]
    else:
        examples = [ClassificationExample(text, None, "0") for text in texts]
    labels = Labels(("0", "1") if task == "classification" else ())
    manifest = describe(recipe, BundleSource(model, Programs.of(model)), tokenizer, labels, {}, {})
    gains = None
    if precision == "int8-a8":
        random = np.random.default_rng(0)
        items = [
            Item(random.integers(0, len(vocabulary), 40), np.zeros(40, int), None, np.arange(40) > 4) for _ in range(32)
        ]
        gains = input_gains(Programs.of(model), items)
    programs = export_coreml(model, folder, recipe, input_gains=gains)
    vectors = make_vectors(
        Programs.of(model), Programs.of(model), examples, tokenizer,
        context=manifest.answer_context, thresholds={},
    )  # fmt: skip
    vectors = vectors.model_copy(update={"programs": make_fingerprints(model, programs, layout, input_gains=gains)})
    (folder / "conformance.json").write_text(vectors.model_dump_json(exclude_none=True), encoding="utf-8")
    manifest = manifest.model_copy(update={"programs": programs, "files": describe_files(folder)})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return Exported(folder, "segment_1", len(vocabulary), gains is not None)


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "bundle"))


def verify(bundle: Path, monkeypatch, capsys) -> tuple[int, dict, str]:
    """Fits the manifest's checksums to the files, and runs `pocketbert verify BUNDLE --json`.

    Returns the exit code, the JSON, and the last line on stderr.
    """
    manifest = read_manifest(bundle, check_files=False)
    (bundle / MANIFEST_FILE).write_text(
        manifest.model_copy(update={"files": describe_files(bundle)}).model_dump_json(), encoding="utf-8"
    )
    monkeypatch.setattr("sys.argv", ["pocketbert", "verify", str(bundle), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code or 0, json.loads(printed.out or "{}"), (printed.err.splitlines() or [""])[-1]


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


def failed_checks(result: dict, metric: str) -> set[tuple[str, str]]:
    """Returns (program, metric) of the failed checks whose metric begins with `metric`."""
    return {
        (check["program"], check["metric"])
        for check in result["checks"]
        if not check["passed"] and check["metric"].startswith(metric)
    }


def assert_fingerprints_fail(verified: tuple[int, dict, str], program: str, buckets=BUCKETS) -> None:
    """Asserts that only this program's fingerprints fail, in these buckets, and that stderr names the program."""
    code, result, line = verified
    assert code == 1 and not result["passed"]
    assert failed_checks(result, "fingerprint_snr_db") == {
        (program, f"fingerprint_snr_db_{length}") for length in buckets
    }
    assert f"coreml {program}: fingerprint" in line


def test_a_faithful_bundle_passes(copy, exported, monkeypatch, capsys):
    code, result, line = verify(copy, monkeypatch, capsys)
    assert code == 0 and result["passed"], line
    worst = min(check["value"] for check in result["checks"] if check["metric"].startswith("fingerprint_snr"))
    with_rounding = 2 if exported.int8_inputs else 0
    assert worst > 100 and len(result["checks"]) == 2 * (3 + 2 + 3 + 2 * 3 + with_rounding)  # for each bucket


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
