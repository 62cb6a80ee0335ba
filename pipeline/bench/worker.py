"""The process that one benchmarked system has to itself: JSON lines in, JSON lines out.

    python -m pipeline.bench.worker BUNDLE_OR_PTE --threads N

    {"do": "load"}                            -> {"load_ms", "threads"}
    {"do": "run", "length": L, "depth": D}    -> {"ms"}
    {"do": "memory"}                          -> {"baseline_bytes", "peak_bytes"}

A process of its own, because load time and peak memory are those of a process. It imports what an app has to and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifest import Manifest, Program, read_manifest
from pipeline.runtime.programs import MethodFile

METHOD = "forward"  # of a file that is no bundle
SEED = 0


class BundlePrograms:
    """A bundle's embedding and segments."""

    def __init__(self, bundle: Path, threads: int):
        self.manifest = read_manifest(bundle, check_files=False)
        self.programs = [self.manifest.program("embed")]
        self.programs += [self.manifest.program(f"segment_{index}") for index in range(self.manifest.segments)]
        self.file = MethodFile(bundle / self.programs[0].file, threads)
        for program in self.programs:
            self.file.load(program.method)

    def prepare(self, length: int, depth: int) -> Callable[[], None]:
        """A run over `depth` segments on `length` random ids; all of the inputs that are not computed on the way are made here."""
        embed, *segments = self.programs
        fixed = [self.inputs(program, length) for program in (embed, *segments[:depth])]

        def run() -> None:
            hidden = self.file.run(embed.method, fixed[0])[0]
            for program, inputs in zip(segments[:depth], fixed[1:]):
                hidden = self.file.run(program.method, [hidden if each is None else each for each in inputs])[0]

        return run

    def inputs(self, program: Program, length: int) -> list[Tensor | None]:
        """An input for each that the manifest lists; None for the hidden states of the program before. A bias of 0 keeps a token."""
        made: list[Tensor | None] = []
        for tensor in program.inputs:
            shape = [length if size == "length" else size for size in tensor.shape]
            if tensor.name == "hidden":
                made.append(None)
            elif tensor.name == "input_ids":
                made.append(random_ids(self.manifest, shape).to(getattr(torch, tensor.dtype)))
            else:
                made.append(torch.zeros(shape, dtype=getattr(torch, tensor.dtype)))
        return made


def random_ids(manifest: Manifest, shape: list[int]) -> Tensor:
    """Valid ids, the same each time."""
    return torch.randint(0, manifest.model.vocab_size, shape, generator=torch.Generator().manual_seed(SEED))


class WholeProgram:
    """A `.pte` with one method that takes ids and a mask of one fixed length, see `pipeline.bench.reference`."""

    VOCABULARY = 1000  # ids below it are valid in every vocabulary of BERT's; which ids they are does not change the work

    def __init__(self, path: Path, threads: int):
        self.file = MethodFile(path, threads)
        self.file.load(METHOD)

    def prepare(self, length: int, depth: int) -> Callable[[], None]:
        """One run; `length` must be that of the program. There is only one depth."""
        ids = torch.randint(0, self.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(SEED))
        inputs = [ids, torch.ones(1, length, dtype=torch.int64)]
        return lambda: self.file.run(METHOD, inputs)


def peak_memory() -> int:
    """Bytes: the greatest resident set of this process so far, or since `forget_peak` where that is known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Lets the peak start from what is held now: imports need more for a moment than they keep. Only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Worker:
    """Answers requests. The program is loaded on the first one that asks for it."""

    def __init__(self, source: Path, threads: int):
        self.source, self.threads = source, threads
        self.system: BundlePrograms | WholeProgram | None = None
        self.runs: dict[tuple[int, int], Callable[[], None]] = {}
        self.baseline = 0

    def load(self) -> dict:
        forget_peak()
        self.baseline = peak_memory()
        started = time.perf_counter()
        kind = BundlePrograms if self.source.is_dir() else WholeProgram
        self.system = kind(self.source, self.threads)
        return {"load_ms": (time.perf_counter() - started) * 1000.0, "threads": self.system.file.threads}

    def run(self, length: int, depth: int) -> dict:
        """One timed run, after one that is not: whoever had the turn before has left nothing of this system in the caches."""
        if (length, depth) not in self.runs:
            self.runs[length, depth] = self.system.prepare(length, depth)
        work = self.runs[length, depth]
        work()
        started = time.perf_counter()
        work()
        return {"ms": (time.perf_counter() - started) * 1000.0}

    def memory(self) -> dict:
        return {"baseline_bytes": self.baseline, "peak_bytes": peak_memory()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # Native libraries print to the process' standard output, which is the channel: keep it, and give them stderr instead.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(arguments.source, arguments.threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=channel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
