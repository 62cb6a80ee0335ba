"""The stage bench: measures the bundle on this machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.bundle.manifest import Manifest
from pipeline.bundle.opening import Bundle
from pipeline.run.results import Results
from pipeline.run.stage import Stage
from pipeline.support.progress import OnStep, console
from pipeline.support.workspace import StageFolder, write_text

EVALUATION_FILE = "evaluation.json"
STUDY_FILE = "study.json"
BENCH_FILE = "bench.json"


def bench(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes score and latency at every speed on dev, the study of the exits, and the latency against BERT-base."""
    from pipeline.bench.host import bench_host
    from pipeline.bench.study import study_bundle
    from pipeline.runtime.evaluate import evaluate

    options = results.recipe.bench
    folder, dev = results.path("export"), results.examples("dev")
    bundle = Bundle.open(folder)
    speeds = present_speeds(options.speeds, bundle.manifest, results.left_out_speeds())
    evaluation = evaluate(bundle, dev, speeds, limit=options.evaluate_limit, on_progress=on_step)
    write_text(place.out / EVALUATION_FILE, evaluation.model_dump_json(indent=2))
    study = study_bundle(bundle, dev, options.evaluate_limit, on_step)
    write_text(place.out / STUDY_FILE, study.model_dump_json(indent=2))
    report = bench_host(
        folder,
        options.lengths,
        options.repeats,
        options.threads,
        options.reference,
        on_step,
        reference_length=options.reference_length,
    )
    write_text(place.out / BENCH_FILE, report.model_dump_json(indent=2))


def present_speeds(speeds: Sequence[str], manifest: Manifest, left_out: Collection[str]) -> list[str]:
    """Returns the speeds to evaluate at without those that calibration left out; full depth if none is left."""
    missing = [speed for speed in speeds if speed in left_out and speed not in manifest.speeds]
    if missing:
        console.print(f"bench.speeds: not in this bundle, so not evaluated: {', '.join(missing)}")
    return [speed for speed in speeds if speed not in missing] or ["0"]


STAGE = Stage("bench", "measurements", after=("export",), sections=("bench",), build=bench, version=2)
