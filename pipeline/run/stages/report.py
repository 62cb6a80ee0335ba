"""The stage report: puts everything that a run measured on one page."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

from pipeline.bundle.manifest import read_manifest
from pipeline.run.results import Results
from pipeline.run.stage import Stage
from pipeline.run.stages.bench import BENCH_FILE, EVALUATION_FILE, STUDY_FILE
from pipeline.run.stages.verify import CHECKS_FILE
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder

if TYPE_CHECKING:
    from pipeline.report.results import RunResults


def report(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the page and the results on it."""
    from pipeline.report.report import write_report

    write_report(collect_results(results, with_answers=True), place.out)


def collect_results(results: Results, with_answers: bool = False) -> RunResults:
    """Returns everything that the stages before the report measured.

    Args:
        with_answers: whether to answer a few dev examples too, for people.
    """
    from pipeline.bench.documents import BenchReport
    from pipeline.exits.study_document import Study
    from pipeline.report.results import RunResults
    from pipeline.report.showcase import showcase
    from pipeline.runtime.evaluate import Evaluation
    from quantize.size import size_of

    bundle, measured = results.path("export"), results.path("bench")
    verified = json.loads((results.path("verify") / CHECKS_FILE).read_text())
    seconds = results.stage_seconds()
    seconds.pop("report", None)
    return RunResults(
        name=results.recipe.name,
        task=results.recipe.task,
        metrics={
            "teacher": results.metrics("finetune"),
            "student": {name: value for name, value in results.metrics("exits").items() if name != "exits"},
            "quantized": results.metrics("quantize"),
        },
        evaluation=Evaluation.model_validate_json((measured / EVALUATION_FILE).read_text()),
        study=Study.model_validate_json((measured / STUDY_FILE).read_text()),
        bench=BenchReport.model_validate_json((measured / BENCH_FILE).read_text()),
        size=size_of(bundle),
        checks=verified["checks"],
        warnings=verified["warnings"],
        mac=verified["mac"],
        showcase=showcase(bundle, results.examples("dev")) if with_answers else [],
        stage_seconds=seconds,
        provenance=read_manifest(bundle, check_files=False).provenance | {"machine": platform.platform()},
    )


STAGE = Stage("report", "report", after=("verify", "bench"), sections=(), build=report)
