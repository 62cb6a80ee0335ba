"""Core ML packages hold what the manifest says, weights once, and come out the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.export.coreml import export_coreml
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.verify.mil_evaluator import evaluate, load_package

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
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights_size(package: Path) -> int:
    return (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


@pytest.fixture(scope="module")
def qa_fp16(tmp_path_factory):
    """A folder with the fp16 programs of a span model for iOS 18, their manifest entries, and the steps that were told."""
    folder, steps = tmp_path_factory.mktemp("qa"), []
    (folder / "coreml.partial" / "junk").mkdir(parents=True)  # a killed run's
    (folder / "coreml").mkdir()
    (folder / "coreml" / "stale").write_text("an earlier export's")
    entries = export_coreml(tiny_model("qa"), folder, recipe_of("qa", coreml_precision="fp16"), lambda *step: steps.append(step))
    return folder, entries, steps


def test_an_entry_for_each_program_and_bucket_that_the_package_bears_out(qa_fp16):
    folder, entries, steps = qa_fp16
    assert [(entry.name, entry.lengths) for entry in entries] == [
        ("embed", [8]), ("embed", [16]), ("segment_0", [8]), ("segment_0", [16]),
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["coreml"]
    assert sorted(path.name for path in (folder / "coreml").iterdir()) == ["embed.mlpackage", "segment_0.mlpackage"]
    assert [(done, total) for _, done, total in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for entry in entries:
        function = load_package(folder / entry.file).functions[entry.method]
        for described, saved in ((entry.inputs, function.inputs), (entry.outputs, function.outputs)):
            assert [(each.name, each.dtype, tuple(each.shape)) for each in described] == [
                (each.name, each.dtype, each.shape) for each in saved
            ]
    segment = entries[-1]
    assert [each.name for each in segment.inputs] == ["hidden", "attention_bias", "answer_bias"]
    assert [each.name for each in segment.outputs] == ["hidden_out", "start_logits", "end_logits", "uncertainty"]


def test_buckets_share_the_weights(qa_fp16):
    folder = qa_fp16[0]
    model = tiny_model("qa")
    parameters = sum(each.numel() for each in (*model.encoder.layers.parameters(), *model.heads.parameters()))
    # 2 bytes a parameter, and 64 bytes for the description of each of some 20 tensors
    assert 2 * parameters < weights_size(folder / "coreml/segment_0.mlpackage") < 2.2 * parameters


def test_packages_say_nothing_of_when_and_where(qa_fp16):
    folder = qa_fp16[0]
    for name, data in contents(folder / "coreml").items():
        assert b"conversion_date" not in data and str(Path.cwd()).encode() not in data, name
    for package in (folder / "coreml").iterdir():
        listing = json.loads((package / "Manifest.json").read_bytes())
        root = listing["itemInfoEntries"][listing["rootModelIdentifier"]]
        assert (package / "Data" / root["path"]).is_file()
        assert all((package / "Data" / item["path"]).exists() for item in listing["itemInfoEntries"].values())


def test_int8_twice_gives_the_same_bytes_and_half_the_weights(tmp_path):
    model, recipe = tiny_model("classification"), recipe_of("classification", coreml_precision="int8")
    entries = export_coreml(model, tmp_path / "one", recipe)
    assert {entry.precision for entry in entries} == {"int8"}
    export_coreml(model, tmp_path / "two", recipe)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) == 6
    assert [name for name in one if one[name] != two[name]] == []
    # One byte a number of the word table; each bucket's positions are too few here to be compressed.
    embeddings = model.encoder.embeddings.word.weight.numel() + 2 * (8 + 16) * CONFIG.hidden_size
    assert weights_size(tmp_path / "one/coreml/embed.mlpackage") < 1.1 * embeddings
    parameters = sum(each.numel() for each in (*model.encoder.layers.parameters(), *model.heads.parameters()))
    assert weights_size(tmp_path / "one/coreml/segment_0.mlpackage") < 1.4 * parameters


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_before_ios_18_a_bucket_is_a_package(tmp_path, target):
    recipe = recipe_of("classification", coreml_target=target, coreml_precision="int8", coreml_buckets=[8, 128])
    entries = export_coreml(tiny_model("classification"), tmp_path, recipe)
    assert [(entry.file, entry.method, entry.lengths) for entry in entries] == [
        ("coreml/embed_8.mlpackage", "main", [8]), ("coreml/segment_0_8.mlpackage", "main", [8]),
    ]
    package = load_package(tmp_path / entries[0].file)
    assert package.specification_version == {"iOS16": 7, "iOS17": 8}[target]
    ids = np.arange(8, dtype=np.int32)[None]
    hidden = evaluate(package, "main", {"input_ids": ids})["hidden"]
    expected = tiny_model("classification").encoder.embeddings(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(hidden, expected, atol=0.05)


def test_no_bucket_left_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"export\.coreml_buckets.*export\.max_length"):
        export_coreml(tiny_model("qa"), tmp_path, recipe_of("qa", coreml_buckets=[65, 128]))
    assert list(tmp_path.iterdir()) == []
