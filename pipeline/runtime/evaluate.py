"""A bundle measured on labelled examples: what each speed gets right, how deep it goes, how long it takes."""

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

WARM_UP = 5  # inputs that run at full depth before the clock counts


class Latency(Document):
    """Milliseconds for an input, tokenization and decoding included, over all examples at their real lengths."""

    mean: float
    p50: float
    p95: float


class SpeedResult(Scores):
    """One speed. `exits` counts the examples that left after each segment; `mean_depth` is in segments run, 1 to their number."""

    speed: str
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
    targets = get_task(manifest.task).targets(examples, manifest.answer_context, source)
    runner = Runner(bundle, threads)
    runner.prewarm()
    for example in examples[:WARM_UP]:
        runner.predict(example, "0")
    results: list[list[Result]] = [[] for _ in names]
    for at, example in enumerate(examples):
        for turn in range(len(names)):
            which = (at + turn) % len(names)
            results[which].append(runner.predict(example, names[which]))
        on_progress("evaluating", at + 1, len(examples))
    return Evaluation(
        task=manifest.task,
        examples=len(examples),
        speeds=[_summary(manifest, name, runs, targets) for name, runs in zip(names, results)],
    )


def checked_examples(examples: Sequence[Example], limit: int | None, source: str | Path | None) -> list[Example]:
    """The first `limit` examples. UserError if there are none."""
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
