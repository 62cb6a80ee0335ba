"""Evaluates a bundle on labelled examples: the score, the depth and the latency of each speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import Bundle, speed_thresholds
from pipeline.data.examples import Example
from pipeline.names import Task
from pipeline.runtime.runner import Runner
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import Result, get_task
from pipeline.tasks.scores import Scores

# Inputs that run at full depth before anything is timed.
WARM_UP_INPUTS = 5


class Latency(Document):
    """Milliseconds per input at its real length, over all examples. Tokenization and decoding are included."""

    mean: float
    p50: float
    p95: float


class SpeedResult(Scores):
    """The results of one speed.

    Attributes:
        mean_depth: the mean number of segments that ran, from 1 to the bundle's number of segments.
        exits: the number of examples that left after each segment.
    """

    speed: str
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
    targets = get_task(manifest.task).targets(examples, manifest.answer_context, source)
    runner = Runner(bundle, threads)
    runner.prewarm()
    for example in examples[:WARM_UP_INPUTS]:
        runner.predict(example, "0")
    results: list[list[Result]] = [[] for _ in names]
    for index, example in enumerate(examples):
        for turn in range(len(names)):
            speed_index = (index + turn) % len(names)
            results[speed_index].append(runner.predict(example, names[speed_index]))
        on_progress("evaluating", index + 1, len(examples))
    return Evaluation(
        task=manifest.task,
        examples=len(examples),
        speeds=[_summary(manifest, name, runs, targets) for name, runs in zip(names, results)],
    )


def checked_examples(examples: Sequence[Example], limit: int | None, source: str | Path | None) -> list[Example]:
    """Returns the first `limit` examples, or all without a limit. UserError if there are none."""
    examples = list(examples[:limit])
    if not examples:
        raise UserError("has no examples; give at least one", file=source)
    return examples


def _summary(manifest: Manifest, speed: str, results: Sequence[Result], targets: Sequence[Any]) -> SpeedResult:
    task = get_task(manifest.task)
    metrics = task.summarise([task.answer_of(result) for result in results], targets)
    latency = np.array([result.latency_ms for result in results])
    return SpeedResult(
        speed=speed,
        **metrics,
        mean_depth=float(np.mean([result.depth for result in results])),
        exits=np.bincount([result.exit for result in results], minlength=manifest.segments).tolist(),
        latency_ms=Latency(
            mean=float(latency.mean()), p50=float(np.percentile(latency, 50)), p95=float(np.percentile(latency, 95))
        ),
    )
