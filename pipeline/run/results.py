"""What the finished stages of a run left, read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.examples import Example
from pipeline.data.jsonl import load_examples
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.recipe import Recipe
from pipeline.run.examples import read_unlabelled
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.model.exit_model import ExitModel

LABELS_FILE = "labels.json"  # of the stage prepare
VOCAB_FILE = "vocab.txt"  # of the stages finetune and pretrain
TOKENIZER_FILE = "tokenizer.json"  # of the stage finetune: the tokenizer's options
METRICS_FILE = "metrics.json"  # of every stage that measures a model on the dev examples
LOSS_CURVE_FILE = "losses.json"  # of every stage that trains: the mean loss of every optimizer step
SPEEDS_FILE = "speeds.json"  # of the stage quantize: the thresholds of the named speeds
LEFT_OUT_FILE = "left_out.json"  # of the stage quantize, if it left speeds out: the reason for each
ANSWERS_FILE = "answers.json"  # of the stage quantize: the quantized model's answers to the dev examples


@dataclass(frozen=True)
class Results:
    """The results of a run, for reading only. Stages get these and not the run, so that none can start another.

    Attributes:
        recipe: the recipe of the run.
        stages: the names of the stages that the recipe has, in order.
        locate: returns the folder that a stage left. It may belong to another run that shares its result.
        seconds_of: returns how long a stage took in this run, None if it has not finished here.
    """

    recipe: Recipe
    stages: tuple[str, ...]
    locate: Callable[[str], Path]
    seconds_of: Callable[[str], float | None]

    def has(self, stage: str) -> bool:
        """Returns whether the recipe has this stage."""
        return stage in self.stages

    def path(self, stage: str) -> Path:
        """Returns the folder that a finished stage left."""
        return self.locate(stage)

    def with_folder(self, stage: str, folder: Path) -> Results:
        """Returns these results with the stage's folder replaced, for a stage that reads what it has just written."""
        return replace(self, locate=lambda name: folder if name == stage else self.locate(name))

    def stage_seconds(self) -> dict[str, float]:
        """Returns the seconds of every finished stage, in order."""
        seconds = {name: self.seconds_of(name) for name in self.stages}
        return {name: value for name, value in seconds.items() if value is not None}

    def examples(self, part: str) -> list[Example]:
        """Returns the examples of "train", "calibration" or "dev"."""
        return load_examples(self.path("prepare") / f"{part}.jsonl", get_task(self.recipe.task).example_from_json)

    def calibration_count(self) -> int:
        """Returns how many calibration examples there are."""
        return len(self.examples("calibration"))

    def lessons(self) -> list[Example]:
        """Returns what student and exits learn from: the training examples, then the recipe's texts without labels."""
        return self.examples("train") + read_unlabelled(self.recipe)

    def draft_examples(self, limit: int | None = None) -> list[Example]:
        """Returns the part of the calibration split that proposes thresholds, at most `limit` examples of it.

        Everything else that is fitted to calibration examples uses this part as well. The other part tests the
        thresholds, and its bound would not hold for a model that was fitted to the same examples.
        """
        from pipeline.exits.calibrate import split_rows  # imports torch

        calibration = self.examples("calibration")
        return [calibration[row] for row in split_rows(len(calibration), self.recipe.seed)[0][:limit]]

    def labels(self) -> tuple[str, ...] | LabelRange:
        """Returns the values of the labels in the order of the logits.

        That is ("start", "end") for question answering and the labels' range for a regression.
        """
        raw = json.loads((self.path("prepare") / LABELS_FILE).read_text())
        return LabelRange(**raw) if isinstance(raw, dict) else tuple(raw)

    def vocab_file(self) -> Path:
        """Returns the file of the teacher's vocabulary, which the student shares."""
        return self.path("finetune") / VOCAB_FILE

    def tokenizer(self) -> WordPieceTokenizer:
        """Returns the tokenizer of teacher and student."""
        options = json.loads((self.path("finetune") / TOKENIZER_FILE).read_text())
        return WordPieceTokenizer.from_vocab(self.vocab_file(), **options)

    def model(self, stage: str) -> ExitModel:
        """Returns the model that "finetune", "distill" or "exits" saved."""
        from pipeline.model.checkpoint import load_model  # imports torch

        return load_model(self.path(stage))

    def left_out_speeds(self) -> dict[str, str]:
        """Returns the named speeds that calibration could not show, each with the reason."""
        file = self.path("quantize") / LEFT_OUT_FILE
        return dict(json.loads(file.read_text())) if file.is_file() else {}

    def metrics(self, stage: str) -> dict[str, Any]:
        """Returns the scores on the dev examples that a stage measured."""
        return dict(json.loads((self.path(stage) / METRICS_FILE).read_text()))
