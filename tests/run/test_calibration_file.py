"""A recipe whose `data.calibration` names a file calibrates on exactly these examples and trains on none of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.recipe import Recipe
from pipeline.run.engine import Run
from pipeline.support.errors import UserError

SENTENCES = [f"this is sentence number {index} about the film" for index in range(400)]


def table(path: Path, texts: list[str]) -> Path:
    """Writes sentences; those with an even number are labelled "even"."""
    label = {text: "even" if SENTENCES.index(text) % 2 == 0 else "odd" for text in texts}
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label[text]}\n" for text in texts), encoding="utf-8")
    return path


def recipe(train: Path, dev: Path, calibration: object) -> Recipe:
    data = {"train": str(train), "dev": str(dev), "calibration": calibration}
    losses = {"exact": 0.1, "balanced": 0.1, "fast": 0.1}
    return Recipe.model_validate({"name": "t", "task": "classification", "data": data, "exits": losses})


def texts_of(run: Run, part: str) -> list[str]:
    lines = (run.path("prepare") / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_the_file_calibrates_and_its_texts_leave_train(tmp_path):
    train, dev = table(tmp_path / "train.tsv", SENTENCES[:200]), table(tmp_path / "dev.tsv", SENTENCES[350:])
    calibration = table(tmp_path / "calibration.tsv", SENTENCES[150:350])
    run = Run(recipe(train, dev, str(calibration)), tmp_path / "out")
    run.run_up_to("prepare")
    assert texts_of(run, "calibration") == SENTENCES[150:350]
    assert texts_of(run, "train") == SENTENCES[:150]
    key = run.stage_key("prepare")
    table(calibration, SENTENCES[150:340])
    assert run.stage_key("prepare") != key  # another content of the file is another result


def test_a_number_still_takes_examples_out_of_train(tmp_path):
    train, dev = table(tmp_path / "train.tsv", SENTENCES[:300]), table(tmp_path / "dev.tsv", SENTENCES[350:])
    run = Run(recipe(train, dev, 100), tmp_path / "out")
    run.run_up_to("prepare")
    assert (len(texts_of(run, "calibration")), len(texts_of(run, "train"))) == (100, 200)


def test_a_wrong_calibration_file_is_refused(tmp_path):
    train, dev = table(tmp_path / "train.tsv", SENTENCES[:200]), table(tmp_path / "dev.tsv", SENTENCES[350:])
    with pytest.raises(UserError, match="nowhere.tsv"):
        Run(recipe(train, dev, str(tmp_path / "nowhere.tsv")), tmp_path / "a").run_up_to("prepare")
    with pytest.raises(UserError, match=r"train.tsv: holds every text of the training data; give other examples"):
        Run(recipe(train, dev, str(train)), tmp_path / "b").run_up_to("prepare")
    assert recipe(train, dev, "60").data.calibration == 60
