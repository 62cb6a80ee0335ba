"""Shows results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.bundle.opening import CALIBRATED_SPEEDS, left_out_field
from pipeline.data.examples import Example
from pipeline.names import Task
from pipeline.report.wording import MEGABYTE, metric_name
from pipeline.support.progress import output
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.bench.documents import BenchReport
    from pipeline.exits.study_document import Study
    from pipeline.report.results import RunResults, Score
    from pipeline.runtime.evaluate import Evaluation, SpeedResult
    from pipeline.verify.checks import Check, EngineWarning, MacReport
    from pipeline.verify.evaluator.examine import PackageReport
    from quantize.checkpoint import QuantizedCheckpoint
    from quantize.sensitivity import Sensitivity
    from quantize.size import SizeReport


def quality(task: Task, score: Score | SpeedResult | None) -> list[str]:
    """Returns one cell for each metric of the task; the cells are empty without a score."""
    return ["" if score is None else cell(getattr(score, name), ".4f") for name in get_task(task).metrics]


def cell(value: float | None, form: str = ".1f", unit: float = 1.0) -> str:
    """Writes a number in a format and a unit, or an empty cell for None."""
    return "" if value is None else format(value / unit, form)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Returns one row for each speed."""
    table = Table("speed", *get_task(evaluation.task).metrics.values(), "mean depth", "exits", "mean ms", "p50", "p95")
    for result in evaluation.speeds:
        latency = result.latency_ms
        table.add_row(
            result.speed,
            *quality(evaluation.task, result),
            f"{result.mean_depth:.2f}",
            " ".join(str(count) for count in result.exits),
            f"{latency.mean:.2f}",
            f"{latency.p50:.2f}",
            f"{latency.p95:.2f}",
        )
    return table


def study_tables(study: Study) -> list[Table]:
    """Returns tables of the exits, of the named speeds if there are any, and of the measures of uncertainty."""
    metric = metric_name(study.metric)
    exits = Table("exit", "after layer", metric, "operations", "median uncertainty", "AUROC")
    for index, (exit_study, ranking) in enumerate(zip(study.exits, study.own.rankings), start=1):
        exits.add_row(
            str(index),
            str(exit_study.layer),
            f"{exit_study.score:.4f}",
            f"{exit_study.flops:.1%}",
            f"{exit_study.quantiles[2]:.3f}",
            cell(ranking.auroc, ".3f"),
        )
    speeds = Table("speed", "loss promised", "loss", "mean depth", "operations", "speed-up", "exits")
    for speed in study.speeds:
        counts = " ".join(str(count) for count in speed.exits)
        speeds.add_row(
            speed.speed,
            cell(speed.max_loss, ".4f"),
            f"{speed.loss:.4f}",
            f"{speed.mean_depth:.2f}",
            f"{speed.flops:.1%}",
            f"{speed.speed_up:.2f}",
            counts,
        )
    columns = [f"loss <= {point.max_loss:g}" for point in study.own.within]
    measures = Table("measure: depth, speed-up", *columns, "AUROC")
    for measure in study.measures:
        name = measure.measure + (" (own)" if measure.own else "")
        for thresholds, points in (("one threshold", measure.within), ("one per exit", measure.fitted)):
            cells = [f"{point.mean_depth:.2f}, {point.speed_up:.2f}" for point in points]
            measures.add_row(f"{name}, {thresholds}", *cells, cell(measure.mean_auroc, ".3f"))
    return [exits, speeds, measures] if study.speeds else [exits, measures]


def bench_table(report: BenchReport) -> Table:
    """Returns one row for each measurement. Memory is the peak above what the process held before loading."""
    columns = [
        "system",
        "variant",
        "model",
        "precision",
        "length",
        "depth",
        "median ms",
        "5-95 %",
        "load ms",
        "memory MB",
        "file MB",
    ]
    has_differences = any(row.difference is not None for row in report.results)
    table = Table(*columns, *(["difference"] if has_differences else []))
    for row in report.results:
        table.add_row(
            row.system,
            row.variant,
            row.model,
            row.precision,
            str(row.length),
            str(row.depth),
            f"{row.median_ms:.2f}",
            f"{cell(row.p5_ms, '.2f')}-{row.p95_ms:.2f}",
            cell(row.load_ms, ".0f"),
            cell(row.used_memory_bytes, ".0f", MEGABYTE),
            f"{row.file_bytes / MEGABYTE:.1f}",
            *([cell(row.difference, ".1e")] if has_differences else []),
        )
    return table


def size_table(bundle: Path, report: SizeReport) -> Table:
    """Returns the bytes of each target by part, followed by what they are compared with."""
    table = Table("for", "part", "scheme", "MB", "fp32 MB", title=str(bundle), title_justify="left")
    for row in report.rows():
        table.add_row(
            row.target, row.part, row.scheme, cell(row.bytes, ".2f", MEGABYTE), cell(row.fp32_bytes, ".2f", MEGABYTE)
        )
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """Returns one row for each check."""
    table = Table("program", "backend", "metric", "value", "floor", "")
    for check in checks:
        result = "ok" if check.passed else f"FAILED {check.note}".rstrip()
        table.add_row(check.program, check.backend, check.metric, f"{check.value:.4g}", f"{check.floor:.4g}", result)
    return table


def package_table(report: PackageReport) -> Table:
    """Returns one row for each output of each function."""
    title = (
        f"{report.package}: specification {report.specification_version}, inputs {report.inputs}, "
        f"shown in {report.precision}"
    )
    table = Table(
        "function",
        "output",
        "shape",
        "least",
        "greatest",
        "float16 against float32",
        "",
        title=title,
        title_justify="left",
    )
    for function in report.functions:
        for values in function.outputs:
            table.add_row(
                function.function,
                values.name,
                f"{values.dtype} {values.shape}",
                cell(values.minimum, ".4g"),
                cell(values.maximum, ".4g"),
                f"{values.float16_snr_db:.1f} dB",
                "ok" if values.finite else "NOT FINITE",
            )
    return table


def fault_lines(report: PackageReport) -> list[str]:
    """Returns a line for each function and precision that names the first operator with an overflow or a NaN."""
    return [
        f"{function.function} in {precision}: {fault}"
        for function in report.functions
        for precision, faults in function.faults.items()
        for fault in faults
    ]


def warning_lines(warnings: Sequence[EngineWarning]) -> list[str]:
    """Returns a line for each reason with its source, followed by one for each operator."""
    from pipeline.verify.neural_engine import REASONS, by_reason

    lines = []
    for reason, reason_warnings in by_reason(warnings).items():
        lines.append(f"warning, Neural Engine: {REASONS[reason].text} ({REASONS[reason].source})")
        lines += [
            f"  {warning.package} {warning.function}: {warning.operator} {warning.name}, {warning.detail}"
            for warning in reason_warnings
        ]
    return lines


def mac_lines(mac: MacReport) -> list[str]:
    """Returns whether Core ML itself ran, and on which processors it plans to run each program."""
    if not mac.ran:
        return [f"Core ML itself has not run: {mac.reason}"]
    lines = [f"Core ML itself ran on {mac.machine}"]
    for plan in mac.plans:
        devices = ", ".join(f"{count} on {device}" for device, count in plan.devices.items()) or f"none, {plan.reason}"
        lines.append(f"  plan of {plan.program}, {plan.length} tokens: {devices}")
    return lines


def sensitivity_table(result: Sensitivity) -> Table:
    """Returns one row for each matrix, with its size, divergence from float32 and lost points in every scheme."""
    schemes = list(dict.fromkeys(entry.scheme for entry in result.entries))
    columns = [f"{scheme}: {unit}" for scheme in schemes for unit in ("KB", "nats", "points")]
    table = Table("matrix", *columns, title=f"{result.examples} examples", title_justify="left")
    for matrix in dict.fromkeys(entry.matrix for entry in result.entries):
        row, entries = [], result.of(matrix)
        for scheme in schemes:
            entry = entries.get(scheme)
            if entry is None:
                row += ["", "", ""]
            else:
                row += [
                    f"{entry.bytes / 1000:.0f}",
                    f"{entry.divergence:.2e}",
                    "" if entry.loss is None else f"{100 * entry.loss:+.2f}",
                ]
        table.add_row(matrix, *row)
    return table


def quantized_tables(result: QuantizedCheckpoint) -> list[Table]:
    """Returns the size of a quantized checkpoint with its distance from float32, and a row for each of its speeds."""
    metric = get_task(result.task).metrics.get(result.metric, result.metric)
    table = Table("", "", title=result.bundle, title_justify="left", show_header=False)
    scheme = result.scheme if result.scheme == result.embeddings else f"{result.scheme}, embeddings {result.embeddings}"
    table.add_row("scheme", scheme)
    table.add_row("MB", f"{result.file_bytes / MEGABYTE:.2f} ({result.fp32_bytes / MEGABYTE:.2f} in fp32)")
    for part, size in result.parts.items():
        if size:
            table.add_row(f"MB, {part}", f"{size / MEGABYTE:.2f}")
    table.add_row("MB, whole bundle", f"{result.bundle_bytes / MEGABYTE:.2f}, for {', '.join(result.backends)}")
    table.add_row("texts", str(result.texts))
    if result.rounding_texts:
        table.add_row("texts to round by", str(result.rounding_texts))
    table.add_row("relative error", f"{result.relative_error:.4f}")
    table.add_row("divergence, nats", f"{result.divergence:.2e}")
    table.add_row("same answer", f"{result.same_answer:.4f}")
    if result.score_before is not None:
        table.add_row(f"{metric} before (float32)", f"{result.score_before:.4f}")
        table.add_row(f"{metric} after (the bundle)", cell(result.score_after, ".4f"))
    table.add_row(f"{result.metric} lost, points", cell(result.loss, "+.2f", 0.01))
    table.add_row("ExecuTorch as in PyTorch, dB", f"{result.parity_db:.0f}")
    table.add_row("checks", f"{result.checks} passed")
    speeds = Table("speed", metric, "mean depth", "mean ms", "p50", "p95")
    for speed in result.speeds:
        times = (f"{value:.2f}" for value in (speed.mean_ms, speed.p50_ms, speed.p95_ms))
        speeds.add_row(speed.speed, cell(speed.score, ".4f"), f"{speed.mean_depth:.2f}", *times)
    return [table, speeds]


def print_summary(
    results: RunResults, stage_seconds: Mapping[str, float], examples: Sequence[Example], bundle: Path, page: Path
) -> None:
    """Prints the end of a run: a few answers, the headline table, the time of each stage, and where the results are.

    Args:
        results: what the run measured.
        stage_seconds: the seconds of all stages by name, the report among them.
        examples: the dev examples, of which a few are answered.
        bundle: the folder of the bundle.
        page: the file of the report.
    """
    out = output()
    print_answers(out, examples, bundle)
    table, notes = headline(results)
    out.print()
    out.print(table)
    for note in notes:
        out.print(f"  {note}")
    for speed in CALIBRATED_SPEEDS:
        if reason := results.provenance.get(left_out_field(speed)):
            out.print(f"  no speed {speed}: {reason}")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in stage_seconds.items())
    out.print(f"\nstages: {seconds}; {sum(stage_seconds.values()):.0f} s in all")
    out.print(f"bundle: {bundle}\nreport: {page}")


def headline(results: RunResults) -> tuple[Table, list[str]]:
    """Returns the headline table of the report, and one note for each kind of row."""
    from pipeline.report.report import headline_rows

    table = Table("", *get_task(results.task).metrics.values(), "MB", "mean ms", "x BERT-base", "mean depth")
    notes: dict[str, str] = {}
    for row in headline_rows(results):
        table.add_row(
            row.name,
            *quality(results.task, row.score),
            cell(row.megabytes),
            cell(row.latency_ms, ".2f"),
            cell(row.speed_up),
            row.depth or "",
        )
        notes.setdefault(row.note, row.name.split(",")[0])
    return table, [f"{name}: {note}" for note, name in notes.items()]


def print_answers(out: Console, examples: Sequence[Example], bundle: Path) -> None:
    """Prints the bundle's answers to a few of the examples."""
    from pipeline.bundle.opening import Bundle
    from pipeline.runtime.runner import Runner

    runner = Runner(Bundle.open(bundle))
    runner.prewarm()
    for example in spread(examples, 4):
        result = runner.predict(example)  # at the default speed
        answer, text = runner.task.shown_answer(result), runner.task.shown(example)
        out.print(
            f"{text[:110]}\n  -> {answer}  "
            f"({result.depth} of {runner.manifest.segments} segments, {result.latency_ms:.1f} ms)"
        )


def spread(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """A few examples, evenly from the whole list."""
    return examples[:: max(1, len(examples) // count)][:count]
