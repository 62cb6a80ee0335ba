"""Evaluates a bundle on labelled examples: the score, the depth and the latency of each speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import Bundle, speed_thresholds
from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.regression_metrics import regression_metrics
from pipeline.data.squad_metric import exact_match, f1
from pipeline.names import Task
from pipeline.runtime.results import AnswerResult, Classification, Estimate
from pipeline.runtime.runner import Runner
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent

# The metrics of each task: fields of `SpeedResult` and the names that tables show for them.
METRICS: dict[Task, dict[str, str]] = {
    "classification": {"accuracy": "accuracy"},
    "regression": {"pearson": "Pearson", "spearman": "Spearman", "mean_absolute_error": "MAE"},
    "qa": {"exact_match": "EM", "f1": "F1"},
}
Result = Union[Classification, Estimate, AnswerResult]
WARM_UP_INPUTS = 5  # run at full depth before anything is timed


class Latency(Document):
    """Milliseconds per input at its real length, over all examples. Tokenization and decoding are included."""

    mean: float
    p50: float
    p95: float


class SpeedResult(Document):
    """The results of one speed.

    Attributes:
        accuracy: for classification, a fraction of 1.
        exact_match, f1: for question answering, fractions of 1.
        pearson, spearman: for regression; None where all predictions or all labels are equal.
        mean_absolute_error: for regression, in the data's unit.
        mean_depth: the mean number of segments that ran, from 1 to the bundle's number of segments.
        exits: the number of examples that left after each segment.
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
    """The document that `pocketbert evaluate --json` prints."""

    task: Task
    examples: int
    speeds: list[SpeedResult]

    def to_json(self) -> dict[str, Any]:
        """Returns the document without the metrics of the other tasks."""
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

    Every speed runs on its own, so each latency is measured and none is derived from another. The speeds take turns
    on each example, and another speed goes first on the next example. So a machine that slows down slows all speeds
    alike.

    Args:
        bundle: the bundle to evaluate.
        examples: labelled examples of the bundle's task. A class is written as in the bundle's `label_values` or as in
            its `labels`.
        speeds: see `speed_thresholds`.
        limit: the number of examples to use, from the first on; None uses all.
        on_progress: called after each example.
        threads: see `MethodFile`.
        source: the file that the examples are from, for error messages.

    Raises:
        UserError: there are no examples or speeds, a speed is unknown, or an example has no label or one that the
            bundle lacks.
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
    for example in examples[:WARM_UP_INPUTS]:
        _run(runner, example, "0")
    results: list[list[Result]] = [[] for _ in names]
    for index, example in enumerate(examples):
        for turn in range(len(names)):
            speed_index = (index + turn) % len(names)
            results[speed_index].append(_run(runner, example, names[speed_index]))
        on_progress("evaluating", index + 1, len(examples))
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
    """Returns the first `limit` examples, or all without a limit. UserError if there are none."""
    examples = list(examples[:limit])
    if not examples:
        raise UserError("has no examples; give at least one", file=source)
    return examples


def targets_of(manifest: Manifest, examples: Sequence[Example], source: str | Path | None) -> list[int] | list[float]:
    """Returns what the bundle should predict for each example.

    Returns:
        for classification, the index of each label among the bundle's labels; for regression, the labels. Empty for
        question answering, whose examples hold their answers.

    Raises:
        UserError: the examples are of another task, or one has no label or a label that the bundle lacks.
    """
    wanted = QAExample if manifest.task == "qa" else ClassificationExample
    if not all(isinstance(example, wanted) for example in examples):
        raise UserError(
            f"the examples are not of the bundle's task, {manifest.task}; give a file of that task", file=source
        )
    if manifest.task == "qa":
        has_answer = any(example.answers for example in examples if isinstance(example, QAExample))
        if not manifest.qa_options.allow_no_answer and not has_answer:
            raise UserError(
                "no question has an answer, so there is nothing to compare with; give a labelled file", file=source
            )
        return []
    labels = [example.label for example in examples if isinstance(example, ClassificationExample)]
    if None in labels:
        raise UserError(
            "has no label, so there is nothing to compare with; give a labelled file",
            file=source,
            field=f"example {labels.index(None) + 1}",
        )
    if manifest.task == "regression":
        return [float(label) for label in labels if label is not None]
    names = [str(label) for label in labels]
    # A file writes all its labels in one way. Label by label, values ["0", "1"] shown as ["1", "0"] would be mixed up.
    for known in (manifest.label_values, manifest.labels):
        if set(names) <= set(known):
            return [known.index(name) for name in names]
    unknown = sorted(set(names) - set(manifest.label_values)) or sorted(set(names) - set(manifest.labels))
    raise UserError(
        f"{unknown[0]!r} is not known to the bundle, whose values are {', '.join(manifest.label_values)} "
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
    metrics: dict[str, float | None]
    if manifest.task == "classification":
        indices = [run.label_index for run in runs if isinstance(run, Classification)]
        metrics = {"accuracy": float(np.mean([index == target for index, target in zip(indices, targets)]))}
    elif manifest.task == "regression":
        values = [run.value for run in runs if isinstance(run, Estimate)]
        metrics = regression_metrics(np.array(values), np.array(targets))
    else:
        answers = [run.answer for run in runs if isinstance(run, AnswerResult)]
        truths = [[answer.text for answer in example.answers] for example in examples if isinstance(example, QAExample)]
        metrics = {
            "exact_match": float(np.mean([exact_match(answer, truth) for answer, truth in zip(answers, truths)])),
            "f1": float(np.mean([f1(answer, truth) for answer, truth in zip(answers, truths)])),
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
