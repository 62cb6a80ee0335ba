"""The bytes of a bundle are counted by what they hold, and add up to its files."""

import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertModel

from pipeline.bundle.manifest import MANIFEST_FILE, Program, describe_files, read_manifest
from pipeline.support.errors import UserError
from quantize.size import PARTS, bert_base_parts, size_of


def rewrite(bundle, **changes):
    """The bundle's manifest with other fields, and its files as they lie there now."""
    manifest = read_manifest(bundle, check_files=False).model_copy(update={"files": describe_files(bundle), **changes})
    (bundle / MANIFEST_FILE).write_text(manifest.model_dump_json())


@pytest.mark.parametrize("fixture", ["tiny_classifier", "tiny_regressor", "tiny_qa"])
def test_parts_add_up_to_the_files(fixture, request):
    bundle = request.getfixturevalue(fixture).path
    report = size_of(bundle)
    on_disk = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    assert {file.path: file.bytes for file in report.files} == on_disk
    assert report.total_bytes == sum(on_disk.values()) == report.parts.total == report.targets[0].bytes
    assert report.targets[0].program_bytes == on_disk["model.pte"]
    parts = report.parts
    assert parts.vocabulary == on_disk["vocab.txt"]
    assert parts.embeddings + parts.layers + parts.heads + parts.overhead == on_disk["model.pte"]
    # A graph's size does not depend on its weights. A part left out or counted twice would not fit into these
    # kilobytes.
    assert 0 < parts.overhead < 80_000


def test_weights_are_counted_as_they_are_stored(tiny_classifier):
    """Computed by hand for 2 layers with hidden 64 and intermediate 128.

    int8 has a float32 scale per row, positions are float16, biases and norms float32.
    """
    report = size_of(tiny_classifier.path)
    rows, weights = 3 * 64 + 64 + 128 + 64, 64 * (3 * 64 + 64 + 128 + 128)
    assert report.parts.layers == 2 * (weights + 4 * rows + 4 * (rows + 4 * 64))
    assert report.fp32_parts.layers == 4 * 2 * (weights + rows + 4 * 64)
    vocabulary = tiny_classifier.manifest.model.vocab_size
    assert report.parts.embeddings == vocabulary * (64 + 4) + 2 * 64 * 64 + 4 * 2 * 64
    assert report.fp32_bytes == 4 * tiny_classifier.manifest.model.parameters


def test_inputs_in_two_terms_cost_two_bytes_per_row(tiny_classifier, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    int8 = size_of(bundle)
    rewrite(bundle, scheme="int8-a16")
    assert size_of(bundle).parts.layers - int8.parts.layers == 2 * 2 * (3 * 64 + 64 + 128 + 64)


def test_bert_base_has_the_parameters_of_hugging_faces():
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in BertModel(BertConfig()).parameters())
    assert parameters == 109_482_240
    assert bert_base_parts().total == 4 * parameters


def test_targets_are_told_apart(tiny_classifier, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    alone = size_of(bundle)
    programs = list(read_manifest(bundle).programs)
    for name, size in (("embed", 100_000), ("segment_0", 90_000), ("segment_1", 90_000)):
        package = bundle / "coreml" / f"{name}.mlpackage"
        (package / "Data").mkdir(parents=True)
        (package / "Data" / "weight.bin").write_bytes(b"0" * size)
        programs += [
            Program(
                name=name,
                backend="coreml",
                file=f"coreml/{name}.mlpackage",
                method=f"length_{length}",
                precision="fp16",
                inputs=[],
                outputs=[],
                lengths=[length],
            )
            for length in (8, 16)
        ]
    rewrite(bundle, programs=programs)
    both = size_of(bundle)
    executorch, coreml = both.targets
    assert coreml.program_bytes == 280_000 and executorch.program_bytes == alone.targets[0].program_bytes
    assert both.total_bytes == both.parts.total == coreml.program_bytes + executorch.bytes
    assert coreml.parts.layers == both.fp32_parts.layers / 2  # float16
    assert coreml.parts.embeddings == 2 * 64 * (read_manifest(bundle).model.vocab_size + 8 + 16 + 2)
    assert coreml.parts.total == coreml.bytes
    programs = [
        program.model_copy(update={"precision": "int4"}) if program.backend == "coreml" else program
        for program in programs
    ]
    rewrite(bundle, programs=programs)
    coreml = size_of(bundle).targets[1]
    # By hand, for both layers: half a byte per weight, a float16 scale per 32 inputs, biases and norms in float16.
    weights, scales = 64 * (3 * 64 + 64 + 128 + 128), (3 * 64 + 64 + 128) * 2 + 64 * 4
    assert coreml.scheme == "int4" and coreml.parts.layers == 2 * (
        weights // 2 + 2 * scales + 2 * (3 * 64 + 64 + 128 + 64 + 4 * 64)
    )


def test_a_mix_in_core_ml_is_accounted_matrix_by_matrix(tiny_classifier, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    programs = list(read_manifest(bundle).programs)
    for name in ("embed", "segment_0", "segment_1"):
        (bundle / "coreml" / f"{name}.mlpackage").mkdir(parents=True)
        (bundle / "coreml" / f"{name}.mlpackage" / "weight.bin").write_bytes(b"0" * 90_000)
        file = f"coreml/{name}.mlpackage"
        programs.append(
            Program(
                name=name,
                backend="coreml",
                file=file,
                method="length_8",
                precision="mixed",
                inputs=[],
                outputs=[],
                lengths=[8],
            )
        )
    mix = {"layers.0.ffn_in": "int8", "layers.1.ffn_out": "int4", "layers.1.qkv": "fp32", "embeddings.word": "int8"}
    rewrite(bundle, programs=programs, matrix_schemes=mix)
    parts, fp32 = size_of(bundle).targets[1].parts, size_of(bundle).fp32_parts
    matrix, scales = 64 * 128, 2 * 128  # int8 has a float16 per output, int4 one per 32 inputs
    assert parts.layers == fp32.layers / 2 - (matrix - scales) - (matrix * 3 // 2 - 2 * 64 * 4)
    rows = read_manifest(bundle).model.vocab_size
    assert parts.embeddings == rows * (64 + 2) + 2 * 64 * (8 + 2)


@pytest.mark.parametrize("files", [1, 2])
def test_programs_that_executorch_hands_to_core_ml_are_a_target_of_their_own(tiny_classifier, tmp_path, files):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    programs = list(read_manifest(bundle).programs)
    for length in (8, 16):
        file = f"model-coreml-{length}.pte" if files == 2 else "model-coreml.pte"
        (bundle / file).write_bytes(b"0" * 300_000)
        programs += [
            Program(
                name=name, backend="executorch-coreml", file=file, method=f"{name}_{length}", precision="fp16",
                inputs=[], outputs=[], lengths=[length],
            )
            for name in ("embed", "segment_0", "segment_1")
        ]  # fmt: skip
    rewrite(bundle, programs=programs)
    report = size_of(bundle)
    executorch, delegate = report.targets
    assert (delegate.backend, delegate.scheme, delegate.program_bytes) == ("executorch-coreml", "fp16", files * 300_000)
    assert executorch.program_bytes == size_of(tiny_classifier.path).targets[0].program_bytes
    assert (
        delegate.parts.layers == files * report.fp32_parts.layers / 2
    )  # a file has all weights once, for all its lengths
    assert report.total_bytes == report.parts.total


def test_the_json_has_the_fields_of_the_design(tiny_classifier):
    raw = json.loads(size_of(tiny_classifier.path).model_dump_json())
    assert raw["target_bytes"] == 207_000_000
    assert set(raw["parts"]) == set(PARTS) and sum(raw["parts"].values()) == raw["total_bytes"]
    assert set(raw["files"][0]) == {"path", "bytes"}
    assert raw["ratio"] == pytest.approx(raw["bert_base_bytes"] / raw["total_bytes"])


def test_rows_of_a_target_add_up_to_its_total(tiny_qa):
    report = size_of(tiny_qa.path)
    ours = [row for row in report.rows() if row.target == "executorch"]
    assert sum(row.bytes for row in ours if row.part != "total") == ours[-1].bytes == report.total_bytes
    assert {row.target for row in report.rows()} >= {"BERT-base", "same model", "the paper's app"}


def test_a_shape_that_no_model_has_is_refused(tiny_classifier, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    shape = read_manifest(bundle).model
    rewrite(bundle, model=shape.model_copy(update={"parameters": shape.parameters + 1}))
    with pytest.raises(UserError, match=r"manifest.json: model.parameters: .*export the bundle again"):
        size_of(bundle)
    rewrite(bundle, model=shape.model_copy(update={"head": "unheard-of"}))
    with pytest.raises(UserError, match="manifest.json: model: "):
        size_of(bundle)


@pytest.mark.parametrize("field", ["scheme", "embeddings_scheme"])
def test_a_scheme_that_this_version_does_not_know_is_refused(tiny_classifier, tmp_path, field):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    rewrite(bundle, **{field: "int3"})
    with pytest.raises(
        UserError, match=r"manifest.json: executorch programs: 'int3' is no scheme.* take one of fp32, "
    ):
        size_of(bundle)


def test_positions_are_read_from_the_manifest_and_computed_for_older_bundles(tiny_classifier, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_classifier.path, bundle)
    shape = read_manifest(bundle).model
    assert shape.max_positions == 64
    rewrite(bundle, model=shape.model_copy(update={"max_positions": None}))
    assert size_of(bundle).fp32_parts == size_of(tiny_classifier.path).fp32_parts
    rewrite(bundle, model=shape.model_copy(update={"max_positions": 63}))
    with pytest.raises(UserError, match=r"manifest.json: model.parameters: "):
        size_of(bundle)
