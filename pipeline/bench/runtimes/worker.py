"""The process that measures one system. It reads requests as JSON lines and answers with JSON lines.

    python -m pipeline.bench.runtimes.worker SYSTEM PATH --threads N --bundle BUNDLE

    {"do": "load", "length": L, "depth": D}      -> {"load_ms", "threads"}
    {"do": "answer", "length": L, "depth": D}    -> {"answer": [numbers]}
    {"do": "run", "length": L, "depth": D}       -> {"ms"}
    {"do": "memory"}                             -> {"baseline_bytes", "peak_bytes"}

Every system has its own process, since load time and peak memory can only be measured for a whole process. The process
imports the runtime of its system and no other. The inputs come from the bundle's manifest, so all systems get the same
token ids.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.runtimes.system import RunOnce, WorkerProgram
from pipeline.bench.runtimes.table import SYSTEMS
from pipeline.bundle.manifest import read_manifest
from pipeline.support.errors import UserError

# A core that has waited is up to 2.4 times slower for 20 ms. The other systems have also evicted the weights from the
# caches, and these come back only over several runs. So a system that has waited longer than WAITED_SECONDS first runs
# untimed for WARM_UP_SECONDS.
WAITED_SECONDS, WARM_UP_SECONDS = 0.01, 0.1


def peak_memory() -> int:
    """Returns the peak resident set of this process in bytes, on Linux since the last `reset_peak_memory`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Sets the peak to what is held now, since imports briefly need more memory than they keep. Works on Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Worker:
    """Answers the requests for one program. A method's name is the `do` of its request."""

    def __init__(self, program: WorkerProgram):
        self.program = program
        self.prepared: dict[tuple[int, int], RunOnce] = {}
        self.baseline_bytes = 0
        self.last_run_ended = float("-inf")

    def load(self, length: int, depth: int) -> dict[str, Any]:
        """Opens the program and runs it once. That is the time which an app waits for its first answer."""
        reset_peak_memory()
        self.baseline_bytes = peak_memory()
        started = time.perf_counter()
        self.program.load()
        self.run_once_at(length, depth)()
        return {"load_ms": (time.perf_counter() - started) * 1000.0, "threads": self.program.threads}

    def answer(self, length: int, depth: int) -> dict[str, Any]:
        """Returns all numbers of one answer."""
        outputs = self.run_once_at(length, depth)()
        return {"answer": [value for output in outputs for value in torch.as_tensor(output).flatten().tolist()]}

    def run(self, length: int, depth: int) -> dict[str, Any]:
        """Times one run. One untimed run comes before it, or `WARM_UP_SECONDS` of them if the system has waited."""
        run_once = self.run_once_at(length, depth)
        warm_up_started = time.perf_counter()
        has_waited = warm_up_started - self.last_run_ended > WAITED_SECONDS
        warm_up_ends = warm_up_started + (WARM_UP_SECONDS if has_waited else 0.0)
        run_once()
        while time.perf_counter() < warm_up_ends:
            run_once()
        started = time.perf_counter()
        run_once()
        self.last_run_ended = time.perf_counter()
        return {"ms": (self.last_run_ended - started) * 1000.0}

    def memory(self) -> dict[str, Any]:
        """Returns the memory before loading and the peak since then."""
        return {"baseline_bytes": self.baseline_bytes, "peak_bytes": peak_memory()}

    def run_once_at(self, length: int, depth: int) -> RunOnce:
        """Returns the function that runs the program at a length and depth; its inputs are made on the first call."""
        if (length, depth) not in self.prepared:
            self.prepared[length, depth] = self.program.prepare(length, depth)
        return self.prepared[length, depth]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    arguments = parser.parse_args()
    # Native libraries print on standard output, which carries the answers. So the answers keep it, and the libraries
    # get stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # As `timeit` does. An app has no garbage collector, and one pass over torch's objects takes longer than a short
    # run.
    gc.disable()
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                manifest = read_manifest(arguments.bundle, check_files=False)
                program = SYSTEMS[arguments.system].program
                worker = Worker(program(arguments.path, arguments.threads, manifest))
            answer = getattr(worker, request.pop("do"))(**request)
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
