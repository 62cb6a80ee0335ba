"""Core ML packages match the manifest, store weights once, and have the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.export.coreml import export_coreml
from pipeline.export.program_modules import matrix_of, program_modules
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.verify.evaluator.evaluator import evaluate
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.evaluator.mil import dtype_of, is_constant
from quantize.int8_inputs import STEP, layer_linears
from quantize.schemes import named_linears

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64)


def recipe_of(task: str, **export) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 32},
            "qa": {"window": 64, "stride": 8, "max_question": 16},
            "export": {"max_length": 64, "coreml_buckets": [16, 8], **export},
        }
    )


def tiny_model(task: str) -> ExitModel:
    torch.manual_seed(1)
    return ExitModel(task, CONFIG, 3, {"classification": "pooled", "qa": "attention"}[task], [1]).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def weights_size(package: Path) -> int:
    return (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


@pytest.fixture(scope="module")
def qa_fp16(tmp_path_factory):
    """A folder with the fp16 programs of a span model for iOS 18, their manifest entries, and the reported steps."""
    folder, steps = tmp_path_factory.mktemp("qa"), []
    (folder / "coreml.partial" / "junk").mkdir(parents=True)  # left by a killed run
    (folder / "coreml").mkdir()
    (folder / "coreml" / "stale").write_text("of an earlier export")
    entries = export_coreml(
        tiny_model("qa"), folder, recipe_of("qa", coreml_precision="fp16"), lambda *step: steps.append(step)
    )
    return folder, entries, steps


def test_every_program_and_bucket_has_an_entry_that_matches_the_package(qa_fp16):
    folder, entries, steps = qa_fp16
    assert [(entry.name, entry.lengths) for entry in entries] == [
        ("embed", [8]),
        ("embed", [16]),
        ("segment_0", [8]),
        ("segment_0", [16]),
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["coreml"]
    assert sorted(path.name for path in (folder / "coreml").iterdir()) == ["embed.mlpackage", "segment_0.mlpackage"]
    assert [(done, total) for _, done, total in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for entry in entries:
        function = load_package(folder / entry.file).functions[entry.method]
        for described, saved in ((entry.inputs, function.inputs), (entry.outputs, function.outputs)):
            assert [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in described] == [
                (tensor.name, tensor.dtype, tensor.shape) for tensor in saved
            ]
    segment = entries[-1]
    assert [tensor.name for tensor in segment.inputs] == ["hidden", "attention_bias", "answer_bias"]
    assert [tensor.name for tensor in segment.outputs] == ["hidden_out", "start_logits", "end_logits", "uncertainty"]


def test_buckets_share_weights(qa_fp16):
    folder = qa_fp16[0]
    model = tiny_model("qa")
    parameters = sum(parameter.numel() for parameter in (*model.encoder.layers.parameters(), *model.heads.parameters()))
    # 2 bytes per parameter, and 64 bytes for the description of each of some 20 tensors
    assert 2 * parameters < weights_size(folder / "coreml/segment_0.mlpackage") < 2.2 * parameters


def test_packages_contain_neither_dates_nor_paths(qa_fp16):
    folder = qa_fp16[0]
    for name, data in contents(folder / "coreml").items():
        assert b"conversion_date" not in data and str(Path.cwd()).encode() not in data, name
    for package in (folder / "coreml").iterdir():
        listing = json.loads((package / "Manifest.json").read_bytes())
        root = listing["itemInfoEntries"][listing["rootModelIdentifier"]]
        assert (package / "Data" / root["path"]).is_file()
        assert all((package / "Data" / item["path"]).exists() for item in listing["itemInfoEntries"].values())


def test_int8_export_is_reproducible_and_half_as_large(tmp_path):
    model, recipe = tiny_model("classification"), recipe_of("classification", coreml_precision="int8")
    entries = export_coreml(model, tmp_path / "one", recipe)
    assert {entry.precision for entry in entries} == {"int8"}
    export_coreml(model, tmp_path / "two", recipe)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) == 6
    assert [name for name in one if one[name] != two[name]] == []
    # One byte per number of the word table; the positions of a bucket are too few here to be compressed.
    embeddings = model.encoder.embeddings.word.weight.numel() + 2 * (8 + 16) * CONFIG.hidden_size
    assert weights_size(tmp_path / "one/coreml/embed.mlpackage") < 1.1 * embeddings
    parameters = sum(parameter.numel() for parameter in (*model.encoder.layers.parameters(), *model.heads.parameters()))
    assert weights_size(tmp_path / "one/coreml/segment_0.mlpackage") < 1.4 * parameters


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_before_ios_18_every_bucket_is_a_package(tmp_path, target):
    recipe = recipe_of("classification", coreml_target=target, coreml_precision="int8", coreml_buckets=[8, 128])
    entries = export_coreml(tiny_model("classification"), tmp_path, recipe)
    assert [(entry.file, entry.method, entry.lengths) for entry in entries] == [
        ("coreml/embed_8.mlpackage", "main", [8]),
        ("coreml/segment_0_8.mlpackage", "main", [8]),
    ]
    package = load_package(tmp_path / entries[0].file)
    assert package.specification_version == {"iOS16": 7, "iOS17": 8}[target]
    ids = np.arange(8, dtype=np.int32)[None]
    hidden = evaluate(package, "main", {"input_ids": ids}).outputs["hidden"]
    expected = tiny_model("classification").encoder.embeddings(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(hidden, expected, atol=0.05)


def test_a_recipe_without_a_fitting_bucket_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"export\.coreml_buckets.*export\.max_length"):
        export_coreml(tiny_model("qa"), tmp_path, recipe_of("qa", coreml_buckets=[65, 128]))
    assert list(tmp_path.iterdir()) == []


def gains_for(model: ExitModel) -> dict[str, torch.Tensor]:
    return {name: torch.rand(linear.in_features) + 3 for name, linear in layer_linears(Programs.of(model)).items()}


@pytest.mark.parametrize(("target", "layout"), [("iOS18", "standard"), ("iOS17", "ane")])
def test_int8_inputs_are_rounded_before_every_matrix_of_a_layer(tmp_path, target, layout):
    model = tiny_model("qa")
    recipe = recipe_of("qa", coreml_precision="int8-a8", coreml_target=target, coreml_layout=layout)
    entries = export_coreml(model, tmp_path, recipe, input_gains=gains_for(model))
    assert {entry.precision for entry in entries} == {"int8-a8"} and len(entries) == 4
    for entry in entries:
        operations = load_package(tmp_path / entry.file).functions[entry.method].operations
        read_by = {}
        for operation in operations:
            if operation.op_type == "dequantize":
                assert operation.input.op.op_type == "quantize" and operation.input.op.input.op.op_type == "mul"
                assert operation.scale.val == operation.input.op.scale.val == STEP and operation.zero_point is None
                assert {reader.op_type for reader in operation.input.op.input.child_ops} == {"quantize"}
                read_by[operation.name] = [reader.op_type for reader in operation.outputs[0].child_ops]
        expected = {"standard": [["linear"]] * 4, "ane": [["conv"] * 3] + [["conv"]] * 3}[layout]
        assert list(read_by.values()) == ([] if entry.name == "embed" else expected)
    if target == "iOS18":  # both buckets share the weights
        parameters = sum(
            parameter.numel() for parameter in (*model.encoder.layers.parameters(), *model.heads.parameters())
        )
        assert weights_size(tmp_path / "coreml/segment_0.mlpackage") < 1.4 * parameters


MIX = {
    "layers.0.qkv": "int4",
    "layers.0.attention_out": "int8",
    "layers.0.ffn_in": "fp32",
    "layers.0.ffn_out": "int4",
    "embeddings.word": "int4",
}


@pytest.mark.parametrize("layout", ["standard", "ane"])
def test_a_mix_stores_each_matrix_in_its_scheme(tmp_path, layout):
    model = tiny_model("classification")
    recipe = recipe_of("classification", coreml_layout=layout)
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"coreml_precision": "mixed"})})
    entries = export_coreml(model, tmp_path, recipe, matrix_schemes=MIX)
    assert {entry.precision for entry in entries} == {"mixed"}
    found = {}
    for entry in entries:
        for operation in load_package(tmp_path / entry.file).functions[entry.method].operations:
            value = operation.outputs[0].val if operation.op_type == "const" else None
            # Other constants are parts of a compressed weight.
            if isinstance(value, np.ndarray) and value.size > 2048 and value.dtype.kind == "f":
                found.setdefault((entry.name, value.squeeze().shape), set()).add(str(value.dtype))
            elif is_constant(operation) and operation.op_type != "const":
                found.setdefault((entry.name, operation.outputs[0].shape[:2]), set()).add(dtype_of(operation.data))
    qkv = (192, 64) if layout == "standard" else (64, 64)
    assert found[("embed", (200, 64))] == {"int4"} and found[("segment_0", (64, 128))] == {"int4"}
    assert found[("segment_0", (128, 64))] == {"float16"}  # ffn_in, and the head, which the mix does not name
    assert found[("segment_0", qkv)] == ({"int4"} if layout == "standard" else {"int4", "int8"})
    assert "int8" in found[("segment_0", (64, 64))]


@pytest.mark.parametrize(
    ("weight", "segment", "matrix"),
    [
        ("embeddings.word.weight", -1, "embeddings.word"),
        ("embeddings.position.weight", -1, None),
        ("layers.1.ffn_in.weight", 1, "layers.4.ffn_in"),
        ("layers.1.ffn_in.bias", 1, None),
        ("layers.0.key.weight", 2, "layers.3.qkv"),
        ("head.value.weight", 1, "exits.1.value"),
        ("head.head.value.weight", 0, "exits.0.value"),
        ("inverse_temperature", 1, None),
    ],
)
def test_the_matrix_that_a_weight_belongs_to(weight, segment, matrix):
    assert matrix_of(weight, segment, 3) == matrix


@pytest.mark.parametrize("layout", ["standard", "ane"])
@pytest.mark.parametrize("head", ["pooled", "fastbert"])
def test_every_matrix_of_a_mix_is_found_in_a_program(layout, head):
    config = EncoderConfig(vocab_size=50, hidden_size=400, layers=3, heads=4, intermediate_size=64, max_positions=16)
    model = ExitModel("classification", config, 3, head, [1, 3]).eval()
    matrices = [*named_linears(Programs.of(model)), "embeddings.word"]
    assert any(matrix.startswith("exits.1.") for matrix in matrices) or head == "fastbert"
    mix = dict(zip(matrices, ["int4", "int8", "fp32"] * len(matrices)))
    programs = program_modules(model, layout, mix)
    assert sum(len(source.schemes) for source in programs) == len(matrices) + (2 * 3 if layout == "ane" else 0)
    with pytest.raises(ValueError, match=r"no program has layers\.3\.qkv"):
        program_modules(model, layout, {**mix, "layers.3.qkv": "int4"})


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        ("int8-a8", "export.coreml_calibration: int8-a8 needs texts"),
        ("mixed", "export.coreml_precision: is mixed, and no scheme"),
    ],
)
def test_a_precision_whose_arguments_are_missing_is_refused(tmp_path, precision, line):
    recipe = recipe_of("qa")
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"coreml_precision": precision})})
    with pytest.raises(UserError, match=line):
        export_coreml(tiny_model("qa"), tmp_path, recipe)
    assert list(tmp_path.iterdir()) == []
