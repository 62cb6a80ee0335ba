"""The stage finetune: trains the teacher on the task."""

from __future__ import annotations

import json

from pipeline.run.digests import teacher_digests
from pipeline.run.examples import training_items
from pipeline.run.preconditions import check_positions
from pipeline.run.results import LOSS_CURVE_FILE, METRICS_FILE, TOKENIZER_FILE, VOCAB_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support import processes
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder, write_text


def finetune(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the teacher, its tokenizer, and its scores on dev."""
    from pipeline.distill.finetune import build_teacher
    from pipeline.distill.finetune import finetune as train_teacher
    from pipeline.exits.predictions import predict, run_model
    from pipeline.model.checkpoint import save_model
    from pipeline.model.pretrained import load_pretrained

    recipe, labels = results.recipe, results.labels()
    pretrained = load_pretrained(recipe.teacher.weights, recipe.task)
    tokenizer = pretrained.tokenizer
    teacher = build_teacher(pretrained, recipe, labels)
    check_positions(recipe, teacher.config.max_positions)
    if recipe.teacher.training.epochs:
        items = training_items(results.examples("train"), tokenizer, labels, recipe)
        curve = place.out / LOSS_CURVE_FILE
        train_teacher(teacher, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=curve)
    if not processes.is_main():
        return
    (place.out / VOCAB_FILE).write_bytes(tokenizer.vocab)
    write_text(place.out / TOKENIZER_FILE, json.dumps(tokenizer.options()))
    save_model(teacher, place.out)
    predictions = predict(run_model, teacher, results.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / METRICS_FILE, json.dumps(predictions.metrics()))


STAGE = Stage(
    "finetune",
    "teacher",
    after=("prepare",),
    sections=("teacher", "precision", "qa"),
    build=finetune,
    trains=True,
    inputs=teacher_digests,
)
