"""A bundle measured on labelled examples: what each speed gets right, how deep it goes, how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Union

import numpy as np

from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import Bundle, speed_thresholds
from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.regression_metrics import regression_metrics
from pipeline.data.squad_metric import exact_match, f1
from pipeline.names import Task
from pipeline.runtime.runner import AnswerResult, Classification, Estimate, Runner
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent

# What a task is measured by: fields of `SpeedResult`, and how a table calls them.
METRICS: dict[Task, dict[str, str]] = {
    "classification": {"accuracy": "accuracy"},
    "regression": {"pearson": "Pearson", "spearman": "Spearman", "mean_absolute_error": "MAE"},
    "qa": {"exact_match": "EM", "f1": "F1"},
}
Result = Union[Classification, Estimate, AnswerResult]
WARM_UP = 5  # inputs that run at full depth before the clock counts


class Latency(Document):
    """Milliseconds for an input, tokenization and decoding included, over all examples at their real lengths."""

    mean: float
    p50: float
    p95: float


class SpeedResult(Document):
    """One speed. `exits` counts the examples that left after each segment; `mean_depth` is in segments run, 1 to their number.

    `accuracy` for classification, `exact_match` and `f1` for QA, fractions of 1. For regression `pearson` and `spearman`, absent where all
    predictions or all labels are the same, and `mean_absolute_error`, in the data's unit.
    """

    speed: str
    accuracy: float | None = None
    exact_match: float | None = None
    f1: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    mean_absolute_error: float | None = None
    mean_depth: float
    exits: list[int]
    latency_ms: Latency


class Evaluation(Document):
    """What `pocketbert evaluate --json` prints."""

    task: Task
    examples: int
    speeds: list[SpeedResult]

    def to_json(self) -> dict:
        """Without the metrics of the other tasks."""
        return self.model_dump(exclude_none=True)


def evaluate(
    bundle: Bundle,
    examples: Sequence[Example],
    speeds: Sequence[str | float],
    limit: int | None = None,
    on_progress: OnStep = silent,
    threads: int | None = None,
    source: str | Path | None = None,
) -> Evaluation:
    """Runs every example at every speed through the bundle's own ExecuTorch programs.

    Nothing is computed once and read off for several speeds: each latency is that of a run. The speeds take turns on each example, and
    the turn that comes first moves on from example to example, so that a machine that slows down slows all of them alike.

    Args:
        examples: labelled, of the bundle's task; a class is written as in the bundle's `label_values` or as in its `labels`.
        speeds: see `speed_thresholds`.
        limit: take only the first so many examples.
        on_progress: told after each example.
        threads: see `MethodFile`.
        source: the file that the examples are from, for what is said of them.

    Raises:
        UserError: there are no examples or speeds, a speed is unknown, an example is unlabelled or has a label that the bundle lacks.
    """
    examples = checked_examples(examples, limit, source)
    if not speeds:
        raise UserError("there is none; give at least one, for example 0", field="speed")
    manifest = bundle.manifest
    names = [speed if isinstance(speed, str) else str(speed) for speed in speeds]
    for name in names:
        speed_thresholds(manifest, name)
    targets = targets_of(manifest, examples, source)
    runner = Runner(bundle, threads)
    runner.prewarm()
    for example in examples[:WARM_UP]:
        _run(runner, example, "0")
    results: list[list[Result]] = [[] for _ in names]
    for at, example in enumerate(examples):
        for turn in range(len(names)):
            which = (at + turn) % len(names)
            results[which].append(_run(runner, example, names[which]))
        on_progress("evaluating", at + 1, len(examples))
    return Evaluation(
        task=manifest.task,
        examples=len(examples),
        speeds=[_summary(manifest, name, runs, examples, targets) for name, runs in zip(names, results)],
    )


def _run(runner: Runner, example: Example, speed: str) -> Result:
    if isinstance(example, QAExample):
        return runner.answer(example.question, example.passage, speed)
    run = runner.estimate if runner.manifest.task == "regression" else runner.classify
    return run(example.text, example.text_pair, speed)


def checked_examples(examples: Sequence[Example], limit: int | None, source: str | Path | None) -> list[Example]:
    """The first `limit` examples. UserError if there are none."""
    examples = list(examples[:limit])
    if not examples:
        raise UserError("has no examples; give at least one", file=source)
    return examples


def targets_of(manifest: Manifest, examples: Sequence[Example], source: str | Path | None) -> list[int] | list[float]:
    """Each example's place among the bundle's labels, or for regression its label; empty for QA, whose examples hold their answers.

    Raises:
        UserError: the examples are of another task, one is unlabelled, or has a label that the bundle lacks.
    """
    wanted = QAExample if manifest.task == "qa" else ClassificationExample
    if not all(isinstance(example, wanted) for example in examples):
        raise UserError(
            f"the examples are not of the bundle's task, {manifest.task}; give a file of that task", file=source
        )
    if manifest.task == "qa":
        if not manifest.qa.allow_no_answer and not any(example.answers for example in examples):
            raise UserError(
                "no question has an answer, so there is nothing to compare with; give a labelled file", file=source
            )
        return []
    found = {example.label for example in examples}
    if None in found:
        number = next(number for number, example in enumerate(examples, start=1) if example.label is None)
        raise UserError(
            "has no label, so there is nothing to compare with; give a labelled file",
            file=source,
            field=f"example {number}",
        )
    if manifest.task == "regression":
        return [float(example.label) for example in examples]
    # All labels of a file are written in one way: value by value, ["0", "1"] shown as ["1", "0"] would be mixed up.
    for known in (manifest.label_values, manifest.labels):
        if found <= set(known):
            return [known.index(example.label) for example in examples]
    strange = sorted(found - set(manifest.label_values)) or sorted(found - set(manifest.labels))
    raise UserError(
        f"{strange[0]!r} is not known to the bundle, whose values are {', '.join(manifest.label_values)} "
        f"and whose names are {', '.join(manifest.labels)}; write all labels as the one or the other",
        file=source,
        field="label",
    )


def _summary(
    manifest: Manifest,
    speed: str,
    runs: Sequence[Result],
    examples: Sequence[Example],
    targets: Sequence[int] | Sequence[float],
) -> SpeedResult:
    if manifest.task == "classification":
        metrics = {"accuracy": float(np.mean([run.label_index == target for run, target in zip(runs, targets)]))}
    elif manifest.task == "regression":
        metrics = regression_metrics(np.array([run.value for run in runs]), np.array(targets))
    else:
        truths = [[answer.text for answer in example.answers] for example in examples]
        metrics = {
            "exact_match": float(np.mean([exact_match(run.answer, truth) for run, truth in zip(runs, truths)])),
            "f1": float(np.mean([f1(run.answer, truth) for run, truth in zip(runs, truths)])),
        }
    latency = np.array([run.latency_ms for run in runs])
    return SpeedResult(
        speed=speed,
        **metrics,
        mean_depth=float(np.mean([run.depth for run in runs])),
        exits=np.bincount([run.exit for run in runs], minlength=manifest.segments).tolist(),
        latency_ms=Latency(
            mean=float(latency.mean()), p50=float(np.percentile(latency, 50)), p95=float(np.percentile(latency, 95))
        ),
    )
