"""The Core ML models in a `.pte` are read back and checked as packages are, and their faults are found by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import cli
from pipeline.bundle.manifest import read_manifest
from pipeline.export.executorch import lower, write_pte
from pipeline.export.executorch_coreml import export_executorch_coreml
from pipeline.export.payload import unpack
from pipeline.model.exit_model import ExitModel
from pipeline.support.errors import UserError
from pipeline.support.quiet import quiet_logging
from pipeline.verify.coreml_modules import check_against_model
from pipeline.verify.evaluator.delegate import find_model, load_delegate_file, read_pte
from tests.verify.tiny_bundle import assert_fingerprints_fail, save, verify, write_coreml_bundle


@dataclass(frozen=True)
class Exported:
    path: Path
    model: ExitModel
    buckets: tuple[int, ...]

    def file(self, bundle: Path) -> Path:
        """Returns the file of a copy that has the last segment's weights."""
        return max(bundle.glob("model-coreml*.pte"))


@pytest.fixture(
    scope="module", params=[("qa", "iOS18", (16, 48)), ("classification", "iOS16", (16,))], ids=["qa", "classification"]
)
def exported(request, tmp_path_factory, tiny_vocab) -> Exported:
    """A bundle with only the delegate's programs, two segments: two buckets that share a model, or one bucket."""
    task, target, buckets = request.param
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export = {
        "executorch_coreml": True,
        "coreml": False,
        "coreml_buckets": list(buckets),
        "coreml_target": target,
    }

    def export_programs(model, recipe):
        return export_executorch_coreml(model, folder, recipe), {}

    return Exported(folder, write_coreml_bundle(folder, tiny_vocab, task, export, export_programs), buckets)


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "bundle"))


def matrix_offset(data: bytes, weight: torch.Tensor) -> int:
    """Returns the offset of a matrix of the model in the file, in float16."""
    part = weight.detach().numpy().astype(np.float16).tobytes()
    assert data.count(part) == 1
    return data.index(part)


def test_a_faithful_bundle_passes_and_every_method_is_checked(exported, copy, monkeypatch, capsys):
    code, result, line = verify(copy, monkeypatch, capsys)
    assert code == 0 and result["passed"], line
    checks = result["checks"]
    assert {check["backend"] for check in checks} == {"executorch-coreml"}
    fingerprints = {
        (check["program"], check["metric"]) for check in checks if check["metric"].startswith("fingerprint_snr")
    }
    manifest = read_manifest(copy)
    assert fingerprints == {(program.name, f"fingerprint_snr_db_{program.lengths[0]}") for program in manifest.programs}
    assert min(check["value"] for check in checks if check["metric"].startswith("fingerprint_snr")) > 100
    assert len(checks) == 1 + len(exported.buckets) * (3 + 2 + 3 + 2 * 3)  # the first is of the tokenizer
    # At least the gather of the embedding table.
    assert {warning["package"] for warning in result["warnings"]} == {exported.file(copy).name}
    checks = check_against_model(exported.model, copy, manifest, backend="executorch-coreml")
    assert [check for check in checks if not check.passed] == [] and len(checks) == len(exported.buckets) * 2 * (
        1 + 2 * 2
    )


def test_one_altered_weight(exported, copy, monkeypatch, capsys):
    file = exported.file(copy)
    data = bytearray(file.read_bytes())
    offset = matrix_offset(bytes(data), last_matrix(exported))
    data[offset + 201] ^= 0x40  # a float16's exponent
    file.write_bytes(data)
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), "executorch-coreml", "segment_1", exported.buckets)


def last_matrix(exported: Exported) -> torch.Tensor:
    """Returns the last layer's square matrix after its attention."""
    return [parameter for parameter in exported.model.encoder.layers[1].parameters() if parameter.shape == (64, 64)][-1]


def test_a_transposed_matrix(exported, copy, monkeypatch, capsys):
    file = exported.file(copy)
    data, weight = file.read_bytes(), last_matrix(exported)
    offset = matrix_offset(data, weight)
    transposed = weight.detach().T.contiguous().numpy().astype(np.float16).tobytes()
    file.write_bytes(data[:offset] + transposed + data[offset + len(transposed) :])
    assert_fingerprints_fail(verify(copy, monkeypatch, capsys), "executorch-coreml", "segment_1", exported.buckets)


def test_swapped_outputs_of_a_method(exported, copy, monkeypatch, capsys):
    """The order of a delegate's results is a list beside the model; two of its names are swapped here."""
    file = exported.file(copy)
    data = file.read_bytes()
    span = len(exported.buckets) == 2
    start = (
        data.index(b'"outputNames": [', data.rindex(b'"segment_1_16": {"inputNames"'))
        if span
        else data.rindex(b'"outputNames": [')
    )
    end = data.index(b"]", start)
    names = json.loads(data[start + len(b'"outputNames": ') : end + 1])
    first = 1 if span else 0
    names[first : first + 2] = reversed(names[first : first + 2])
    swapped = b'"outputNames": ' + json.dumps(names).encode()
    assert len(swapped) == end + 1 - start
    put(file, start, swapped)
    if span:
        assert_fingerprints_fail(verify(copy, monkeypatch, capsys), "executorch-coreml", "segment_1", (16,))
    else:
        assert "is float16 [1, 16, 64] in the delegate's model, float32 [1, 2] in the method" in refusal(file)


def test_outputs_of_another_shape_or_order_are_refused(exported, copy, monkeypatch, capsys):
    manifest = read_manifest(copy)
    program = manifest.programs[-1]
    other = program.model_copy(update={"outputs": [program.outputs[1], program.outputs[0], *program.outputs[2:]]})
    save(copy, manifest.model_copy(update={"programs": [*manifest.programs[:-1], other]}))
    code, _, line = verify(copy, monkeypatch, capsys)
    assert (
        code == 2
        and f"{exported.file(copy).name}: segment_1.outputs: segment_1_{program.lengths[0]} has float32" in line
    )


def test_a_method_without_a_fingerprint_does_not_pass(copy, monkeypatch, capsys):
    vectors = json.loads((copy / "conformance.json").read_text())
    vectors["programs"].pop()
    (copy / "conformance.json").write_text(json.dumps(vectors))
    code, _, line = verify(copy, monkeypatch, capsys)
    assert (
        code == 2 and "conformance.json: programs: do not belong to the manifest's executorch-coreml programs" in line
    )


def refusal(file: Path) -> str:
    """Returns the error of loading a file, without the file's name; asserts that it is one line."""
    with pytest.raises(UserError) as caught:
        load_delegate_file(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and "\n" not in line and "/tmp" not in line.removeprefix(f"{file}: ")
    return line.removeprefix(f"{file}: ")


def test_a_file_is_evaluated_on_its_own(exported, copy, monkeypatch, capsys):
    file = exported.file(copy)
    monkeypatch.setattr("sys.argv", ["pocketbert", "verify", str(file), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    report = json.loads(capsys.readouterr().out)
    assert (
        not stopped.value.code
        and report["passed"]
        and report["specification_version"] == (9 if len(exported.buckets) == 2 else 7)
    )
    assert {function["function"] for function in report["functions"]} == {
        program.method for program in read_manifest(copy).programs
    }
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert (
        stopped.value.code == 2
        and printed.out == ""
        and len(printed.err.splitlines()) == 1
        and "is no whole ExecuTorch program" in printed.err
    )


@pytest.mark.parametrize("kept", [0, 3, 50, 3000, 0.5, -1])
def test_a_cut_file_is_one_line(exported, copy, kept):
    file = exported.file(copy)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert "is no whole ExecuTorch program" in refusal(file)


def test_a_missing_file_is_one_line(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "model-coreml.pte")


def specification(file: Path) -> tuple[int, bytes]:
    """Returns the offset of the last model's specification in the file, and its bytes."""
    pte = read_pte(file)
    plan = pte.program.execution_plan[-1]
    _, _, payload = find_model(
        pte, plan.name, bytes(pte.program.backend_delegate_data[plan.delegates[0].processed.index].data)
    )
    spec = unpack(payload)["model.mlpackage/Data/com.apple.CoreML/model.mlmodel"]
    return file.read_bytes().rindex(spec), spec


def put(file: Path, offset: int, replacement: bytes) -> None:
    """Overwrites bytes of a file."""
    data = file.read_bytes()
    file.write_bytes(data[:offset] + replacement + data[offset + len(replacement) :])


def test_a_model_of_a_newer_version_is_one_line(exported, copy):
    file = exported.file(copy)
    offset, spec = specification(file)
    assert spec[:2] in (b"\x08\x09", b"\x08\x07")  # the first field, the version
    put(file, offset + 1, b"\x63")
    line = refusal(file)
    assert line.startswith("segment_1_") and "model.mlmodel: specification version 99 is newer than" in line


def test_an_unknown_operator_is_one_line(exported, copy):
    file = exported.file(copy)
    offset, spec = specification(file)
    put(file, offset, spec.replace(b"\n\nlayer_norm", b"\n\nlayer_nomr"))
    line = refusal(file)
    assert line.startswith("segment_1_") and "model.mlpackage: operator 'layer_nomr' is not known" in line


def test_a_cut_delegate_is_one_line(exported, copy):
    file = exported.file(copy)
    data = file.read_bytes()
    list_of_files = data.rindex(b'{"nodes":['[::-1])
    put(file, list_of_files, b"*")
    assert "the delegate's contents are cut or altered (its list of files is cut or altered)" in refusal(file)
    file.write_bytes(data)
    # The list is written backwards: the file's size follows its name, the last digit first.
    weights = data.rindex(b'"name":"weight.bin"'[::-1])
    colon = data.index(b'"size":'[::-1], weights)
    digits = data[data.rindex(b"}", 0, colon) + 1 : colon][::-1]
    shorter = str(int(digits) - 5000).encode()
    assert len(shorter) == len(digits)
    put(file, colon - len(digits), shorter[::-1])
    assert "weight.bin: is cut at" in refusal(file)


class Doubled(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(hidden * 2.0, dim=1)


def test_methods_of_another_delegate_and_operators_outside_are_refused(tmp_path):
    with quiet_logging():
        write_pte(
            {"segment_0_4": lower(torch.export.export(Doubled(), (torch.zeros(1, 4),)))}, tmp_path / "model-coreml.pte"
        )
    line = refusal(tmp_path / "model-coreml.pte")
    assert (
        line.startswith("segment_0_4: is not one call of CoreMLBackend") and "aten::cumsum.out, XnnpackBackend" in line
    )
