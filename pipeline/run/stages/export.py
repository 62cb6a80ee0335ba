"""The stage export: writes the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bundle.manifest import Speed
from pipeline.data.examples import Example
from pipeline.data.labels import LabelRange
from pipeline.run.examples import SPLIT
from pipeline.run.named_speeds import left_out_provenance
from pipeline.run.results import SPEEDS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.export.bundle import Labels
    from pipeline.export.documents import TrainingFacts

CONFORMANCE_EXAMPLES = 16


def export(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the bundle."""
    from pipeline.export.bundle import BundleSource, write_bundle
    from pipeline.export.documents import shown_source
    from pipeline.run.quantizing import coreml_student, quantized_student, student_input_gains, student_schemes

    recipe = results.recipe
    speeds = json.loads((results.path("quantize") / SPEEDS_FILE).read_text())
    write_bundle(
        place.out,
        recipe,
        BundleSource(
            model=results.model("exits"),
            quantized=quantized_student(results),
            coreml_model=coreml_student(results),
            matrix_schemes=student_schemes(results),
            input_gains=student_input_gains(results, on_step),
        ),
        results.tokenizer(),
        bundle_labels(results),
        speeds={name: Speed(**speed) for name, speed in speeds.items()},
        conformance_examples=conformance_examples(results.examples("dev"), get_task(recipe.task).text_length),
        provenance={
            "recipe": recipe.name,
            "teacher": shown_source(recipe.teacher.weights),
            "train": Path(recipe.data.train).name,
            "dev": Path(recipe.data.dev).name,
            **left_out_provenance(results.left_out_speeds()),
        },
        training=training_facts(results),
        on_step=on_step,
    )


def training_facts(results: Results) -> TrainingFacts:
    """Returns what the model card says about data and scores. Scores of later stages are not known yet."""
    from pipeline.export.documents import DataPart, TrainingFacts, shown_source

    data = results.recipe.data
    purposes = {
        "train": ("training", data.train),
        "calibration": ("calibration of the speeds, taken out of the training data", data.train),
        "dev": ("dev, to measure on", data.dev),
    }
    if isinstance(data.calibration, str):
        purposes["calibration"] = ("calibration of the speeds", data.calibration)
    if data.dev == SPLIT:
        purposes["dev"] = ("dev, to measure on, held out of the training data", data.train)
    models = {"teacher": "finetune", "student": "exits", "student, quantized": "quantize"}
    return TrainingFacts(
        data=[
            DataPart(purpose, shown_source(source), results.count(part)) for part, (purpose, source) in purposes.items()
        ],
        scores={name: results.metrics(stage) for name, stage in models.items() if results.has(stage)},
    )


def bundle_labels(results: Results) -> Labels:
    """Returns the labels that go into the manifest: none for question answering."""
    from pipeline.export.bundle import Labels

    labels = results.labels()
    if isinstance(labels, LabelRange):
        return Labels(range=labels)
    return Labels(labels if get_task(results.recipe.task).has_classes else ())


def conformance_examples(
    examples: list[Example], length: Callable[[Example], int], count: int = CONFORMANCE_EXAMPLES
) -> list[Example]:
    """Returns `count` examples spread over all lengths, the shortest and the longest among them."""
    by_length = sorted(examples, key=length)
    if len(by_length) <= count:
        return by_length
    return [by_length[round(index * (len(by_length) - 1) / (count - 1))] for index in range(count)]


STAGE = Stage("export", "bundle", after=("quantize",), sections=("name", "export"), build=export, version=4)
