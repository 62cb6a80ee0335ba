"""Fills the tables of README.md and RESULTS.md from `docs/results`, and draws the pictures from the same figures.

`python docs/figures.py` writes them. With `--check` it writes nothing, and fails where a file differs from what it
would write. A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import pictures  # noqa: E402  (needs the path above)
from measurements import MEGABYTE, Measured, bundle_measurements, read, run_measurements  # noqa: E402

from pipeline.tasks import get_task  # noqa: E402

PAGES = ("README.md", "RESULTS.md")
TABLE = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
MODELS = {
    "teacher": "teacher, float32, PyTorch",
    "student": "student, float32, PyTorch",
    "quantized": "student, int8, PyTorch",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") + "\n" for line in lines)


def score_cell(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} x"


def points(value: float | None) -> str:
    """Returns a loss in points; a gain is negative."""
    return "" if value is None else f"{100 * value:.2f}".replace("-0.00", "0.00")


def task_table(measured: Measured) -> str:
    """Returns one row for each model in PyTorch and for each speed of the bundle."""
    scores = get_task(measured.evaluation.task).metrics
    depth = len(measured.evaluation.speeds[0].exits)
    header = [
        f"{measured.evaluation.examples:,} examples",
        *scores.values(),
        "points promised",
        "points lost",
        f"segments of {depth}",
        "left at exit 1, 2, ...",
        "mean ms",
        "against BERT-base",
    ]
    rows = [
        [MODELS[name], *(score_cell(getattr(model, score)) for score in scores), *[""] * 6]
        for name, model in measured.models.items()
    ]
    for row in measured.rows():
        result = row.result
        rows.append([
            f"bundle, {row.name}", *(score_cell(getattr(result, score)) for score in scores),
            "" if row.promised is None else f"{100 * row.promised:g}", points(row.loss) if row.promised else "",
            f"{result.mean_depth:.2f}", " ".join(map(str, result.exits)), milliseconds(result.latency_ms.mean),
            times(row.speed_up),
        ])  # fmt: skip
    used = [index for index in range(len(header)) if any(row[index] for row in rows)]
    return markdown([header[index] for index in used], [[row[index] for index in used] for row in rows])


def overview() -> str:
    """Returns the table of the README: the trained bundles at each speed."""
    rows = []
    for title, measured in (("SST-2", bundle_measurements("sst2")), ("SQuAD v1.1", bundle_measurements("squad"))):
        for row in measured.rows():
            result = row.result
            score = f"{result.accuracy:.3f} accuracy" if result.accuracy is not None else f"{result.f1:.3f} F1"
            promise = (
                f" (loses at most {100 * row.promised:g} {'point' if row.promised == 0.01 else 'points'})"
                if row.promised
                else ""
            )
            rows.append([
                f"{title}, {row.name}{promise}", score, f"{measured.program_bytes / MEGABYTE:.1f} MB",
                milliseconds(result.latency_ms.mean), times(row.speed_up),
                f"{result.mean_depth:.2f} of {len(result.exits)}",
            ])  # fmt: skip
    return markdown(["", "score", "`model.pte`", "mean ms", "faster than BERT-base", "segments run"], rows)


def demo_overview() -> str:
    """Returns the scores and times of the demo at full depth and `exact`."""
    rows = []
    for title, name in (("reviews", "demo-classification"), ("passages", "demo-qa")):
        measured = run_measurements(name)
        for row in list(measured.rows())[:2]:
            result = row.result
            score = f"{result.accuracy:.4f} accuracy" if result.accuracy is not None else f"{result.f1:.4f} F1"
            rows.append([
                f"{title}, {row.name}", score, f"{result.mean_depth:.2f} of {len(result.exits)}",
                milliseconds(result.latency_ms.mean), times(row.speed_up),
            ])  # fmt: skip
    return markdown(["", "score", "segments run", "mean ms", "faster than BERT-base"], rows)


def stage_table() -> str:
    """Returns the seconds of each stage of the demo runs."""
    runs = [run_measurements(name).stage_seconds for name in ("demo-classification", "demo-qa")]
    rows = [[stage, *(f"{run[stage]:.0f}" for run in runs)] for stage in runs[0]]
    rows.append(["all", *(f"{sum(run.values()):.0f}" for run in runs)])
    return markdown(["seconds", "reviews", "passages"], rows)


def length_table() -> str:
    """Returns the milliseconds of SST-2's programs at each length and depth."""
    bench = bundle_measurements("sst2").bench
    if bench is None:
        raise FileNotFoundError("docs/results/sst2-bench.json is missing; run docs/measure.sh")
    own = bench.measurements_of("pocketbert")
    lengths = sorted({row.length for row in own})
    rows = []
    for depth in sorted({row.depth for row in own}):
        times_by_length = {row.length: row.median_ms for row in own if row.depth == depth}
        rows.append([f"{depth} of 6 segments", *(milliseconds(times_by_length[length]) for length in lengths)])
    for row in bench.measurements_of("bert-base"):
        cells = [milliseconds(row.median_ms) if length == row.length else "" for length in lengths]
        rows.append(["BERT-base, float32, padded", *cells])
    return markdown(["ms at a number of tokens", *map(str, lengths)], rows)


def size_table() -> str:
    """Returns the bytes of SST-2's bundle by part for each runtime."""
    size = read("sst2-size")
    parts = {"embeddings": "embeddings", "layers": "layers", "heads": "exit heads", "vocabulary": "vocabulary"}
    rows = [
        [target["backend"], target["scheme"], *(f"{target['parts'][part] / MEGABYTE:.2f}" for part in parts),
         f"{target['bytes'] / MEGABYTE:.1f}", f"{target['ratio']:.1f} x"]
        for target in size["targets"]
    ]  # fmt: skip
    return markdown(["megabytes for", "scheme", *parts.values(), "all", "smaller than BERT-base"], rows)


def machine(measured: Measured) -> str:
    """Returns a sentence that names the processor and the threads of a measurement."""
    if measured.bench is None:
        raise FileNotFoundError("the benchmark's JSON is missing; run docs/measure.sh")
    device = measured.bench.device
    threads = "one thread" if device.threads == 1 else f"{device.threads} threads"
    return f"Processor: {device.processor}, {device.cores} cores, {threads}. It is a computer, not a phone.\n"


TABLES: dict[str, Callable[[], str]] = {
    "overview": overview,
    "demo": demo_overview,
    "sst2": lambda: task_table(bundle_measurements("sst2")),
    "squad": lambda: task_table(bundle_measurements("squad")),
    "demo-classification": lambda: task_table(run_measurements("demo-classification")),
    "demo-qa": lambda: task_table(run_measurements("demo-qa")),
    "stages": stage_table,
    "lengths": length_table,
    "size": size_table,
    "machine": lambda: machine(bundle_measurements("sst2")),
    "demo-machine": lambda: machine(run_measurements("demo-classification")),
}


def filled(text: str) -> str:
    """Returns a page with every table as the results have it. KeyError names a table that does not exist."""
    return TABLE.sub(lambda match: match[1] + TABLES[match["name"]]() + match[3], text)


def outputs() -> dict[Path, str]:
    """Returns every file that is made from the results, with its contents."""
    root = DOCS.parent
    files = {root / page: filled((root / page).read_text(encoding="utf-8")) for page in PAGES}
    return files | {DOCS / name: text for name, text in pictures.draw(bundle_measurements("sst2")).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    for path, text in outputs().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.exit(f"{path.relative_to(DOCS.parent)} differs from docs/results; run: python docs/figures.py")
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
