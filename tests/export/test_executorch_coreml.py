"""The `.pte` for ExecuTorch's Core ML delegate holds complete programs and weights once, and is reproducible."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pipeline.bundle.manifest import TensorSpec
from pipeline.export.executorch_coreml import DEBUG_FILE, METADATA_FILE, export_executorch_coreml, lower
from pipeline.export.payload import pack, unpack
from pipeline.export.program_modules import ProgramModule
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from pipeline.verify.evaluator.delegate import find_model, read_pte

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64)
HEADS = {"classification": "pooled", "regression": "pooled", "qa": "attention"}


def recipe_of(task: str, **export) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 32},
            "qa": {"window": 64, "stride": 8, "max_question": 16},
            "exits": {"uncertainty": "change" if task == "regression" else "entropy"},
            "export": {
                "max_length": 64,
                "coreml": False,
                "executorch_coreml": True,
                "coreml_buckets": [16, 8],
                **export,
            },
        }
    )


def tiny_model(task: str) -> ExitModel:
    torch.manual_seed(1)
    return ExitModel(task, CONFIG, 1 if task == "regression" else 3, HEADS[task], [1]).eval()


def models(path) -> dict[str, bytes]:
    """Returns the Core ML models in a file by their keys."""
    file, found = read_pte(path), {}
    for plan in file.program.execution_plan:
        processed = file.program.backend_delegate_data[plan.delegates[0].processed.index].data
        key, _, payload = find_model(file, plan.name, bytes(processed))
        found[key] = payload
    return found


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
    """A folder with the file of a span model for iOS 18, its manifest entries, and the reported steps."""
    folder, steps = tmp_path_factory.mktemp("qa"), []
    entries = export_executorch_coreml(tiny_model("qa"), folder, recipe_of("qa"), lambda *step: steps.append(step[1:]))
    return folder, entries, steps


def test_every_program_and_bucket_has_an_entry_that_matches_the_file(qa):
    folder, entries, steps = qa
    assert [(entry.name, entry.method, entry.lengths) for entry in entries] == [
        ("embed", "embed_8", [8]),
        ("embed", "embed_16", [16]),
        ("segment_0", "segment_0_8", [8]),
        ("segment_0", "segment_0_16", [16]),
    ]
    assert {(entry.backend, entry.file, entry.precision) for entry in entries} == {
        ("executorch-coreml", "model-coreml.pte", "fp16")
    }
    assert [path.name for path in folder.iterdir()] == ["model-coreml.pte"] and steps == [(1, 2), (2, 2)]
    program = import_quietly("executorch.extension.pybindings._C")._load_program(str(folder / "model-coreml.pte"))
    assert {program.get_method_name(index) for index in range(program.num_methods())} == {
        entry.method for entry in entries
    }
    codes = {"int32": 3, "float32": 6}  # ExecuTorch's ScalarType
    for entry in entries:
        meta = program.method_meta(entry.method)
        for tensors, count, tensor_meta in (
            (entry.inputs, meta.num_inputs(), meta.input_tensor_meta),
            (entry.outputs, meta.num_outputs(), meta.output_tensor_meta),
        ):
            assert [(codes[tensor.dtype], tensor.shape) for tensor in tensors] == [
                (tensor_meta(index).dtype(), list(tensor_meta(index).sizes())) for index in range(count)
            ]


def test_every_method_is_one_call_of_the_delegate(qa):
    for plan in read_pte(qa[0] / "model-coreml.pte").program.execution_plan:
        assert [delegate.id for delegate in plan.delegates] == ["CoreMLBackend"] and plan.operators == []
        assert sum(len(chain.instructions) for chain in plan.chains) == 1


def test_buckets_share_one_model_with_its_weights(qa):
    stored, model = models(qa[0] / "model-coreml.pte"), tiny_model("qa")
    assert len(stored) == 2
    embed, segment = (unpack(stored[key]) for key in stored)
    for files in (embed, segment):
        assert set(files) == {
            METADATA_FILE, "model.mlpackage/Manifest.json", "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
            "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        }  # fmt: skip
    parameters = sum(parameter.numel() for parameter in (*model.encoder.layers.parameters(), *model.heads.parameters()))
    assert 2 * parameters < len(segment["model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"]) < 2.2 * parameters
    assert (qa[0] / "model-coreml.pte").stat().st_size < 2 * sum(
        parameter.numel() for parameter in model.parameters()
    ) + 80_000


def test_the_same_model_gives_the_same_bytes_without_a_date(qa, tmp_path):
    export_executorch_coreml(tiny_model("qa"), tmp_path, recipe_of("qa"))
    data = (qa[0] / "model-coreml.pte").read_bytes()
    assert (tmp_path / "model-coreml.pte").read_bytes() == data
    assert b"conversion_date" not in data
    identifiers = {
        json.loads(unpack(payload)[METADATA_FILE])["identifier"]
        for payload in models(tmp_path / "model-coreml.pte").values()
    }
    assert len(identifiers) == 2  # a device caches compiled models by them


def test_before_ios_18_every_bucket_is_a_file_with_all_weights(tmp_path):
    recipe = recipe_of("classification", coreml_target="iOS17", coreml_buckets=[8, 128, 16])
    entries = export_executorch_coreml(tiny_model("classification"), tmp_path, recipe)
    assert [(entry.file, entry.method) for entry in entries] == [
        ("model-coreml-8.pte", "embed_8"), ("model-coreml-8.pte", "segment_0_8"),
        ("model-coreml-16.pte", "embed_16"), ("model-coreml-16.pte", "segment_0_16"),
    ]  # fmt: skip
    files = [models(tmp_path / name) for name in ("model-coreml-8.pte", "model-coreml-16.pte")]
    assert [len(file) for file in files] == [2, 2]
    weights = [
        unpack(file["segment_0_" + length])["model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"]
        for file, length in zip(files, ("8", "16"))
    ]
    assert abs(len(weights[0]) - len(weights[1])) < 1000
    assert all(DEBUG_FILE not in unpack(payload) for file in files for payload in file.values())
    (tmp_path / "again").mkdir()
    export_executorch_coreml(tiny_model("classification"), tmp_path / "again", recipe)
    for name in ("model-coreml-8.pte", "model-coreml-16.pte"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


class Interrupted(nn.Module):
    """Has an operator in the middle that the delegate does not take (coremltools' issue 2565)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(torch.diagonal(hidden * 2.0, dim1=1, dim2=2) + 1.0)


def test_an_operator_outside_of_the_delegate_is_named():
    hidden = TensorSpec(name="hidden", dtype="float32", shape=[1, "length", 8])
    program = ProgramModule(
        "segment_0", Interrupted(), (hidden,), (TensorSpec(name="hidden_out", dtype="float32", shape=[1, 8]),)
    )
    with pytest.raises(UserError) as caught:
        lower(program, [8], "iOS17")
    line = str(caught.value)
    assert line.startswith(
        "export.executorch_coreml, segment_0_8: is 2 Core ML delegates instead of one; operators left outside: "
    )
    assert "diagonal" in line and "relu" not in line and "export.executorch_coreml=false" in line


def test_a_recipe_without_a_fitting_bucket_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"export\.coreml_buckets.*export\.executorch_coreml=false"):
        export_executorch_coreml(tiny_model("qa"), tmp_path, recipe_of("qa", coreml_buckets=[65, 128]))
    assert list(tmp_path.iterdir()) == []


FILES = {"metadata.json": b"{}", "model/a/weights.bin": bytes(range(256)) * 9, "model/a/b": b"x", "model/c d": b"yz"}


def test_packing_and_unpacking_agree_with_executorch(tmp_path):
    native = import_quietly("executorch.backends.apple.coreml.executorchcoreml")
    (tmp_path / "out").mkdir()
    assert native.unflatten_directory_contents(pack(FILES, "root"), str(tmp_path / "out"))
    written = {
        path.relative_to(tmp_path / "out" / "root").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == FILES
    assert unpack(native.flatten_directory_contents(str(tmp_path / "out" / "root"))) == FILES
    assert unpack(pack(FILES)) == unpack(pack(dict(reversed(FILES.items())))) == FILES and pack(FILES) == pack(
        dict(reversed(FILES.items()))
    )
    assert unpack(pack({"empty": b""})) == {"empty": b""}


@pytest.mark.parametrize("kept", [0, 7, 2000, -1, -40])
def test_a_cut_file_system_is_refused(kept):
    with pytest.raises(ValueError, match="cut or altered"):
        unpack(pack(FILES)[:kept])


def test_a_file_system_that_points_outside_itself_is_refused():
    def altered(old: bytes, new: bytes) -> bytes:
        return pack(FILES).replace(old[::-1], new[::-1])

    with pytest.raises(ValueError, match="ends at byte"):
        unpack(altered(b'"size":2304', b'"size":9304'))
    with pytest.raises(ValueError, match="no file's name"):
        unpack(altered(b'"a":', b'"..":'))
    with pytest.raises(ValueError, match="inside an item before it"):
        unpack(altered(b'{"a":3', b'{"a":6'))
