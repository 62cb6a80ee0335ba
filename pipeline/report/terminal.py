"""Results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.names import Task
from pipeline.support.progress import output
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.bench.documents import BenchReport
    from pipeline.exits.study_document import Study
    from pipeline.report.results import RunResults, Score
    from pipeline.run.checkpoint import Quantized
    from pipeline.run.engine import Run
    from pipeline.runtime.evaluate import Evaluation, SpeedResult
    from pipeline.verify.checks import Check
    from pipeline.verify.evaluator.package import PackageReport
    from pipeline.verify.neural_engine import EngineWarning
    from pipeline.verify.on_mac import MacReport
    from quantize.sensitivity import Sensitivity
    from quantize.size import SizeReport

MEGABYTE = 1e6


def quality(task: Task, score: Score | SpeedResult | None) -> list[str]:
    """What the task is measured by, as cells; empty ones without a score."""
    return ["" if score is None else cell(getattr(score, name), ".4f") for name in get_task(task).metrics]


def cell(value: float | None, form: str = ".1f", unit: float = 1.0) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value / unit, form)


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row a speed."""
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
    """The exits alone, the named speeds, and what each measure of uncertainty costs at a given loss."""
    from pipeline.report.plots import METRIC_NAMES

    metric = METRIC_NAMES[study.metric]
    exits = Table("exit", "after layer", metric, "operations", "median uncertainty", "AUROC")
    for at, (each, ranking) in enumerate(zip(study.exits, study.own.rankings), start=1):
        exits.add_row(
            str(at),
            str(each.layer),
            f"{each.score:.4f}",
            f"{each.flops:.1%}",
            f"{each.quantiles[2]:.3f}",
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
    for each in study.measures:
        name = each.measure + (" (own)" if each.own else "")
        for how, points in ((", one threshold", each.within), (", one an exit", each.fitted)):
            cells = [f"{point.mean_depth:.2f}, {point.speed_up:.2f}" for point in points]
            measures.add_row(name + how, *cells, cell(each.mean_auroc, ".3f"))
    return [exits, speeds, measures] if study.speeds else [exits, measures]


def bench_table(report: BenchReport) -> Table:
    """A row for everything that was timed. Memory is what the process held at most beyond its bare runtime."""
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
    compared = any(row.difference is not None for row in report.results)
    table = Table(*columns, *(["difference"] if compared else []))
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
            *([cell(row.difference, ".1e")] if compared else []),
        )
    return table


def size_table(bundle: Path, report: SizeReport) -> Table:
    """Bytes by target and part, then what they are compared with."""
    table = Table("for", "part", "scheme", "MB", "fp32 MB", title=str(bundle), title_justify="left")
    for row in report.rows():
        table.add_row(
            row.target, row.part, row.scheme, cell(row.bytes, ".2f", MEGABYTE), cell(row.fp32_bytes, ".2f", MEGABYTE)
        )
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """A row a check."""
    table = Table("program", "backend", "metric", "value", "floor", "")
    for check in checks:
        result = "ok" if check.passed else f"FAILED {check.note}".rstrip()
        table.add_row(check.program, check.backend, check.metric, f"{check.value:.4g}", f"{check.floor:.4g}", result)
    return table


def package_table(report: PackageReport) -> Table:
    """A row for each output of each function."""
    title = f"{report.package}: specification {report.specification_version}, inputs {report.inputs}, shown in {report.precision}"
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
        for at in function.outputs:
            shape, agrees = f"{at.dtype} {at.shape}", f"{at.float16_snr_db:.1f} dB"
            table.add_row(
                function.function,
                at.name,
                shape,
                cell(at.minimum, ".4g"),
                cell(at.maximum, ".4g"),
                agrees,
                "ok" if at.finite else "NOT FINITE",
            )
    return table


def fault_lines(report: PackageReport) -> list[str]:
    """Which operator was the first to overflow, and the first to make a NaN, by function and precision."""
    return [
        f"{function.function} in {precision}: {fault}"
        for function in report.functions
        for precision, faults in function.faults.items()
        for fault in faults
    ]


def warning_lines(warnings: Sequence[EngineWarning]) -> list[str]:
    """For each reason a line with its source, and one for each operator."""
    from pipeline.verify.neural_engine import REASONS, by_reason

    lines = []
    for reason, named in by_reason(warnings).items():
        lines.append(f"warning, Neural Engine: {REASONS[reason].text} ({REASONS[reason].source})")
        lines += [f"  {each.package} {each.function}: {each.operator} {each.name}, {each.detail}" for each in named]
    return lines


def mac_lines(mac: MacReport) -> list[str]:
    """Whether Core ML itself ran, and where it means to run each program's operators."""
    if not mac.ran:
        return [f"Core ML itself has not run: {mac.reason}"]
    lines = [f"Core ML itself ran on {mac.machine}"]
    for plan in mac.plans:
        devices = ", ".join(f"{count} on {device}" for device, count in plan.devices.items()) or f"none, {plan.reason}"
        lines.append(f"  plan of {plan.program}, {plan.length} tokens: {devices}")
    return lines


def sensitivity_table(result: Sensitivity) -> Table:
    """A row for each matrix; for every scheme its size, the divergence from float32, and the score lost, in points."""
    schemes = list(dict.fromkeys(entry.scheme for entry in result.entries))
    columns = [f"{scheme}: {what}" for scheme in schemes for what in ("KB", "nats", "points")]
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


def quantized_table(result: Quantized) -> Table:
    """What a quantized checkpoint weighs, and how far it is from float32."""
    table = Table("", "", title=result.bundle, title_justify="left", show_header=False)
    scheme = result.scheme if result.scheme == result.embeddings else f"{result.scheme}, embeddings {result.embeddings}"
    table.add_row("scheme", scheme)
    table.add_row("MB", f"{result.file_bytes / MEGABYTE:.2f} ({result.fp32_bytes / MEGABYTE:.2f} in fp32)")
    for part, size in result.parts.items():
        if size:
            table.add_row(f"MB, {part}", f"{size / MEGABYTE:.2f}")
    table.add_row("texts", str(result.texts))
    if result.rounding_texts:
        table.add_row("texts to round by", str(result.rounding_texts))
    table.add_row("relative error", f"{result.relative_error:.4f}")
    table.add_row("divergence, nats", f"{result.divergence:.2e}")
    table.add_row("same answer", f"{result.same_answer:.4f}")
    table.add_row(f"{result.metric} lost, points", cell(result.loss, "+.2f", 0.01))
    table.add_row("ExecuTorch as in PyTorch, dB", f"{result.parity_db:.0f}")
    return table


def print_summary(run: Run) -> None:
    """What a finished run ends with: some answers, the table, the times, and where everything is."""
    from pipeline.run.engine import run_results

    out = output()
    results = run_results(run)
    bundle = run.path("export")
    print_answers(out, run, bundle)
    table, notes = headline(results)
    out.print()
    out.print(table)
    for note in notes:
        out.print(f"  {note}")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in run.stage_seconds().items())
    out.print(f"\nstages: {seconds}; {sum(run.stage_seconds().values()):.0f} s in all")
    out.print(f"bundle: {bundle}\nreport: {run.path('report') / 'report.html'}")


def headline(results: RunResults) -> tuple[Table, list[str]]:
    """BERT-base, teacher, student and the bundle at every speed: quality, size, mean latency, depth; and a note on each kind of line.

    The lines are the report's.
    """
    from pipeline.report.report import headline_lines

    table = Table("", *get_task(results.task).metrics.values(), "MB", "mean ms", "x BERT-base", "mean depth")
    notes: dict[str, str] = {}
    for line in headline_lines(results):
        scores = quality(results.task, line.score)
        table.add_row(
            line.name,
            *scores,
            cell(line.megabytes),
            cell(line.latency_ms, ".2f"),
            cell(line.speed_up),
            line.depth or "",
        )
        notes.setdefault(line.note, line.name.split(",")[0])
    return table, [f"{name}: {note}" for note, name in notes.items()]


def print_answers(out: Console, run: Run, bundle: Path) -> None:
    """The bundle's answers to a few inputs, easy and hard."""
    from pipeline.bundle.opening import Bundle
    from pipeline.runtime.runner import Runner

    runner = Runner(Bundle.open(bundle))
    runner.prewarm()
    for example in spread(run.examples("dev"), 4):
        result = runner.predict(example, "exact")
        asked, said = runner.task.shown(example), runner.task.shown_answer(result)
        out.print(
            f"{asked[:110]}\n  -> {said}  ({result.depth} of {runner.manifest.segments} segments, {result.latency_ms:.1f} ms)"
        )


def spread(examples: list, count: int) -> list:
    """A few examples, evenly from the whole list."""
    return examples[:: max(1, len(examples) // count)][:count]
