"""A bundle with only Core ML programs, which the tests of their evaluator damage and verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import cli
from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program, describe_files, read_manifest
from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import BundleSource, Labels, describe
from pipeline.export.fingerprints import make_fingerprints
from pipeline.export.vectors import make_vectors
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe


def write_coreml_bundle(
    folder: Path,
    vocab: Path,
    task: str,
    export: dict[str, Any],
    export_programs: Callable[[ExitModel, Recipe], tuple[list[Program], dict[str, Any]]],
) -> ExitModel:
    """Writes a bundle of a model with two layers in two segments and random weights, and returns the model.

    Args:
        export: keys of the recipe's export section.
        export_programs: exports the programs to `folder`. Returns them, and the options of `make_fingerprints`.
    """
    torch.manual_seed(5)
    vocabulary = vocab.read_text(encoding="utf-8").split()
    config = EncoderConfig(
        vocab_size=len(vocabulary), hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=48
    )
    model = ExitModel(task, config, 2, "attention" if task == "qa" else "pooled", [1, 2]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 48},
            "qa": {"window": 48, "stride": 8, "max_question": 12, "max_answer": 8},
            "export": {"max_length": 48, **export},
        }
    )
    folder.mkdir()
    shutil.copyfile(vocab, folder / "vocab.txt")
    tokenizer = WordPieceTokenizer.from_vocab(folder / "vocab.txt", True)
    texts = [" ".join(vocabulary[9 + 5 * index : 12 + 8 * index]) for index in range(6)]
    examples: list[Example]
    if task == "qa":
        examples = [QAExample(str(index), "ba be?", text, ()) for index, text in enumerate(texts)]
    else:
        examples = [ClassificationExample(text, None, "0") for text in texts]
    labels = Labels(("0", "1") if task == "classification" else ())
    manifest = describe(recipe, BundleSource(model, Programs.of(model)), tokenizer, labels, {}, {})
    programs, options = export_programs(model, recipe)
    vectors = make_vectors(
        Programs.of(model), Programs.of(model), examples, tokenizer,
        context=manifest.answer_context, thresholds={},
    )  # fmt: skip
    vectors = vectors.model_copy(update={"programs": make_fingerprints(model, programs, **options)})
    (folder / "conformance.json").write_text(vectors.model_dump_json(exclude_none=True), encoding="utf-8")
    save(folder, manifest.model_copy(update={"programs": programs}))
    return model


def save(bundle: Path, manifest: Manifest) -> None:
    """Writes the manifest with checksums that fit the files."""
    (bundle / MANIFEST_FILE).write_text(
        manifest.model_copy(update={"files": describe_files(bundle)}).model_dump_json(), encoding="utf-8"
    )


def verify(bundle: Path, monkeypatch, capsys) -> tuple[int, dict[str, Any], str]:
    """Fits the manifest's checksums to the files, and runs `pocketbert verify BUNDLE --json`.

    Returns the exit code, the JSON, and the last line on stderr.
    """
    save(bundle, read_manifest(bundle, check_files=False))
    monkeypatch.setattr("sys.argv", ["pocketbert", "verify", str(bundle), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    code = stopped.value.code or 0
    assert isinstance(code, int)
    return code, json.loads(printed.out or "{}"), (printed.err.splitlines() or [""])[-1]


def failed_checks(result: dict[str, Any], metric: str) -> set[tuple[str, str]]:
    """Returns (program, metric) of the failed checks whose metric begins with `metric`."""
    return {
        (check["program"], check["metric"])
        for check in result["checks"]
        if not check["passed"] and check["metric"].startswith(metric)
    }


def assert_fingerprints_fail(
    verified: tuple[int, dict[str, Any], str], backend: str, program: str, buckets: tuple[int, ...]
) -> None:
    """Asserts that only this program's fingerprints fail, in these buckets, and that stderr names the program."""
    code, result, line = verified
    assert code == 1 and not result["passed"]
    assert failed_checks(result, "fingerprint_snr_db") == {
        (program, f"fingerprint_snr_db_{length}") for length in buckets
    }
    assert f"{backend} {program}: fingerprint" in line
