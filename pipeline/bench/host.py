"""The benchmark on this computer: each system in a process of its own, all of them taking turns."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.bench.documents import BenchReport, Device, Measurement
from pipeline.bench.protocol import WARM_UP, Timing, alternate
from pipeline.bench.reference import reference_program
from pipeline.bench.runtimes.peers import PEERS, Peer, Source, Weights, left_out, peer_sources
from pipeline.bundle.manifest import Manifest, ModelShape, read_manifest
from pipeline.model.encoder import EncoderConfig
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version as installed
from pipeline.support.progress import OnStep, silent
from quantize.size import BERT_BASE, scheme_of

REFERENCE_LENGTH = 128
Reference = Literal["bert-base", "same-width", "none"]


class WorkerProcess:
    """`pipeline.bench.runtimes.worker` as a context: started on entering, ended on leaving, whatever happens between.

    Args:
        system: a name in `pipeline.bench.runtimes.worker.SYSTEMS`.
        source: what it loads.
        bundle: whose inputs it gets.
        threads: that it runs on.
    """

    def __init__(self, system: str, source: Path, bundle: Path, threads: int):
        self.system, self.source, self.bundle, self.threads = system, source, bundle, threads

    def __enter__(self) -> WorkerProcess:
        command = [sys.executable, "-m", "pipeline.bench.runtimes.worker", self.system, str(self.source)]
        command += ["--bundle", str(self.bundle), "--threads", str(self.threads)]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            # torch's own threads have a part in PyTorch's systems alone, which set their number; idle ones would still wait in a loop.
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        return self

    def ask(self, do: str, **request: int) -> dict:
        """One request and its answer. Raises UserError where the program cannot be loaded or run."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            reason = f"killed by signal {-code}, for lack of memory perhaps" if code < 0 else last
            raise UserError(f"the measuring process ended ({reason})", file=self.source)
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def __exit__(self, *exception) -> None:
        with suppress(BrokenPipeError):  # closing writes what a request to a dead process has left in the buffer
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


@dataclass(frozen=True)
class Point:
    """A system of the protocol: one worker at one length and depth."""

    source: Source
    worker: WorkerProcess
    length: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.source.system} {self.source.variant} {self.length} {self.depth}"

    def run(self) -> float:
        return self.worker.ask("run", length=self.length, depth=self.depth)["ms"]

    def answer(self) -> np.ndarray:
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
    peers: Sequence[Peer] = PEERS,
) -> BenchReport:
    """Latency, load time, peak memory and size of a bundle at every length and depth, of the reference at its one length, and of peers.

    Every system has the same number of threads, set in its own runtime. It may exceed the number of cores, and then measures that.

    Args:
        bundle: with ExecuTorch programs.
        lengths: in tokens; those beyond the bundle's longest are left out.
        repeats: timed runs of each point.
        threads: of every system.
        reference: "bert-base" in float32 (`pipeline.bench.reference`); "same-width", as deep as BERT-base and as wide as the bundle's model, which
            then shows what fewer layers, exits and int8 give; or "none".
        on_step: told of exports and after each round.
        reference_length: what the reference pads to.
        reference_shape: for tests, another one.
        weights: the folder of the float student that the bundle was made from, for its peers; None measures none.
        peers: of which those that this computer has the libraries for are measured; the report says which were left out.

    Raises:
        UserError: no bundle, no ExecuTorch programs, no length that the bundle takes, weights of another model, or a program that cannot
            be run.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    if not any(program.backend == "executorch" for program in manifest.programs):
        raise UserError(
            "has no ExecuTorch programs, which this computer could run; export the bundle again", file=bundle
        )
    if repeats < 1 or threads < 1:
        raise UserError(f"{repeats} repeats on {threads} threads cannot be measured; give at least 1 of each")
    taken = tuple(length for length in dict.fromkeys(lengths) if 2 <= length <= manifest.max_length)
    if not taken:
        raise UserError(
            f"none of {list(lengths)} is from 2 to {manifest.max_length}, the bundle's longest", field="bench.lengths"
        )
    student = None if weights is None else Weights(Path(weights), manifest)
    scheme = scheme_of(manifest, "executorch")
    depths = tuple(range(1, manifest.segments + 1))
    sources = [Source("pocketbert", bundle, manifest.name, scheme, program_bytes(manifest), taken, depths)]
    if reference != "none":
        reference_shape = reference_shape or (BERT_BASE if reference == "bert-base" else as_wide(manifest.model))
        program = reference_program(reference_length, on_step, reference_shape)
        name = f"BERT {reference_shape.layers}x{reference_shape.hidden_size}, random weights"
        size, full = program.stat().st_size, (reference_shape.layers,)
        sources.append(Source("bert-base", program, name, "fp32", size, (reference_length,), full))
    if student is not None:
        sources += peer_sources(student, taken, manifest.name, scheme, on_step, peers)

    points, loaded, memory = [], {}, {}
    with ExitStack() as processes:
        for done, source in enumerate(sources):
            on_step("loading", done, len(sources))
            worker = processes.enter_context(WorkerProcess(source.system, source.path, bundle, threads))
            loaded[source] = worker.ask("load", length=source.lengths[0], depth=source.depths[-1])
            points += [Point(source, worker, length, depth) for length in source.lengths for depth in source.depths]
        on_step("loading", len(sources), len(sources))
        differences = compare(points, manifest.segments)
        # The deepest first: what a system warms up with when its turn comes is all that its other points need (`worker.Worker.run`).
        turns = sorted(points, key=lambda point: (sources.index(point.source), -point.depth))
        timings = alternate(turns, repeats, WARM_UP, on_step)
        for point in points:
            if point.source not in memory:
                memory[point.source] = point.worker.ask("memory")

    results = [
        Measurement(
            system=point.source.system,
            model=point.source.model,
            precision=point.source.precision,
            variant=point.source.variant,
            length=point.length,
            depth=point.depth,
            median_ms=timings[point.name].median_ms,
            p5_ms=timings[point.name].p5_ms,
            p95_ms=timings[point.name].p95_ms,
            load_ms=loaded[point.source]["load_ms"],
            peak_memory_bytes=memory[point.source]["peak_bytes"],
            baseline_memory_bytes=memory[point.source]["baseline_bytes"],
            file_bytes=point.source.file_bytes,
            runs=len(timings[point.name].samples),
            difference=differences.get(point.name),
        )
        for point in winners(points, timings)
    ]
    return BenchReport(
        device=this_computer(loaded[sources[0]]["threads"]),
        results=results,
        left_out=left_out(peers) if student is not None else {},
    )


def as_wide(shape: ModelShape) -> EncoderConfig:
    """BERT-base's depth and vocabulary in another model's width."""
    return BERT_BASE.with_(hidden_size=shape.hidden_size, heads=shape.heads, intermediate_size=shape.intermediate_size)


def compare(points: Sequence[Point], depth: int) -> dict[str, float]:
    """By name, how far the answers at full depth are from torch-eager's at the same length; empty if that is not measured.

    Returns:
        the largest difference of two logits as a share of the largest logit.
    """
    exact = {point.length: point.answer() for point in points if point.source.system == "torch-eager"}
    differences = {}
    for point in points:
        if point.source.system != "bert-base" and point.depth == depth and point.length in exact:
            expected = exact[point.length]
            differences[point.name] = float(np.abs(point.answer() - expected).max() / np.abs(expected).max())
    return differences


def winners(points: Sequence[Point], timings: Mapping[str, Timing]) -> list[Point]:
    """All points but, of contending variants of one system at one length, the slower ones."""

    def is_beaten(point: Point) -> bool:
        return point.source.contender and any(
            other.source.contender
            and (other.source.system, other.length) == (point.source.system, point.length)
            and (timings[other.name].median_ms, other.name) < (timings[point.name].median_ms, point.name)
            for other in points
        )

    return [point for point in points if not is_beaten(point)]


def program_bytes(manifest: Manifest) -> int:
    """The file with the ExecuTorch programs."""
    names = {program.file for program in manifest.programs if program.backend == "executorch"}
    return sum(file.bytes for file in manifest.files if file.path in names)


def this_computer(threads: int) -> Device:
    """What the measurements were made on."""
    return Device(
        kind="host",
        system=platform.platform(),
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        python=platform.python_version(),
        torch=version("torch"),
        executorch=version("executorch"),
        **{name: found for name in ("onnxruntime", "ai-edge-litert") if (found := installed(name))},
    )


def processor_name() -> str:
    """The processor as Linux calls it, or as Python does elsewhere; the architecture where neither knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
