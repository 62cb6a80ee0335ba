"""Reads the JSON that runs left in `docs/results`: what README and RESULTS show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.documents import BenchReport
from pipeline.bundle.manifest import read_manifest
from pipeline.runtime.evaluate import Evaluation, SpeedResult
from pipeline.tasks.scores import Scores

RESULTS = Path(__file__).resolve().parent / "results"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Row:
    """One speed of a bundle, as the tables show it.

    Attributes:
        promised: the loss that the speed promises to stay below, a fraction of 1; None without a promise.
        loss: the score at full depth minus its own.
        speed_up: BERT-base's milliseconds divided by its own; None where BERT-base was not measured beside it.
    """

    result: SpeedResult
    promised: float | None
    loss: float
    speed_up: float | None

    @property
    def name(self) -> str:
        return "full depth" if self.result.speed == "0" else f"`{self.result.speed}`"


@dataclass(frozen=True)
class Measured:
    """What was measured of one bundle.

    Attributes:
        evaluation: the scores, depths and times on labelled examples at each speed.
        bench: the times of the programs alone; BERT-base's among them.
        program_bytes: the size of `model.pte`.
        models: the scores in PyTorch of teacher, student and quantized student; empty where only a bundle was at hand.
    """

    evaluation: Evaluation
    bench: BenchReport | None
    promises: dict[str, float | None]
    program_bytes: int
    models: dict[str, Scores]
    stage_seconds: dict[str, float]

    @property
    def reference_ms(self) -> float | None:
        """The median milliseconds of BERT-base, padded."""
        rows = [] if self.bench is None else self.bench.measurements_of("bert-base")
        return rows[0].median_ms if rows else None

    def rows(self) -> Iterator[Row]:
        """Yields full depth, then the speeds from the most careful one on."""
        metric = "accuracy" if self.evaluation.speeds[0].accuracy is not None else "f1"
        full = next(getattr(result, metric) for result in self.evaluation.speeds if result.speed == "0")
        for result in self.evaluation.speeds:
            speed_up = None if self.reference_ms is None else self.reference_ms / result.latency_ms.mean
            yield Row(result, self.promises.get(result.speed), full - getattr(result, metric), speed_up)


def read(name: str) -> Any:
    """Returns one JSON file of `docs/results`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def bundle_measurements(name: str) -> Measured:
    """Returns what `docs/measure.sh` left about one bundle."""
    bench = RESULTS / f"{name}-bench.json"
    return Measured(
        Evaluation.model_validate(read(f"{name}-evaluate")),
        BenchReport.model_validate_json(bench.read_text(encoding="utf-8")) if bench.is_file() else None,
        read(f"{name}-promises"),
        program_bytes(read(f"{name}-size")),
        {},
        {},
    )


def run_measurements(name: str) -> Measured:
    """Returns what a whole run left; see `take_run`."""
    run = read(name)
    return Measured(
        Evaluation.model_validate(run["evaluation"]),
        BenchReport.model_validate(run["bench"]),
        run["promises"],
        program_bytes(run["size"]),
        {model: Scores.model_validate(scores) for model, scores in run["metrics"].items()},
        run["stage_seconds"],
    )


def program_bytes(size: Any) -> int:
    """Returns the bytes of the ExecuTorch programs in a document of `pocketbert size --json`."""
    return int(next(target["program_bytes"] for target in size["targets"] if target["backend"] == "executorch"))


def promises(bundle: Path) -> dict[str, float | None]:
    """Returns the loss that each named speed of a bundle promises to stay below."""
    return {name: speed.max_loss for name, speed in read_manifest(bundle, check_files=False).speeds.items()}


def take_run(run: Path) -> None:
    """Writes what the tables need of a finished run's `results.json` to `docs/results/NAME.json`."""
    results = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))
    kept = {key: results[key] for key in ("name", "task", "metrics", "evaluation", "bench", "size", "stage_seconds")}
    kept["size"] = {key: kept["size"][key] for key in ("targets", "total_bytes", "bert_base_bytes")}
    kept["promises"] = promises(run / "bundle")
    write(results["name"], kept)


def take_promises(name: str, bundle: Path) -> None:
    """Writes the promises of a bundle's speeds to `docs/results/NAME-promises.json`."""
    write(f"{name}-promises", promises(bundle))


def write(name: str, document: Any) -> None:
    """Writes one JSON file of `docs/results`."""
    text = json.dumps(without_nulls(document), indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def without_nulls(value: Any) -> Any:
    """Leaves out fields that are null, which the documents read as their default. A list keeps its places."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "run":
        take_run(Path(arguments[0]))
    elif command == "promises":
        take_promises(arguments[0], Path(arguments[1]))
    else:
        sys.exit(f"{command} is not known; use: run FOLDER, or promises NAME BUNDLE")
