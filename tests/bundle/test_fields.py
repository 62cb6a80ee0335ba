"""This reader reads the bundles of earlier versions, and those of later ones unless they say that it must not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from pipeline.bundle.conformance import Conformance, read_conformance
from pipeline.bundle.fields import COMMON_MINOR, FORMAT_MINOR, field_paths
from pipeline.bundle.manifest import Manifest, describe_files, json_schema, read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError

SHARED_BUNDLES = (
    Path(__file__).resolve().parents[2].parent / "shared" / "bundles"
)  # written by earlier versions of the project
FILES = ("manifest.json", "conformance.json")
MAPS = ("speeds", "requires", "provenance", "outcomes", "outputs")


@pytest.fixture
def copy(tiny_classifier, tmp_path) -> Path:
    shutil.copytree(tiny_classifier.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(bundle: Path, change, file: str = "manifest.json") -> None:
    """Changes a JSON file of the bundle, and updates the manifest's list of files."""
    raw = json.loads((bundle / file).read_bytes())
    change(raw)
    (bundle / file).write_text(json.dumps(raw))
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    entries = {entry["path"]: entry for entry in manifest["files"]}
    manifest["files"] = [{**entries[entry.path], **entry.model_dump()} for entry in describe_files(bundle)]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def as_minor_version_0(bundle: Path) -> None:
    """Removes every field that came after minor version 0."""

    def change(raw: dict) -> None:
        for name in ("format_minor", "must_understand", "requires"):
            raw.pop(name, None)
        if "model" in raw:
            del raw["model"]["max_positions"]

    for file in FILES:
        edit(bundle, change, file)


def with_unknown_fields(value, name: str = ""):
    """Adds unknown fields to every object at every level, except the maps, whose keys are free."""
    if isinstance(value, list):
        return [with_unknown_fields(element) for element in value]
    if not isinstance(value, dict):
        return value
    changed = {key: with_unknown_fields(element, key) for key, element in value.items()}
    return changed if name in MAPS else {**changed, "colour": {"hue": [0.5, None]}, "next_version": 2}


def as_next_version(bundle: Path) -> None:
    """Makes the bundle one that a later version might write: more fields, more backends, more outputs."""

    def change(raw: dict) -> None:
        changed = with_unknown_fields(raw)
        if "model" in raw:
            changed["format_minor"] = FORMAT_MINOR + 1
            unknown = {"name": "embed", "backend": "qnn", "blob": "embed.bin", "shapes": {"rows": "any"}}
            changed["programs"] = [unknown, *changed["programs"]]
            changed["requires"]["qnn"] = {"hexagon": "v75"}
            # The last segment's hidden states are output, but no program takes them.
            output = changed["programs"][-1]["outputs"][0]
            assert output["name"] == "hidden"
            output.update(name="attention_map", dtype="bool", shape=[1, 4, "length", "length"])
        raw.clear()
        raw.update(changed)

    for file in FILES:
        edit(bundle, change, file)


def answers(bundle: Path) -> list[tuple]:
    runner = Runner(Bundle.open(bundle))
    results = [runner.classify(text, speed=speed) for text in ("ba be bi.", "dume nofi") for speed in ("0", "exact")]
    return [(result.label, result.exit, result.uncertainty, result.logits) for result in results]


def test_a_bundle_of_minor_version_0_answers_the_same(tiny_classifier, copy):
    as_minor_version_0(copy)
    manifest = read_manifest(copy)
    assert (manifest.format_minor, manifest.must_understand, manifest.requires) == (0, [], {})
    assert manifest.model.max_positions is None
    assert answers(copy) == answers(tiny_classifier.path)
    assert read_conformance(copy).cases == read_conformance(tiny_classifier.path).cases
    assert "max_positions" not in (copy / "manifest.json").read_text()


def test_a_new_bundle_has_every_new_field(tiny_classifier):
    manifest, conformance = (json.loads((tiny_classifier.path / file).read_bytes()) for file in FILES)
    assert (manifest["format_version"], manifest["format_minor"], manifest["must_understand"]) == (1, COMMON_MINOR, [])
    assert manifest["model"]["max_positions"] == 64 and set(manifest["requires"]) == {"executorch"}
    assert conformance["must_understand"] == []


def test_a_bundle_of_the_next_version_opens_and_answers_the_same(tiny_classifier, copy):
    as_next_version(copy)
    raw = json.loads((copy / "manifest.json").read_bytes())
    assert all("colour" in part for part in (raw, raw["model"], raw["tokenizer"], raw["files"][0]))
    assert all("colour" in part for part in (raw["programs"][1]["inputs"][0], raw["speeds"]["fast"], raw["exits"]))
    jsonschema.validate(raw, json_schema())
    assert answers(copy) == answers(tiny_classifier.path)
    conformance = json.loads((copy / "conformance.json").read_bytes())
    assert "colour" in conformance["cases"][0]["windows"][0]["exits"][0]
    assert read_conformance(copy) == read_conformance(tiny_classifier.path)


@pytest.mark.parametrize("name", ["colour", "exits.colour", "programs.inputs.colour", "speeds.colour", "model"])
def test_a_field_that_a_reader_must_understand_is_refused_unless_it_is_known(copy, name):
    as_next_version(copy)
    edit(copy, lambda raw: raw.update(must_understand=["programs.file", name]))
    if name == "model":
        assert Bundle.open(copy).manifest.must_understand == ["programs.file", "model"]
        return
    with pytest.raises(UserError, match=f"manifest.json: must_understand: .*'{name}'.*update pocketbert") as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


def test_the_conformance_vectors_have_such_a_list_of_their_own(copy):
    edit(copy, lambda raw: raw.update(must_understand=["cases.images"]), "conformance.json")
    assert Bundle.open(copy).manifest.task == "classification"
    with pytest.raises(UserError, match="conformance.json: must_understand: .*'cases.images'"):
        read_conformance(copy)


def test_the_backend_of_conformance_vectors_may_be_unknown(copy):
    vectors = [{"program": "embed", "backend": "qnn"}, {"program": "embed", "length": 8, "outputs": {"hidden": [0.5]}}]
    edit(copy, lambda raw: raw.update(programs=vectors), "conformance.json")
    (vector,) = read_conformance(copy).programs
    assert (vector.program, vector.backend, vector.length) == ("embed", "coreml", 8)


def test_an_unknown_input_is_refused_even_in_the_next_version(copy):
    as_next_version(copy)
    edit(copy, lambda raw: raw["programs"][2]["inputs"].append({"name": "mood", "dtype": "float32", "shape": [1]}))
    with pytest.raises(UserError, match="programs.segment_0.inputs.mood: this runner knows only"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(cases=3), "conformance.json: cases: "),
        (lambda raw: raw.update(task="translation"), "conformance.json: task: 'translation' is not known"),
        (lambda raw: raw.update(format_version=2), "conformance.json: format_version: format 2 is not known"),
        (lambda raw: raw.pop("tolerance"), "conformance.json: tolerance: "),
    ],
)
def test_conformance_vectors_that_do_not_fit_the_format_are_refused(copy, change, message):
    edit(copy, change, "conformance.json")
    with pytest.raises(UserError) as caught:
        read_conformance(copy)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_conformance_vectors_are_named(copy):
    (copy / "conformance.json").unlink()
    with pytest.raises(UserError, match="conformance.json: is missing"):
        read_conformance(copy)


def test_paths_name_fields_without_list_indices_and_map_keys():
    paths = set(field_paths(Manifest))
    assert {"task", "model.layers", "programs.inputs.shape", "speeds.thresholds", "requires.ios", "qa.window"} <= paths
    assert "cases.outcomes.exit" in set(field_paths(Conformance))
    assert not any("exact" in path or path.endswith(".") for path in paths)


@pytest.mark.parametrize("name", ["sst2", "squad"])
def test_trained_bundles_of_earlier_versions_open_and_answer(name):
    path = SHARED_BUNDLES / name
    if not path.is_dir():
        pytest.skip(f"{path} is not on this machine")
    bundle = Bundle.open(path)
    assert bundle.manifest.format_minor == 0 and bundle.manifest.required_executorch("executorch") == "1.4"
    runner, case = Runner(bundle), read_conformance(path).cases[0]
    if name == "sst2":
        assert runner.classify(case.text, speed="full").label == case.outcomes["full"].label
    else:
        assert runner.answer(case.question, case.passage, "full").answer == case.outcomes["full"].answer
