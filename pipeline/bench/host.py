"""The benchmark on this computer: each system in a process of its own, all of them taking turns."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pipeline.bench.measurements import BenchReport, Device, Measurement
from pipeline.bench.protocol import WARM_UP, Timing, alternate
from pipeline.bench.reference import reference_program
from pipeline.errors import UserError
from pipeline.manifest import Manifest, read_manifest
from pipeline.model.encoder import EncoderConfig
from pipeline.progress import OnStep, silent
from quantize.size import BERT_BASE, scheme_of

REFERENCE_LENGTH = 128


class WorkerProcess:
    """`pipeline.bench.worker` as a context: started on entering, ended on leaving, whatever happens between."""

    def __init__(self, source: Path, threads: int):
        self.source, self.threads = source, threads

    def __enter__(self) -> WorkerProcess:
        command = [sys.executable, "-m", "pipeline.bench.worker", str(self.source), "--threads", str(self.threads)]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            # torch's own threads have no part in it; idle ones would still wait in a loop.
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

    name: str
    worker: WorkerProcess
    length: int
    depth: int

    def run(self) -> float:
        return self.worker.ask("run", length=self.length, depth=self.depth)["ms"]


def bench_host(
    bundle: str | Path,
    lengths: Sequence[int],
    repeats: int,
    threads: int,
    reference: Literal["bert-base", "none"] = "bert-base",
    on_step: OnStep = silent,
    *,
    reference_length: int = REFERENCE_LENGTH,
    reference_shape: EncoderConfig = BERT_BASE,
) -> BenchReport:
    """Latency, load time, peak memory and size of a bundle at every length and depth, and of the reference at its one length.

    The number of threads is set in ExecuTorch's pool before a program is loaded; XNNPACK uses that pool, torch's has no part in it. It
    may exceed the number of cores, and then measures that.

    Args:
        bundle: with ExecuTorch programs.
        lengths: in tokens; those beyond the bundle's longest are left out.
        repeats: timed runs of each point.
        threads: of every system.
        reference: "bert-base" in float32 (`pipeline.bench.reference`), or "none".
        on_step: told of the reference's export and after each round.
        reference_length: what the reference pads to.
        reference_shape: for tests, a smaller one.

    Raises:
        UserError: no bundle, no ExecuTorch programs, no length that the bundle takes, or a program that cannot be run.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    if not any(program.backend == "executorch" for program in manifest.programs):
        raise UserError("has no ExecuTorch programs, which this computer could run; export the bundle again", file=bundle)
    if repeats < 1 or threads < 1:
        raise UserError(f"{repeats} repeats on {threads} threads cannot be measured; give at least 1 of each")
    taken = [length for length in dict.fromkeys(lengths) if 2 <= length <= manifest.max_length]
    if not taken:
        raise UserError(f"none of {list(lengths)} is from 2 to {manifest.max_length}, the bundle's longest", field="bench.lengths")
    program = reference_program(reference_length, on_step, reference_shape) if reference == "bert-base" else None

    with ExitStack() as processes:
        ours = processes.enter_context(WorkerProcess(bundle, threads))
        loaded = {"pocketbert": ours.ask("load")}
        points = [
            Point(f"pocketbert {length} {depth}", ours, length, depth)
            for length in taken
            for depth in range(1, manifest.segments + 1)
        ]
        if program:
            theirs = processes.enter_context(WorkerProcess(program, threads))
            loaded["bert-base"] = theirs.ask("load")
            points.append(Point("bert-base", theirs, reference_length, reference_shape.layers))
        timings = alternate(points, repeats, WARM_UP, on_step)
        memory = {"pocketbert": ours.ask("memory")}
        if program:
            memory["bert-base"] = theirs.ask("memory")

    def measured(point: Point, system: str, **what: str | int) -> Measurement:
        timing: Timing = timings[point.name]
        return Measurement(
            system=system,
            length=point.length,
            depth=point.depth,
            median_ms=timing.median_ms,
            p95_ms=timing.p95_ms,
            load_ms=loaded[system]["load_ms"],
            peak_memory_bytes=memory[system]["peak_bytes"],
            baseline_memory_bytes=memory[system]["baseline_bytes"],
            runs=len(timing.samples),
            **what,
        )

    results = []
    for point in points:
        if point.worker is ours:
            scheme = scheme_of(manifest, "executorch")
            results.append(
                measured(point, "pocketbert", model=manifest.name, precision=scheme, file_bytes=program_bytes(manifest))
            )
        else:
            name = f"BERT {reference_shape.layers}x{reference_shape.hidden_size}, random weights"
            results.append(
                measured(point, "bert-base", model=name, precision="fp32", file_bytes=program.stat().st_size)
            )
    return BenchReport(device=this_computer(loaded["pocketbert"]["threads"]), results=results)


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
