"""The commands that measure a finished bundle: evaluate, study and size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from pipeline.commands.completion import complete_bundle
from pipeline.commands.options import (
    AsJson,
    BundleFolder,
    DataSource,
    LabelColumn,
    Limit,
    PairColumn,
    Speed,
    TextColumn,
    print_json,
)
from pipeline.support.progress import console, output, progress


def evaluate(
    bundle: BundleFolder,
    data: DataSource,
    speed: Speed = None,
    limit: Limit = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    threads: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            help="Threads of the runtime; by default as many as physical cores. For short texts 1 is best.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measures score, depth and latency on labelled data.

    Runs the bundle's own programs. The score is accuracy, exact match and F1, or correlations. --speed takes several
    speeds, separated by commas.
    """
    from pipeline.bundle.opening import Bundle, default_speed, find_bundle
    from pipeline.report.terminal import evaluation_table
    from pipeline.run.examples import read_labelled
    from pipeline.runtime.evaluate import evaluate as run_evaluation

    opened = Bundle.open(find_bundle(bundle))
    examples = read_labelled(data, opened.manifest.task, text, text_pair, label)
    speeds = [part.strip() for part in (speed or default_speed(opened.manifest)).split(",") if part.strip()]
    with progress() as on_step:
        evaluation = run_evaluation(
            opened, examples, speeds, limit=limit, on_progress=on_step, threads=threads, source=data
        )
    if as_json:
        print_json(evaluation)
    else:
        output().print(evaluation_table(evaluation))


def study(
    bundle: BundleFolder,
    data: DataSource,
    limit: Limit = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    as_json: AsJson = False,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="DIR", help="Folder to write the page study.html and study.json to."),
    ] = None,
) -> None:
    """Measures what each exit is worth on labelled data.

    Shows the score against depth and operations, for every threshold and every measure of uncertainty.
    """
    from pipeline.bench.study import study_bundle
    from pipeline.bundle.opening import Bundle, find_bundle
    from pipeline.report.terminal import study_tables
    from pipeline.run.examples import read_labelled

    opened = Bundle.open(find_bundle(bundle))
    examples = read_labelled(data, opened.manifest.task, text, text_pair, label)
    with progress() as on_step:
        result = study_bundle(opened, examples, limit, on_step, source=data)
    if out is not None:
        from pipeline.report.study_page import write_study

        console.print(f"page: {write_study(result, opened.manifest.name, Path(data).name, out)}")
    if as_json:
        print_json(result)
    else:
        output().print(*study_tables(result))


def size(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", autocompletion=complete_bundle, help="One or more bundles."),
    ],
    as_json: AsJson = False,
) -> None:
    """Shows the size of a bundle and of each of its parts.

    Compares them with float32, with BERT-base, and with the 207 MB of the DistilBERT paper's app.
    """
    from pipeline.bundle.opening import find_bundle
    from pipeline.report.terminal import size_table
    from quantize.size import size_of

    bundles = [find_bundle(bundle) for bundle in bundles]
    reports = [size_of(bundle) for bundle in bundles]
    if as_json:
        print_json(reports[0] if len(reports) == 1 else [report.model_dump() for report in reports])
        return
    for bundle, report in zip(bundles, reports):
        output().print(size_table(bundle, report))
