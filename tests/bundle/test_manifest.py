"""The reader accepts a manifest that fits its schema and its files, and refuses any other in one line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from pipeline.bundle.fields import FORMAT_VERSION
from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, describe_files, json_schema, read_manifest
from pipeline.support.errors import UserError

HIDDEN = {"name": "hidden", "dtype": "float32", "shape": [1, "length", 64]}


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle folder with a valid manifest of minor version 0. Its programs are not real."""
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
                "name": "segment_0", "backend": "executorch", "file": "model.pte", "method": "segment_0",
                "precision": "int8", "inputs": [HIDDEN], "outputs": [HIDDEN],
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
    """Sets one field of the manifest."""
    raw = raw_of(bundle)
    parent = raw
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))


def refusal(bundle: Path) -> str:
    """Returns the line with which the reader refuses the bundle."""
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


def test_a_program_may_run_in_executorchs_core_ml_delegate(bundle):
    put(bundle, "programs", 1, "backend", value="executorch-coreml")
    jsonschema.validate(raw_of(bundle), json_schema())
    assert read_manifest(bundle).program("segment_0", "executorch-coreml").lengths == [32]


def test_every_file_except_the_manifest_is_described(bundle):
    assert [entry.path for entry in describe_files(bundle)] == [
        "coreml/model.mlpackage/Manifest.json",
        "model.pte",
        "vocab.txt",
    ]
    entry = describe_files(bundle)[1]
    # The checksum that sha256sum prints for the bytes 0 to 255.
    assert entry.sha256 == "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880" and entry.bytes == 256


# Readers in other languages go by the schema, so it must accept and refuse what this reader does.


def test_the_schema_is_a_json_schema(bundle):
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"].endswith("2020-12/schema")


def test_the_schema_accepts_a_valid_manifest(bundle):
    jsonschema.validate(raw_of(bundle), json_schema())
    jsonschema.validate(json.loads(read_manifest(bundle).model_dump_json()), json_schema())


WRONG = {
    "another task": (("task",), "translation"),
    "not a number": (("max_length",), "long"),
    "not a list": (("programs",), {}),
    "not a checksum": (("files", 0, "sha256"), "abc"),
    "negative size": (("files", 0, "bytes"), -1),
    "no backend": (("programs", 0, "backend"), None),
    "unknown dimension": (("programs", 0, "inputs", 0, "shape"), [1, "batch", 64]),
    "null": (("name",), None),
    "no end of the range": (("label_range",), {"minimum": 0}),
    "unknown score": (("speeds", "fast", "metric"), "rouge"),
    "unknown measure": (("exits",), {"uncertainty": "surprise"}),
    "unknown kind of tokenizer": (("tokenizer", "kind"), "sentencepiece"),
    "no positions": (("model", "max_positions"), 0),
    "not a version": (("requires",), {"executorch": {"executorch": "newest"}}),
    "a name instead of names": (("must_understand",), "colour"),
}


@pytest.mark.parametrize("case", WRONG)
def test_schema_and_reader_refuse_the_same(bundle, case):
    path, value = WRONG[case]
    put(bundle, *path, value=value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw_of(bundle), json_schema())
    line = refusal(bundle)
    assert f"{MANIFEST_FILE}: {'.'.join(str(part) for part in path)}" in line and "export it again" in line


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("task",), "translation"),
        (("exits",), {"uncertainty": "surprise"}),
        (("tokenizer", "kind"), "sentencepiece"),
        (("speeds", "fast", "metric"), "rouge"),
    ],
)
def test_an_unknown_name_is_refused_by_name_and_the_known_ones_are_listed(bundle, path, value):
    put(bundle, *path, value=value)
    name = value["uncertainty"] if isinstance(value, dict) else value
    assert f"{name!r} is not known to this version, which knows '" in refusal(bundle)
    assert "update pocketbert" in refusal(bundle)


def test_a_typo_is_not_written(bundle):
    """The reader skips unknown fields; code that writes a manifest does not get away with one."""
    raw = raw_of(bundle)
    with pytest.raises(ValidationError, match="lables"):
        Manifest(**raw, lables=["yes", "no"])


def test_a_bundle_from_before_measures_could_be_chosen_goes_by_entropy(bundle):
    assert "exits" not in raw_of(bundle) and read_manifest(bundle).uncertainty == "entropy"
    put(bundle, "exits", value={"uncertainty": "patience"})
    jsonschema.validate(raw_of(bundle), json_schema())
    assert read_manifest(bundle).uncertainty == "patience"


def test_a_regressions_manifest_holds_its_range_and_an_older_one_has_none(bundle):
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
def test_schema_and_reader_require_the_same_fields(bundle, field):
    raw = raw_of(bundle)
    del raw[field]
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, json_schema())
    assert f"{MANIFEST_FILE}: {field}: " in refusal(bundle)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_an_unknown_format_is_refused_before_all_else(bundle, version):
    put(bundle, "format_version", value=version)
    put(bundle, "colour", value="red")
    assert f"format_version: format {version!r} is not known" in refusal(bundle)


def test_a_list_is_not_a_manifest(bundle):
    (bundle / MANIFEST_FILE).write_text("[1, 2]")
    assert "format_version" in refusal(bundle)


def test_a_folder_that_is_not_a_bundle_is_refused(bundle, tmp_path):
    assert "is not a bundle folder" in refusal(tmp_path / "nowhere")
    assert "is not a bundle folder" in refusal(bundle / "vocab.txt")
    assert "manifest.json: is missing" in refusal(bundle / "coreml")
    text = (bundle / MANIFEST_FILE).read_text()
    (bundle / MANIFEST_FILE).write_text(text[: len(text) // 2])
    assert "manifest.json: is not JSON" in refusal(bundle)
    (bundle / MANIFEST_FILE).write_bytes(b"\xff\xfe\x00")
    assert "manifest.json: is not JSON" in refusal(bundle)


def test_files_must_be_present_whole_and_unaltered(bundle):
    program = bundle / "model.pte"
    whole = program.read_bytes()
    program.write_bytes(whole[:100])
    assert "model.pte: has 100 bytes, the manifest says 256" in refusal(bundle)
    program.write_bytes(whole[:-1] + b"\0")
    assert "model.pte: does not have the checksum" in refusal(bundle)
    assert isinstance(read_manifest(bundle, check_files=False), Manifest)
    program.unlink()
    assert "model.pte: is missing from the bundle" in refusal(bundle)
    program.write_bytes(whole)
    (bundle / "coreml" / "model.mlpackage" / "Manifest.json").write_text("[]")
    assert "Manifest.json: does not have the checksum" in refusal(bundle)
