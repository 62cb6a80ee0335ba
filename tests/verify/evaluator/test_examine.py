"""`pocketbert verify FILE.mlpackage` computes what numpy computes, and refuses what does not fit in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.verify.evaluator.loading import SPEC_FILE, WEIGHTS_FOLDER

TABLE = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float16)


def save(path: Path, length: int) -> Path:
    """Saves a package that returns `rows` [1, length, 64] of a table plus a bias, and `large`, 256 * rows^2."""
    ct = import_quietly("coremltools")
    from coremltools.converters.mil.mil import Builder, types

    specs = [Builder.TensorSpec((1, length), dtype=types.int32), Builder.TensorSpec((1, length, 1))]

    @Builder.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(ids, bias):
        rows = Builder.add(x=Builder.gather(x=TABLE.astype(np.float32), indices=ids, axis=0), y=bias, name="rows")
        return rows, Builder.mul(x=Builder.mul(x=rows, y=rows), y=np.float32(256.0), name="large")

    with quiet_stderr(), quiet_logging():
        ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True).save(str(path))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A package with a function for 4 ids and one for 6."""
    folder = tmp_path_factory.mktemp("package")
    ct = import_quietly("coremltools")
    functions = ct.utils.MultiFunctionDescriptor()
    for length in (4, 6):
        functions.add_function(str(save(folder / f"rows_{length}.mlpackage", length)), "main", f"length_{length}")
    functions.default_function_name = "length_4"
    with quiet_stderr(), quiet_logging():
        ct.utils.save_multifunction(functions, str(folder / "rows.mlpackage"))
    return folder / "rows.mlpackage"


@pytest.fixture
def verify(monkeypatch, capsys):
    """A function that runs `pocketbert verify ARGUMENTS` and returns exit code, stdout and stderr."""

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["pocketbert", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return command


def inputs(**changes) -> dict[str, np.ndarray]:
    """Returns inputs for `length_4`; a change to None removes one."""
    arrays = {
        "ids": np.array([[3, 0, 39, 7]], dtype=np.int32),
        "bias": np.full((1, 4, 1), 0.5, dtype=np.float32),
        **changes,
    }
    return {name: value for name, value in arrays.items() if value is not None}


def test_random_inputs_run_every_function_in_both_precisions(package, verify):
    code, out, _ = verify(package, "--json")
    result = json.loads(out)
    assert code == 0 and result["passed"] and result["inputs"] == "random (seed 0)" and "values" not in result
    assert [function["function"] for function in result["functions"]] == ["length_4", "length_6"]
    for function, length in zip(result["functions"], (4, 6)):
        rows = function["outputs"][0]
        assert (rows["name"], rows["shape"], rows["finite"]) == ("rows", [1, length, 64], True)
        assert rows["minimum"] < rows["maximum"]
        assert 40 < rows["float16_snr_db"] < 100 and function["faults"] == {"float32": [], "float16": []}
    assert verify(package, "--json")[1] == out
    assert verify(package)[1].count("length_4") >= 2 and "random (seed 0)" in verify(package)[1]


@pytest.mark.parametrize("form", ["npz", "json"])
def test_outputs_for_given_inputs_are_numpys(package, verify, tmp_path, form):
    file = tmp_path / f"inputs.{form}"
    if form == "npz":
        np.savez(file, **inputs())
    else:
        file.write_text(json.dumps({name: value.tolist() for name, value in inputs().items()}))
    code, out, _ = verify(
        package, "--inputs", file, "--function", "length_4", "--outputs", tmp_path / "outputs.npz", "--json"
    )
    result = json.loads(out)
    expected = TABLE[[[3, 0, 39, 7]]].astype(np.float32) + 0.5
    assert code == 0 and result["inputs"] == str(file)
    np.testing.assert_allclose(result["values"]["length_4"]["rows"], expected, rtol=1e-3, atol=1e-3)
    with np.load(tmp_path / "outputs.npz") as written:
        np.testing.assert_allclose(written["large"], 256 * np.square(expected), rtol=1e-2, atol=1e-2)
    assert "length_4 rows" in verify(package, "--inputs", file, "--function", "length_4", "--precision", "float16")[1]


def test_an_overflow_in_float16_is_named_and_fails(package, verify, tmp_path):
    np.savez(tmp_path / "large.npz", **inputs(bias=np.full((1, 4, 1), 30.0, dtype=np.float32)))
    code, out, _ = verify(package, "--inputs", tmp_path / "large.npz", "--function", "length_4", "--json")
    (function,) = json.loads(out)["functions"]
    assert code == 1 and not function["passed"] and function["faults"]["float32"] == []
    (fault,) = function["faults"]["float16"]
    assert fault.startswith("mul large") and fault.endswith("overflows")  # 256 * 900; 900 alone fits
    assert function["outputs"][0]["float16_snr_db"] > 40 and function["outputs"][1]["float16_snr_db"] == -300
    np.savez(tmp_path / "infinite.npz", **inputs(bias=np.full((1, 4, 1), -np.inf, dtype=np.float32)))
    code, out, _ = verify(package, "--inputs", tmp_path / "infinite.npz", "--function", "length_4")
    assert code == 1 and "input bias is infinite" in out and "NOT FINITE" in out


def assert_refused(result: tuple[int, str, str], *parts) -> None:
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert str(part) in err, err


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"ids": np.zeros((1, 5), np.int32)}, ["ids", "int32 [1, 4]", "int32 [1, 5]"]),
        ({"ids": np.zeros((1, 4), np.int64)}, ["ids", "int32 [1, 4]", "int64"]),
        ({"bias": None}, ["bias", "needs this input"]),
        ({"mask": np.zeros(1, np.float32)}, ["mask", "is not an input", "ids, bias"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused(package, verify, tmp_path, changes, parts):
    np.savez(tmp_path / "inputs.npz", **inputs(**changes))
    assert_refused(
        verify(package, "--inputs", tmp_path / "inputs.npz", "--function", "length_4"), tmp_path / "inputs.npz", *parts
    )


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none.npz", None, ["cannot be read"]),
        ("cut.npz", b"PK\x03\x04cut", ["neither"]),
        ("text.json", b"ids: 1", ["neither"]),
        ("list.json", b"[1]", ["no JSON object"]),
        ("ragged.json", b'{"ids": [[1, 2], [3]]}', ["ids", "one length"]),
        ("words.json", b'{"ids": [["a", "b"]]}', ["ids", "not an array of numbers"]),
        ("fraction.json", b'{"ids": [[1, 2, 3, 0.5]]}', ["ids", "int32"]),
        ("large.json", b'{"ids": [[1, 2, 3, 4294967296]]}', ["ids", "int32"]),
    ],
)
def test_unreadable_input_files_are_refused(package, verify, tmp_path, name, content, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(verify(package, "--inputs", tmp_path / name, "--function", "length_4"), name, *parts)


def test_options_that_do_not_fit_are_refused(package, verify, tmp_path, tiny_classifier):
    np.savez(tmp_path / "inputs.npz", **inputs())
    assert_refused(verify(package, "--inputs", tmp_path / "inputs.npz"), "length_4, length_6", "--function")
    assert_refused(verify(package, "--function", "main"), "main", "length_4, length_6")
    assert_refused(verify(package, "--precision", "int8"), "float32 or float16")
    assert_refused(verify(package, "--outputs", tmp_path / "none" / "out.npz"), "out.npz", "cannot be written")
    assert_refused(verify(tiny_classifier.path, "--inputs", tmp_path / "inputs.npz"), "--inputs", "package")


def test_damaged_and_unknown_packages_are_refused(package, verify, tmp_path):
    ct = import_quietly("coremltools")

    def altered(name: str, change) -> Path:
        copy = Path(shutil.copytree(package, tmp_path / f"{name}.mlpackage"))
        spec = ct.proto.Model_pb2.Model()
        spec.ParseFromString((copy / SPEC_FILE).read_bytes())
        change(spec, copy)
        if name != "cut":
            (copy / SPEC_FILE).write_bytes(spec.SerializeToString())
        return copy

    def cut_weights(spec, copy):
        file = copy / WEIGHTS_FOLDER / "weight.bin"
        file.write_bytes(file.read_bytes()[:-2000])

    def unknown(spec, copy):
        for function in spec.mlProgram.functions.values():
            for block in function.block_specializations.values():
                next(operation for operation in block.operations if operation.type == "mul").type = "frobnicate"

    assert_refused(verify(altered("weights", cut_weights)), "weights.mlpackage")
    assert_refused(
        verify(altered("cut", lambda spec, copy: (copy / SPEC_FILE).write_bytes(spec.SerializeToString()[:-100]))),
        "model.mlmodel",
    )
    assert_refused(
        verify(altered("newer", lambda spec, copy: setattr(spec, "specificationVersion", 99))), "version 99", "newer"
    )
    assert_refused(verify(altered("operator", unknown)), "'frobnicate' is not known")
    assert_refused(verify(tmp_path / "nothing.mlpackage"), "is not a Core ML package")
