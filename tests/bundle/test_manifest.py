"""A manifest fits its schema and its files, or is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pipeline.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, describe_files, json_schema, read_manifest
from pipeline.support.errors import UserError

HIDDEN = {"name": "hidden", "dtype": "float32", "shape": [1, "length", 64]}


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle folder with a valid manifest; its programs are not real ones."""
    folder = tmp_path / "bundle"
    (folder / "coreml" / "model.mlpackage").mkdir(parents=True)
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.pte").write_bytes(bytes(range(256)))
    (folder / "coreml" / "model.mlpackage" / "Manifest.json").write_text("{}")
    raw = {
        "format_version": 1,
        "name": "test",
        "task": "qa",
        "max_length": 128,
        "model": {
            "layers": 2, "hidden_size": 64, "heads": 4, "intermediate_size": 128, "vocab_size": 1, "parameters": 10,
            "exit_layers": [1, 2], "head": "attention",
        },
        "tokenizer": {"vocab_size": 1, "lowercase": True, "pad_id": 0, "unk_id": 0, "cls_id": 0, "sep_id": 0},
        "qa": {"window": 128, "stride": 32, "max_question": 16, "max_answer": 8, "allow_no_answer": False},
        "scheme": "int8",
        "embeddings_scheme": "int8",
        "programs": [
            {
                "name": "segment_0", "backend": "executorch", "file": "model.pte", "method": "segment_0", "precision": "int8",
                "inputs": [HIDDEN], "outputs": [HIDDEN],
            },
            {
                "name": "segment_0", "backend": "coreml", "file": "coreml/model.mlpackage", "method": "segment_0_32",
                "precision": "fp16", "inputs": [HIDDEN], "outputs": [HIDDEN], "lengths": [32],
            },
        ],
        "speeds": {
            "fast": {
                "thresholds": [0.5, 0.5], "metric": "f1", "value": 0.8, "value_full_depth": 0.81, "mean_depth": 1.5,
                "examples": 100, "max_loss": 0.02, "delta": 0.1,
            }
        },
        "files": [entry.model_dump() for entry in describe_files(folder)],
        "provenance": {"teacher": "random"},
    }  # fmt: skip
    (folder / MANIFEST_FILE).write_text(json.dumps(raw))
    return folder


def raw_of(bundle: Path) -> dict:
    return json.loads((bundle / MANIFEST_FILE).read_text())


def put(bundle: Path, *path, value) -> None:
    """Sets one place of the manifest."""
    raw = raw_of(bundle)
    at = raw
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))


def refused(bundle: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(bundle)
    line = str(caught.value)
    assert "\n" not in line and str(bundle) in line
    return line


def test_a_valid_manifest_is_read_and_written_the_same(bundle):
    manifest = read_manifest(bundle)
    assert manifest.segments == 2 and manifest.tokenizer.kind == "wordpiece"
    assert manifest.program("segment_0").file == "model.pte"
    assert manifest.program("segment_0", "coreml").lengths == [32]
    with pytest.raises(KeyError):
        manifest.program("embed")
    (bundle / MANIFEST_FILE).write_text(manifest.model_dump_json())
    assert read_manifest(bundle) == manifest


def test_a_program_may_be_executorchs_for_core_ml(bundle):
    put(bundle, "programs", 1, "backend", value="executorch-coreml")
    jsonschema.validate(raw_of(bundle), json_schema())
    assert read_manifest(bundle).program("segment_0", "executorch-coreml").lengths == [32]


def test_files_are_described_but_for_the_manifest(bundle):
    assert [entry.path for entry in describe_files(bundle)] == [
        "coreml/model.mlpackage/Manifest.json",
        "model.pte",
        "vocab.txt",
    ]
    entry = describe_files(bundle)[1]
    # printf of the bytes 0 to 255, by sha256sum
    assert entry.sha256 == "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880" and entry.bytes == 256


# What pydantic accepts and refuses, other languages' readers must by the schema.


def test_the_schema_is_one(bundle):
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"].endswith("2020-12/schema")


def test_the_schema_accepts_a_valid_manifest(bundle):
    jsonschema.validate(raw_of(bundle), json_schema())
    jsonschema.validate(json.loads(read_manifest(bundle).model_dump_json()), json_schema())


WRONG = {
    "unknown field": (("colour",), "red"),
    "unknown field below": (("model", "colour"), "red"),
    "unknown field in a list": (("programs", 0, "colour"), "red"),
    "another task": (("task",), "translation"),
    "no number": (("max_length",), "long"),
    "no list": (("programs",), {}),
    "no digest": (("files", 0, "sha256"), "abc"),
    "negative size": (("files", 0, "bytes"), -1),
    "unknown backend": (("programs", 0, "backend"), "onnx"),
    "unknown dimension": (("programs", 0, "inputs", 0, "shape"), [1, "batch", 64]),
    "null": (("name",), None),
    "no end of the range": (("label_range",), {"minimum": 0}),
    "unknown score": (("speeds", "fast", "metric"), "rouge"),
    "unknown measure": (("exits",), {"uncertainty": "surprise"}),
}


@pytest.mark.parametrize("what", WRONG)
def test_schema_and_reader_refuse_the_same(bundle, what):
    path, value = WRONG[what]
    put(bundle, *path, value=value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw_of(bundle), json_schema())
    line = refused(bundle)
    assert f"{MANIFEST_FILE}: {'.'.join(str(part) for part in path)}" in line and "export it again" in line


def test_a_bundle_from_before_measures_could_be_chosen_goes_by_entropy(bundle):
    assert "exits" not in raw_of(bundle) and read_manifest(bundle).uncertainty == "entropy"
    put(bundle, "exits", value={"uncertainty": "patience"})
    jsonschema.validate(raw_of(bundle), json_schema())
    assert read_manifest(bundle).uncertainty == "patience"


def test_a_regressions_manifest_says_its_unit_and_an_older_one_has_none(bundle):
    assert "label_range" not in raw_of(bundle) and read_manifest(bundle).label_range is None
    put(bundle, "task", value="regression")
    put(bundle, "label_range", value={"minimum": -2, "maximum": 5.5})
    put(bundle, "exits", value={"uncertainty": "change"})
    put(bundle, "speeds", "fast", "metric", value="one_minus_nmae")
    jsonschema.validate(raw_of(bundle), json_schema())
    manifest = read_manifest(bundle)
    assert (manifest.label_range.value(0.2), manifest.label_range.share(-0.5)) == (
        pytest.approx(-0.5),
        pytest.approx(0.2),
    )
    (bundle / MANIFEST_FILE).write_text(manifest.model_dump_json())
    jsonschema.validate(raw_of(bundle), json_schema())
    assert read_manifest(bundle) == manifest


@pytest.mark.parametrize("field", ["name", "task", "model", "programs", "files", "provenance"])
def test_schema_and_reader_want_every_field(bundle, field):
    raw = raw_of(bundle)
    del raw[field]
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, json_schema())
    assert f"{MANIFEST_FILE}: {field}: " in refused(bundle)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_is_named_before_all_else(bundle, version):
    put(bundle, "format_version", value=version)
    put(bundle, "colour", value="red")
    assert f"format_version: format {version!r} is not known" in refused(bundle)


def test_a_list_is_no_manifest(bundle):
    (bundle / MANIFEST_FILE).write_text("[1, 2]")
    assert "format_version" in refused(bundle)


def test_what_is_no_bundle(bundle, tmp_path):
    assert "is not a bundle folder" in refused(tmp_path / "nowhere")
    assert "is not a bundle folder" in refused(bundle / "vocab.txt")
    assert "manifest.json: is missing" in refused(bundle / "coreml")
    text = (bundle / MANIFEST_FILE).read_text()
    (bundle / MANIFEST_FILE).write_text(text[: len(text) // 2])
    assert "manifest.json: is not JSON" in refused(bundle)
    (bundle / MANIFEST_FILE).write_bytes(b"\xff\xfe\x00")
    assert "manifest.json: is not JSON" in refused(bundle)


def test_files_must_be_there_whole_and_unaltered(bundle):
    program = bundle / "model.pte"
    whole = program.read_bytes()
    program.write_bytes(whole[:100])
    assert "model.pte: has 100 bytes, the manifest says 256" in refused(bundle)
    program.write_bytes(whole[:-1] + b"\0")
    assert "model.pte: does not have the checksum" in refused(bundle)
    assert isinstance(read_manifest(bundle, check_files=False), Manifest)
    program.unlink()
    assert "model.pte: is missing from the bundle" in refused(bundle)
    program.write_bytes(whole)
    (bundle / "coreml" / "model.mlpackage" / "Manifest.json").write_text("[]")
    assert "Manifest.json: does not have the checksum" in refused(bundle)
