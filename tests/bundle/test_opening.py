"""A bundle that is incomplete, altered or unknown is refused in one line that names the place."""

import json
import shutil

import pytest

from pipeline.bundle.manifest import describe_files
from pipeline.bundle.opening import Bundle, default_speed, find_bundle, speed_thresholds
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError


@pytest.fixture
def copy(tiny_classifier, tmp_path):
    shutil.copytree(tiny_classifier.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(bundle, change, new_checksums=True):
    """Changes the manifest, and updates its list of files."""
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    if new_checksums:
        raw["files"] = [file.model_dump() for file in describe_files(bundle)]
    path.write_text(json.dumps(raw))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten_vocabulary(bundle):
    lines = (bundle / "vocab.txt").read_text().splitlines()
    (bundle / "vocab.txt").write_text("\n".join(lines[:-1]) + "\n")
    edit(bundle, lambda raw: None)


def reorder_vocabulary(bundle):
    lines = (bundle / "vocab.txt").read_text().splitlines()
    lines[2], lines[3] = lines[3], lines[2]
    (bundle / "vocab.txt").write_text("\n".join(lines) + "\n")
    edit(bundle, lambda raw: None)


def program(raw, name):
    return next(program for program in raw["programs"] if program["name"] == name)


def set_in(raw, **values):
    raw.update(values)


BROKEN = {
    "no folder": (shutil.rmtree, "is not a bundle folder"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json: is missing"),
    "cut manifest": (lambda b: cut(b / "manifest.json"), "manifest.json: is not JSON"),
    "unknown format": (
        lambda b: edit(b, lambda raw: set_in(raw, format_version=2)),
        "manifest.json: format_version: format 2 is not known",
    ),
    "missing program file": (lambda b: (b / "model.pte").unlink(), "model.pte: is missing"),
    "cut program file": (lambda b: cut(b / "model.pte"), "model.pte: has "),
    "altered program file": (lambda b: flip_a_bit(b / "model.pte"), "model.pte: does not have the checksum"),
    "missing vocabulary": (lambda b: (b / "vocab.txt").unlink(), "vocab.txt: is missing"),
    "vocabulary of another size": (shorten_vocabulary, "vocab.txt: holds"),
    "vocabulary of another order": (reorder_vocabulary, "vocab.txt: tokenizer.cls_id"),
    "no embed": (
        lambda b: edit(b, lambda raw: raw["programs"].remove(program(raw, "embed"))),
        "has no executorch program 'embed'",
    ),
    "no segment": (
        lambda b: edit(b, lambda raw: raw["programs"].remove(program(raw, "segment_1"))),
        "has no executorch program 'segment_1'",
    ),
    "file outside of the list": (
        lambda b: edit(b, lambda raw: set_in(program(raw, "embed"), file="../model.pte")),
        "programs.embed.file: '../model.pte'",
    ),
    "unknown input": (
        lambda b: edit(b, lambda raw: set_in(program(raw, "segment_0")["inputs"][1], name="mood")),
        "programs.segment_0.inputs.mood: this runner knows only",
    ),
    "unknown shape": (
        lambda b: edit(b, lambda raw: set_in(program(raw, "segment_0")["inputs"][0], shape=[1, "length", 65])),
        "programs.segment_0.inputs.hidden: shape",
    ),
    "unknown type": (
        lambda b: edit(b, lambda raw: set_in(program(raw, "segment_1")["outputs"][1], dtype="float16")),
        "programs.segment_1.outputs.logits: type float16",
    ),
    "output of an unknown name where a known one is needed": (
        lambda b: edit(b, lambda raw: set_in(program(raw, "segment_0")["outputs"][0], name="state")),
        "segment_0.outputs: has no hidden",
    ),
    "no uncertainty": (
        lambda b: edit(b, lambda raw: program(raw, "segment_0")["outputs"].pop()),
        "segment_0.outputs: has no uncertainty",
    ),
    "too few thresholds": (
        lambda b: edit(b, lambda raw: set_in(raw["speeds"]["exact"], thresholds=[0.5])),
        "speeds.exact.thresholds: 1 thresholds",
    ),
    "a label without a value": (
        lambda b: edit(b, lambda raw: raw["label_values"].pop()), "label_values: 2 values for 3 labels"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_is_refused_in_one_line(copy, case):
    Bundle.open(copy)  # whole before
    damage, message = BROKEN[case]
    damage(copy)
    with pytest.raises(UserError) as caught:
        Bundle.open(copy)
    assert message in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checksums_are_not_compared_where_the_caller_does_not_want_it(copy):
    flip_a_bit(copy / "model.pte")
    Bundle.open(copy, check_files=False)


@pytest.mark.parametrize(
    "damage", [lambda pte: pte.unlink(), lambda pte: pte.write_bytes(b"no program"), lambda pte: pte.write_bytes(b"")]
)
def test_a_file_that_is_not_a_program_is_refused_in_one_line(copy, damage):
    damage(copy / "model.pte")
    with pytest.raises(UserError, match="model.pte: ExecuTorch cannot load it"):
        Runner(Bundle.open(copy, check_files=False))


def test_programs_of_another_bundle_are_refused(copy, tiny_qa):
    shutil.copyfile(tiny_qa.path / "model.pte", copy / "model.pte")
    runner = Runner(Bundle.open(copy, check_files=False))
    with pytest.raises(UserError, match="model.pte: segment_0: has 3 inputs, the manifest says 2"):
        runner.classify("bala")


def test_a_method_that_the_file_lacks_is_named(copy):
    edit(copy, lambda raw: set_in(program(raw, "segment_1"), method="segment_7"))
    with pytest.raises(UserError, match="model.pte: has no method 'segment_7'"):
        Runner(Bundle.open(copy)).prewarm()


def test_programs_for_core_ml_are_skipped(tiny_classifier, copy):
    """The reference runner has no Core ML. It does not load such programs, and they do not change its answers."""
    (copy / "model-coreml.pte").write_bytes(b"for ExecuTorch on a phone")

    def add(raw):
        others = [
            {**program, "backend": "executorch-coreml", "file": "model-coreml.pte", "lengths": [8]}
            for program in raw["programs"]
        ]
        raw["programs"] = [*others, *raw["programs"]]

    edit(copy, add)
    text = "ba be bi."
    answers = [Runner(Bundle.open(path)).classify(text) for path in (tiny_classifier.path, copy)]
    assert answers[0].uncertainty == answers[1].uncertainty and answers[0].label == answers[1].label


def test_a_speed_is_a_name_or_a_number(tiny_classifier):
    manifest = tiny_classifier.manifest
    assert speed_thresholds(manifest, "exact") == manifest.speeds["exact"].thresholds
    assert speed_thresholds(manifest, "0.25") == speed_thresholds(manifest, 0.25) == [0.25, 0.25]
    assert default_speed(manifest) == "exact"
    assert speed_thresholds(manifest, default_speed(manifest.model_copy(update={"speeds": {}}))) == [0.0, 0.0]


@pytest.mark.parametrize("speed", ["quick", "", "nan", "-0.1", "inf"])
def test_an_unknown_speed_is_refused_and_the_known_ones_are_listed(tiny_classifier, speed):
    with pytest.raises(UserError, match="exact, fast"):
        speed_thresholds(tiny_classifier.manifest, speed)


def test_a_bundle_is_found_by_its_folder_its_run_and_the_name_of_its_run(tiny_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_classifier.path, tmp_path / "runs" / "mine" / "bundle")
    found = tmp_path / "runs" / "mine" / "bundle"
    for name in ("runs/mine/bundle", "runs/mine", "mine", "~/runs/mine", found, found.parent):
        assert find_bundle(name).resolve() == found
    shutil.copytree(found, tmp_path / "mine")  # a folder of that name comes first
    assert find_bundle("mine").resolve() == tmp_path / "mine"


def test_a_wrong_bundle_is_refused_with_a_list_of_those_that_there_are(tiny_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_classifier.path, tmp_path / "runs" / "mine" / "bundle")
    (tmp_path / "runs" / "unfinished" / "bundle").mkdir(parents=True)
    for name in ("yours", "runs", "unfinished", "runs/unfinished", "x" * 5000):
        with pytest.raises(UserError, match="is not a bundle folder.*runs/ has bundles of: runs/mine$"):
            find_bundle(name)
    shutil.rmtree(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"nowhere: is not a bundle folder; give .*\(OUT/bundle\)$"):
        find_bundle("nowhere")
