"""A written bundle is complete, its manifest describes it, and its vectors are what the quantized model computes."""

from __future__ import annotations

import errno
import json

import jsonschema
import numpy as np
import pytest
import torch

from pipeline.bundle.conformance import Conformance
from pipeline.bundle.manifest import ExitOptions, Program, read_manifest
from pipeline.data.features import encode_text
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export import bundle as bundle_module
from pipeline.export.bundle import BundleSource, Labels, describe, write_bundle
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError

BOTH = pytest.mark.parametrize("name", ["tiny_classifier", "tiny_qa"])


@BOTH
def test_the_manifest_fits_the_files_and_the_schema(name, request):
    tiny = request.getfixturevalue(name)
    assert read_manifest(tiny.path) == tiny.manifest  # checks sizes and checksums
    document = json.loads((tiny.path / "manifest.json").read_text())
    schema = json.loads((tiny.path / "manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(document)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**document, "format_version": 2})
    listed = {entry.path for entry in tiny.manifest.files} | {"manifest.json"}
    assert listed == {path.relative_to(tiny.path).as_posix() for path in tiny.path.rglob("*") if path.is_file()}
    assert {"torch", "executorch", "torchao", "transformers", "pocketbert", "weights"} <= set(tiny.manifest.provenance)


@BOTH
def test_the_vectors_are_what_the_quantized_model_computes(name, request):
    tiny = request.getfixturevalue(name)
    conformance = Conformance.model_validate_json((tiny.path / "conformance.json").read_text())
    assert conformance.task == tiny.manifest.task and len(conformance.cases) == 8
    for window in (window for case in conformance.cases for window in case.windows):
        ids = torch.tensor([window.input_ids])
        bias = (
            None
            if window.answer_mask is None
            else (1.0 - torch.tensor([window.answer_mask], dtype=torch.float32)) * -1e4
        )
        expected = tiny.programs(ids, torch.zeros(1, 1, ids.shape[1]), bias)
        for vector, outputs in zip(window.exits, expected, strict=True):
            actual = [*vector.outputs.values(), [vector.uncertainty]]
            for values, output in zip(actual, outputs[1:], strict=True):
                np.testing.assert_allclose(values, output.flatten().numpy(), rtol=1e-5, atol=1e-6)
                assert all(value == float(f"{value:.6g}") for value in values)


def test_a_label_is_that_of_the_first_exit_below_the_threshold(tiny_classifier):
    conformance = Conformance.model_validate_json((tiny_classifier.path / "conformance.json").read_text())
    tokenizer = WordPieceTokenizer.from_vocab(tiny_classifier.path / "vocab.txt")
    threshold = tiny_classifier.manifest.speeds["exact"].thresholds[0]
    exits = []
    for case in conformance.cases:
        (window,) = case.windows
        assert window.input_ids == encode_text(tokenizer, case.text, case.text_pair, 64).ids.tolist()
        assert set(case.outcomes) == {"exact", "fast", "full"}
        for speed, exit in (("fast", 0), ("full", 1), ("exact", 0 if window.exits[0].uncertainty < threshold else 1)):
            outcome = case.outcomes[speed]
            logits = window.exits[exit].outputs["logits"]
            assert (outcome.exit, outcome.label) == (exit, ["low", "middle", "high"][logits.index(max(logits))])
        exits.append(case.outcomes["exact"].exit)
    assert set(exits) == {0, 1}  # so the middle speed above takes either exit


def test_all_windows_of_a_passage_stop_at_one_exit_and_the_best_window_answers(tiny_qa):
    conformance = Conformance.model_validate_json((tiny_qa.path / "conformance.json").read_text())
    threshold = tiny_qa.manifest.speeds["exact"].thresholds[0]
    assert {len(case.windows) > 1 for case in conformance.cases} == {True, False}
    exits = []
    for case in conformance.cases:
        _, uncertainty = max((best_score(window, 0), window.exits[0].uncertainty) for window in case.windows)
        assert case.outcomes["exact"].exit == (0 if uncertainty < threshold else 1)
        assert (case.outcomes["fast"].exit, case.outcomes["full"].exit) == (0, 1)
        exits.append(case.outcomes["exact"].exit)
        for outcome in case.outcomes.values():
            if outcome.start == -1:
                assert (outcome.answer, outcome.end) == ("", -1)
            else:
                assert outcome.answer == case.passage[outcome.start : outcome.end] != ""
    assert set(exits) == {0, 1}


def best_score(window, exit: int, longest: int = 8) -> float:
    """Returns the score of the best span, found by trying every pair of tokens."""
    start, end = (window.exits[exit].outputs[name] for name in ("start_logits", "end_logits"))
    allowed = [index for index, mask in enumerate(window.answer_mask) if mask and index > 0]
    return max(start[i] + end[j] for i in allowed for j in allowed if i <= j < i + longest)


RECIPE = {
    "name": "small",
    "task": "classification",
    "data": {"max_length": 16},
    "export": {"max_length": 16, "coreml": True, "coreml_buckets": [8]},
}


def write_small(folder, vocab, recipe=RECIPE, labels=("no", "yes"), words=None):
    config = EncoderConfig(
        vocab_size=words or len(vocab.read_text().split()),
        hidden_size=16,
        layers=1,
        heads=2,
        intermediate_size=16,
        max_positions=16,
    )
    model = ExitModel("classification", config, 2, "linear", (1,)).eval()
    return write_bundle(
        folder,
        Recipe.model_validate(recipe),
        BundleSource(model, Programs.of(model)),
        WordPieceTokenizer.from_vocab(vocab),
        Labels(labels),
        speeds={},
        conformance_examples=[],
        provenance={},
    )


@pytest.fixture
def exporters(monkeypatch):
    """Replaces the exporters by stand-ins that each write one small file at once."""

    def exporter(backend: str, file: str):
        def export(*arguments):
            folder = next(argument for argument in arguments if hasattr(argument, "exists"))
            target = folder if folder.suffix == ".pte" else folder / file
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(b"program")
            return [
                Program(
                    name="embed", backend=backend, file=file, method="embed", precision="fp32", inputs=[], outputs=[]
                )
            ]

        return export

    monkeypatch.setattr(bundle_module, "export_executorch", exporter("executorch", "model.pte"))
    monkeypatch.setattr("pipeline.export.coreml.export_coreml", exporter("coreml", "coreml/embed.bin"))
    delegated = exporter("executorch-coreml", "model-coreml.bin")
    monkeypatch.setattr("pipeline.export.executorch_coreml.export_executorch_coreml", delegated)
    monkeypatch.setattr(bundle_module, "make_fingerprints", lambda *arguments: [])


def test_the_manifest_names_the_uncertainty_and_its_temperatures(tiny_vocab):
    config = EncoderConfig(
        vocab_size=len(tiny_vocab.read_text().split()),
        hidden_size=16,
        layers=2,
        heads=2,
        intermediate_size=16,
        max_positions=16,
    )
    model, tokenizer = (
        ExitModel("classification", config, 2, "linear", (1, 2)),
        WordPieceTokenizer.from_vocab(tiny_vocab, True),
    )

    def described():
        source = BundleSource(model, Programs.of(model))
        return describe(Recipe.model_validate(RECIPE), source, tokenizer, Labels(("no", "yes")), {}, {}).exits

    assert described() == ExitOptions(uncertainty="entropy", temperatures=[])
    model.uncertainty, model.temperatures = "patience", [1.0, 1.5]
    assert described() == ExitOptions(uncertainty="patience", temperatures=[1.0, 1.5])


@pytest.mark.parametrize("coreml", [True, False])
@pytest.mark.parametrize("delegate", [True, False, None])
def test_the_recipe_decides_which_core_ml_programs_are_written(tmp_path, tiny_vocab, exporters, coreml, delegate):
    options = {} if delegate is None else {"executorch_coreml": delegate}
    manifest = write_small(
        tmp_path / "bundle", tiny_vocab, {**RECIPE, "export": {**RECIPE["export"], "coreml": coreml, **options}}
    )
    expected = ["executorch", *(["coreml"] if coreml else []), *(["executorch-coreml"] if delegate else [])]
    assert [program.backend for program in manifest.programs] == expected
    files = {entry.path for entry in manifest.files}
    assert ("model.pte" in files, "coreml/embed.bin" in files, "model-coreml.bin" in files) == (
        True,
        coreml,
        bool(delegate),
    )


def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path, tiny_vocab, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "export_executorch", full)
    with pytest.raises(UserError, match="the disk is full") as raised:
        write_small(tmp_path / "bundle", tiny_vocab)
    assert str(raised.value).startswith(str(tmp_path / "bundle"))
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_any_other_error_is_passed_on(tmp_path, tiny_vocab, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(bundle_module, "export_executorch", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_small(tmp_path / "bundle", tiny_vocab)


def test_labels_and_vocabularies_that_do_not_fit_the_model_are_refused(tmp_path, tiny_vocab, exporters):
    named = {**RECIPE, "data": {"max_length": 16, "label_names": ["a", "b", "c"]}}
    with pytest.raises(UserError, match="data.label_names: 3 labels for a model with 2 classes"):
        write_small(tmp_path / "a", tiny_vocab, named)
    with pytest.raises(UserError, match="data.label: 3 labels"):
        write_small(
            tmp_path / "b",
            tiny_vocab,
            {**RECIPE, "data": {"max_length": 16, "label_names": ["a", "b"]}},
            ("0", "1", "2"),
        )
    with pytest.raises(UserError, match="the vocabulary has .* tokens, the model 50"):
        write_small(tmp_path / "c", tiny_vocab, words=50)
