"""A slice is a bundle of its own for one platform: it opens, answers as the whole one does, and is smaller."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.bundle.manifest import MANIFEST_FILE, Program, describe_files, read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.bundle.slicing import plan_slice, slice_bundle
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.verify.verify import verify


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tiny_classifier, tmp_path_factory) -> Path:
    """`tiny_classifier` with files that stand for Core ML packages and for programs of Core ML's delegate."""
    bundle = tmp_path_factory.mktemp("whole") / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    manifest = read_manifest(bundle)
    programs: list[Program] = list(manifest.programs)
    (bundle / "model-coreml.pte").write_bytes(b"delegate" * 4000)
    for program in manifest.programs:
        package = f"coreml/{program.name}.mlpackage"
        (bundle / package / "Data").mkdir(parents=True)
        (bundle / package / "Data" / "weight.bin").write_bytes(program.name.encode() * 3000)
        fixed = {"lengths": [16], "method": "length_16"}
        programs += [
            program.model_copy(update={"backend": "coreml", "file": package, **fixed}),
            program.model_copy(update={"backend": "executorch-coreml", "file": "model-coreml.pte", **fixed}),
        ]
    needed = manifest.requires["executorch"]
    requires = {
        "executorch": needed,
        "coreml": needed.model_copy(update={"executorch": None, "android_api": None}),
        "executorch-coreml": needed.model_copy(update={"android_api": None}),
    }
    update = {"programs": programs, "requires": requires, "files": describe_files(bundle)}
    (bundle / MANIFEST_FILE).write_text(manifest.model_copy(update=update).model_dump_json(), encoding="utf-8")
    return bundle


@pytest.mark.parametrize(
    ("target", "runtime", "backend"),
    [
        ("android", None, "executorch"),
        ("android", "executorch", "executorch"),
        ("ios", None, "coreml"),
        ("ios", "coreml", "coreml"),
        ("ios", "executorch", "executorch-coreml"),
    ],
)
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
def test_a_slice_holds_one_backend_and_nothing_of_the_others(whole, tmp_path, target, runtime, backend, archive):
    out = slice_bundle(whole, target, runtime, tmp_path / "out" / "part", archive)
    if archive:
        with zipfile.ZipFile(out) as stored:
            assert all(entry.compress_size == entry.file_size for entry in stored.infolist())
            stored.extractall(tmp_path / "unpacked")
        out = tmp_path / "unpacked"
    manifest, all_files = read_manifest(out), contents(whole)  # the first checks every size and checksum
    assert {program.backend for program in manifest.programs} == {backend} == set(manifest.requires)
    assert len(manifest.programs) == 3 and manifest.provenance["slice"].startswith(target)
    written = contents(out)
    assert set(written) == {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    programs = {"executorch": "model.pte", "coreml": "coreml/", "executorch-coreml": "model-coreml.pte"}
    for name, place in programs.items():
        assert any(path.startswith(place) for path in written) == (name == backend)
    assert {"vocab.txt", "conformance.json", "USE.md", "MODEL_CARD.md"} <= set(written)
    assert all(content == all_files[path] for path, content in written.items() if path != MANIFEST_FILE)
    size = sum(map(len, written.values()))
    assert size == plan_slice(whole, target, runtime).bytes < sum(map(len, all_files.values()))


def test_the_slice_for_android_answers_and_verifies_as_the_whole_bundle(whole, tiny_classifier, tmp_path):
    part = slice_bundle(whole, "android", out=tmp_path / "part")
    runners = [Runner(Bundle.open(bundle)) for bundle in (tiny_classifier.path, part)]
    for example in tiny_classifier.examples:
        for speed in ("exact", "fast", "full"):
            first, second = (runner.predict(example, speed) for runner in runners)
            assert (first.label, first.exit, first.logits) == (second.label, second.exit, second.logits)
    verification = verify(part)
    assert verification.passed and {check.backend for check in verification.checks} == {"executorch"}


def test_a_slice_without_executorch_says_what_it_is_for(whole, tmp_path):
    part = slice_bundle(whole, "ios", out=tmp_path / "part")
    with pytest.raises(UserError, match="has programs for coreml only, .*; give the whole bundle"):
        Bundle.open(part)
    assert Bundle.open(part, check_programs=False).tokenizer.vocab_size == read_manifest(whole).model.vocab_size
    with pytest.raises(UserError, match="no programs for android, only for coreml; give the whole bundle"):
        slice_bundle(part, "android", out=tmp_path / "other")


@pytest.mark.parametrize("archive", [False, True])
def test_the_same_bundle_gives_the_same_bytes(whole, tmp_path, archive):
    first, second = (slice_bundle(whole, "ios", None, tmp_path / name, archive) for name in "ab")
    if archive:
        assert first.read_bytes() == second.read_bytes()
    else:
        assert contents(first) == contents(second)


def test_an_archive_is_one_folder_of_plain_files_at_its_root(whole, tmp_path):
    archive = slice_bundle(whole, "ios", None, tmp_path / "part.zip", archive=True)
    with zipfile.ZipFile(archive) as stored:
        names = [entry.filename for entry in stored.infolist()]
        assert names == sorted(names) and MANIFEST_FILE in names
        assert not any(name.startswith("/") or ".." in name.split("/") or name.endswith("/") for name in names)
        assert {entry.external_attr >> 28 for entry in stored.infolist()} == {0o10}  # regular files, no links
        # A reader without a zip library needs the sizes in front of each entry.
        assert {entry.flag_bits & 0b1000 for entry in stored.infolist()} == {0}


def test_fields_of_a_later_version_stay(whole, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(whole, bundle)
    raw = json.loads((bundle / MANIFEST_FILE).read_text())
    raw["later"] = {"kept": True}
    unknown = {**raw["programs"][0], "backend": "later", "file": "later.bin"}
    raw["programs"].append(unknown)
    (bundle / "later.bin").write_bytes(b"x" * 100)
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    manifest = read_manifest(bundle).model_copy(update={"files": describe_files(bundle)})
    raw["files"] = json.loads(manifest.model_dump_json())["files"]
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    part = slice_bundle(bundle, "android", out=tmp_path / "part")
    written = json.loads((part / MANIFEST_FILE).read_text())
    assert written["later"] == {"kept": True} and not (part / "later.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("windows",), "--target: 'windows' is not known; take android or ios"),
        (("ios", "onnx"), "--runtime: 'onnx' is not known; take executorch or coreml"),
        (("android", "coreml"), "Android has no Core ML"),
        (("ios", "coreml"), "only for executorch; export it with --set export.coreml=true"),
    ],
)
def test_a_wrong_platform_is_one_line_with_the_way_out(tiny_classifier, tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        slice_bundle(tiny_classifier.path, *arguments, out=tmp_path / "part")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_ios_gets_executorch_where_there_is_no_core_ml(tiny_classifier, tmp_path):
    part = slice_bundle(tiny_classifier.path, "ios", out=tmp_path / "part")
    assert {program.backend for program in read_manifest(part).programs} == {"executorch"}


def test_nothing_is_written_over_or_into_the_bundle(whole, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="is already there"):
        slice_bundle(whole, "ios", out=tmp_path / "there")
    with pytest.raises(UserError, match="lies in the bundle"):
        slice_bundle(whole, "ios", out=whole / "part")


def test_a_failed_slice_leaves_nothing(whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="the disk is full"):
        slice_bundle(whole, "ios", out=tmp_path / "part")
    assert not list(tmp_path.iterdir())


def damage_a_file(bundle: Path, raw: dict) -> str:
    (bundle / "vocab.txt").write_bytes((bundle / "vocab.txt").read_bytes()[:-1] + b"x")
    return "does not have the checksum"


def leave_the_folder(bundle: Path, raw: dict) -> str:
    raw["files"][0]["path"] = "../secret.txt"
    return "'../secret.txt' is no path in the bundle"


def name_an_absolute_path(bundle: Path, raw: dict) -> str:
    raw["files"][0]["path"] = "/etc/hostname"
    return "'/etc/hostname' is no path in the bundle"


def name_a_file_twice(bundle: Path, raw: dict) -> str:
    raw["files"].append(raw["files"][0])
    return "names a file twice"


def lose_a_program(bundle: Path, raw: dict) -> str:
    raw["programs"] = [program for program in raw["programs"] if program["name"] != "segment_1"]
    return "has no coreml program 'segment_1'"


@pytest.mark.parametrize(
    "tamper", [damage_a_file, leave_the_folder, name_an_absolute_path, name_a_file_twice, lose_a_program]
)
def test_a_tampered_bundle_is_refused(whole, tmp_path, tamper):
    bundle = tmp_path / "bundle"
    shutil.copytree(whole, bundle)
    raw = json.loads((bundle / MANIFEST_FILE).read_text())
    message = tamper(bundle, raw)
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message.replace("..", r"\.\.")):
        slice_bundle(bundle, "ios", out=tmp_path / "part")
    assert not (tmp_path / "part").exists()


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["pocketbert", "slice", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return int(stopped.value.code or 0), printed.out, printed.err


def test_the_command_writes_a_slice_beside_the_bundle(tiny_classifier, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_classifier.path, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, "bundle", "--target", "android")
    assert code == 0 and "pocketbert verify bundle-android" in out and not err
    assert read_manifest("bundle-android").provenance["slice"] == "android, executorch"
    code, out, _ = run(monkeypatch, capsys, "bundle", "--target", "android", "--archive", "--json")
    result = json.loads(out)
    assert code == 0 and result["path"] == "bundle-android.zip" and result["backend"] == "executorch"
    assert result["bytes"] == Path("bundle-android.zip").stat().st_size
    assert result["whole_bytes"] == sum(map(len, contents(tmp_path / "bundle").values()))
    code, out, err = run(monkeypatch, capsys, "bundle", "--target", "ios", "--runtime", "coreml")
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
