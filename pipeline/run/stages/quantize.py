"""The stage quantize: quantizes the student and calibrates the thresholds of the named speeds."""

from __future__ import annotations

import json

from pipeline.recipe import Recipe
from pipeline.run.named_speeds import left_out_speeds, left_out_warnings, named_speeds
from pipeline.run.precision import is_mixed, rounds_by_texts
from pipeline.run.preconditions import check_calibration_size
from pipeline.run.results import ANSWERS_FILE, LEFT_OUT_FILE, METRICS_FILE, SPEEDS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.progress import OnStep, console
from pipeline.support.workspace import StageFolder, write_text


def quantize(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the named speeds, the scores of the quantized model on dev, and its answers there.

    The quantized model itself is not saved: `quantized_student` makes it from the student, the mix and the rounded
        weights.
    """
    from pipeline.exits.predictions import predict, run_programs
    from pipeline.model.checkpoint import save_model
    from pipeline.run.quantizing import (
        MIX_FILE,
        ROUNDED_FOLDER,
        choose_student_mix,
        quantized_student,
        round_student,
    )

    recipe = results.recipe
    # Again: where only the speeds have changed, the stage prepare does not run.
    check_calibration_size(recipe, results.calibration_count())
    left_out = left_out_speeds(recipe, results.calibration_count())
    for line in left_out_warnings(left_out):
        console.print(line)
    so_far = results.with_folder("quantize", place.out)
    if rounds_by_texts(recipe):
        (place.out / ROUNDED_FOLDER).mkdir()
        save_model(round_student(results, on_step), place.out / ROUNDED_FOLDER)
    if is_mixed(recipe):
        write_text(place.out / MIX_FILE, choose_student_mix(so_far, on_step).model_dump_json(indent=2))
    programs = quantized_student(so_far)
    tokenizer, labels = results.tokenizer(), results.labels()
    calibration = predict(run_programs, programs, results.examples("calibration"), tokenizer, labels, recipe, on_step)
    speeds = named_speeds(recipe, calibration)
    write_text(
        place.out / SPEEDS_FILE, json.dumps({name: speed.model_dump() for name, speed in speeds.items()}, indent=2)
    )
    if left_out:
        write_text(place.out / LEFT_OUT_FILE, json.dumps(left_out, indent=2))
    dev = predict(run_programs, programs, results.examples("dev"), tokenizer, labels, recipe, on_step)
    write_text(place.out / METRICS_FILE, json.dumps(dev.metrics()))
    write_text(place.out / ANSWERS_FILE, json.dumps([answers[-1] for answers in dev.answers]))


def rounding(recipe: Recipe) -> object:
    """Returns what another section of the recipe asks of the stage: to round weights for int4 programs of Core ML."""
    return rounds_by_texts(recipe) or None


STAGE = Stage(
    "quantize", "quantized", after=("exits",), sections=("quantize",), build=quantize, version=4, inputs=rounding
)
