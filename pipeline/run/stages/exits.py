"""The stage exits: trains the exit heads on the frozen student."""

from __future__ import annotations

import json

from pipeline.run.examples import sample_examples, training_items
from pipeline.run.results import LOSS_CURVE_FILE, METRICS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support import processes
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder, write_text

TEMPERATURES_FILE = "temperatures.json"


def exits(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the student with its trained exit heads, and the scores of every exit on dev."""
    from pipeline.exits.predictions import predict, run_model
    from pipeline.exits.self_distill import self_distill
    from pipeline.exits.temperature import calibrate_heads
    from pipeline.model.checkpoint import save_model

    recipe = results.recipe
    student, tokenizer, labels = results.model("distill"), results.tokenizer(), results.labels()
    if recipe.exits.training.epochs:
        lessons = sample_examples(results.lessons(), recipe.exits.train_limit, recipe.seed)
        items = training_items(lessons, tokenizer, labels, recipe)
        curve = place.out / LOSS_CURVE_FILE
        student = self_distill(student, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=curve)
    if not processes.is_main():
        return
    student.uncertainty = recipe.exits.uncertainty
    if recipe.exits.temperature_scaling:
        report = calibrate_heads(student, training_items(results.draft_examples(), tokenizer, labels, recipe), on_step)
        write_text(place.out / TEMPERATURES_FILE, json.dumps(report, indent=2))
    save_model(student, place.out)
    predictions = predict(run_model, student, results.examples("dev"), tokenizer, labels, recipe, on_step)
    metrics = predictions.metrics() | {"exits": [predictions.metrics(exit) for exit in range(predictions.exits)]}
    write_text(place.out / METRICS_FILE, json.dumps(metrics))


STAGE = Stage("exits", "exits", after=("distill",), sections=("exits",), build=exits, trains=True)
