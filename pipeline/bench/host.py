"""The benchmark on this computer: every system has its own process, and all of them take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.bench.computer import this_computer
from pipeline.bench.documents import BenchReport, Measurement
from pipeline.bench.protocol import WARM_UP_ROUNDS, Timing, alternate
from pipeline.bench.runtimes.bert_base import bert_base_program
from pipeline.bench.runtimes.peers import peer_obstacles, peer_sources, student_weights
from pipeline.bench.runtimes.system import ProgramSource, System
from pipeline.bench.runtimes.table import PEERS
from pipeline.bench.worker_process import WorkerProcess
from pipeline.bundle.manifest import Manifest, ModelShape, read_manifest
from pipeline.model.encoder import EncoderConfig
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.size import BERT_BASE, scheme_of

REFERENCE_LENGTH = 128  # tokens
Reference = Literal["bert-base", "same-width", "none"]


@dataclass(frozen=True)
class TimedCase:
    """One program at one length in tokens and one depth, in the process that has loaded it."""

    source: ProgramSource
    worker: WorkerProcess
    length: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.source.system} {self.source.variant} {self.length} {self.depth}"

    def run(self) -> float:
        """Runs the program once and returns its milliseconds."""
        return self.worker.ask("run", length=self.length, depth=self.depth)["ms"]

    def answer(self) -> np.ndarray:
        """Returns the logits as one row of numbers."""
        return np.asarray(self.worker.ask("answer", length=self.length, depth=self.depth)["answer"])


def bench_host(
    bundle: str | Path,
    lengths: Sequence[int],
    repeats: int,
    threads: int,
    reference: Reference = "bert-base",
    on_step: OnStep = silent,
    *,
    reference_length: int = REFERENCE_LENGTH,
    reference_shape: EncoderConfig | None = None,
    weights: str | Path | None = None,
    peers: Sequence[System] = PEERS,
) -> BenchReport:
    """Measures latency, load time, peak memory and size of a bundle, of the reference, and of the bundle's peers.

    The bundle is measured at every length and depth, the reference at one length. Every system runs on the same number
    of threads, set in its own runtime. If that is more than the computer has cores, the results show what it costs.

    Args:
        bundle: a bundle with ExecuTorch programs.
        lengths: in tokens; lengths that the bundle does not take are skipped.
        repeats: timed runs of each program at each length and depth.
        threads: number of threads of every system.
        reference: "bert-base" is BERT-base in float32 (`pipeline.bench.runtimes.bert_base`). "same-width" is as deep as
            BERT-base and as wide as the bundle's model, so it shows what fewer layers, exits and int8 gain. "none"
            measures no reference.
        on_step: called during exports and after each round.
        reference_length: the reference's inputs are padded to this many tokens.
        reference_shape: replaces the reference's shape in tests.
        weights: the folder of the float32 student that the bundle was made from. None measures no peers.
        peers: candidates; those that this computer cannot run are left out, and the report says why.

    Raises:
        UserError: there is no bundle, it has no ExecuTorch programs, or it takes none of the lengths. Or the weights
            are of another model, or a program cannot be run.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    if not any(program.backend == "executorch" for program in manifest.programs):
        raise UserError(
            "has no ExecuTorch programs, which this computer could run; export the bundle again", file=bundle
        )
    if repeats < 1 or threads < 1:
        raise UserError(f"{repeats} repeats on {threads} threads measure nothing; give at least 1 of each")
    measured_lengths = tuple(length for length in dict.fromkeys(lengths) if 2 <= length <= manifest.max_length)
    if not measured_lengths:
        raise UserError(
            f"none of {list(lengths)} is from 2 to {manifest.max_length}, the bundle's longest", field="bench.lengths"
        )
    student = None if weights is None else student_weights(Path(weights), manifest)
    sources = [bundle_source(bundle, manifest, measured_lengths)]
    if reference != "none":
        shape = reference_shape or (BERT_BASE if reference == "bert-base" else bert_base_as_wide_as(manifest.model))
        sources.append(reference_source(shape, reference_length, on_step))
    if student is not None:
        precision = scheme_of(manifest, "executorch")
        sources += peer_sources(student, measured_lengths, manifest.name, precision, on_step, peers)

    cases: list[TimedCase] = []
    loaded: dict[ProgramSource, dict[str, Any]] = {}
    memory: dict[ProgramSource, dict[str, Any]] = {}
    with ExitStack() as processes:
        for done, source in enumerate(sources):
            on_step("loading", done, len(sources))
            worker = processes.enter_context(WorkerProcess(source.system, source.path, bundle, threads))
            loaded[source] = worker.ask("load", length=source.lengths[0], depth=source.depths[-1])
            cases += [TimedCase(source, worker, length, depth) for length in source.lengths for depth in source.depths]
        on_step("loading", len(sources), len(sources))
        differences = differences_from_eager(cases, manifest.segments)
        # The deepest case of a system runs first. Its warm-up then serves the system's other cases, too
        # (`worker.Worker.run`).
        turns = sorted(cases, key=lambda case: (sources.index(case.source), -case.depth))
        timings = alternate(turns, repeats, WARM_UP_ROUNDS, on_step)
        for case in cases:
            if case.source not in memory:
                memory[case.source] = case.worker.ask("memory")

    results = [
        Measurement(
            system=case.source.system,
            model=case.source.model,
            precision=case.source.precision,
            variant=case.source.variant,
            length=case.length,
            depth=case.depth,
            median_ms=timings[case.name].median_ms,
            p5_ms=timings[case.name].p5_ms,
            p95_ms=timings[case.name].p95_ms,
            load_ms=loaded[case.source]["load_ms"],
            peak_memory_bytes=memory[case.source]["peak_bytes"],
            baseline_memory_bytes=memory[case.source]["baseline_bytes"],
            file_bytes=case.source.file_bytes,
            runs=len(timings[case.name].samples),
            difference=differences.get(case.name),
        )
        for case in without_slower_variants(cases, timings)
    ]
    return BenchReport(
        device=this_computer(loaded[sources[0]]["threads"]),
        results=results,
        left_out=peer_obstacles(peers) if student is not None else {},
    )


def bundle_source(bundle: Path, manifest: Manifest, lengths: tuple[int, ...]) -> ProgramSource:
    """Describes the bundle's own programs, measured at every depth."""
    files = {program.file for program in manifest.programs if program.backend == "executorch"}
    return ProgramSource(
        system="pocketbert",
        path=bundle,
        model=manifest.name,
        precision=scheme_of(manifest, "executorch"),
        file_bytes=sum(file.bytes for file in manifest.files if file.path in files),
        lengths=lengths,
        depths=tuple(range(1, manifest.segments + 1)),
    )


def reference_source(shape: EncoderConfig, length: int, on_step: OnStep) -> ProgramSource:
    """Makes the reference's program, or finds it in the cache."""
    path = bert_base_program(length, shape, on_step)
    return ProgramSource(
        system="bert-base",
        path=path,
        model=f"BERT {shape.layers}x{shape.hidden_size}, random weights",
        precision="fp32",
        file_bytes=path.stat().st_size,
        lengths=(length,),
        depths=(shape.layers,),
    )


def bert_base_as_wide_as(shape: ModelShape) -> EncoderConfig:
    """Returns BERT-base's depth and vocabulary with the width of another model."""
    return BERT_BASE.with_(hidden_size=shape.hidden_size, heads=shape.heads, intermediate_size=shape.intermediate_size)


def differences_from_eager(cases: Sequence[TimedCase], full_depth: int) -> dict[str, float]:
    """Compares the answers at full depth with those of torch-eager at the same length.

    Returns:
        the largest difference of two logits as a share of the largest logit, by the name of the case. It is empty if
            torch-eager is not measured.
    """
    eager_answers = {case.length: case.answer() for case in cases if case.source.system == "torch-eager"}
    differences = {}
    for case in cases:
        if case.source.system != "bert-base" and case.depth == full_depth and case.length in eager_answers:
            expected = eager_answers[case.length]
            differences[case.name] = float(np.abs(case.answer() - expected).max() / np.abs(expected).max())
    return differences


def without_slower_variants(cases: Sequence[TimedCase], timings: Mapping[str, Timing]) -> list[TimedCase]:
    """Drops the slower variants at each length, of those systems that report only their fastest one."""

    def rank(case: TimedCase) -> tuple[float, str]:
        return timings[case.name].median_ms, case.name

    def is_slower(case: TimedCase) -> bool:
        return case.source.fastest_only and any(
            (other.source.system, other.length) == (case.source.system, case.length) and rank(other) < rank(case)
            for other in cases
        )

    return [case for case in cases if not is_slower(case)]
