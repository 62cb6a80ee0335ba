"""Starts the worker process of one system and exchanges requests and answers with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pipeline.support.errors import UserError

ENDING_SECONDS = 10
# This package's name differs between the checkout and the wheel (see setup.py), and so does the folder of its root.
PACKAGE = __name__.rpartition(".")[0]
WORKER = f"{PACKAGE}.runtimes.worker"
ROOT = Path(__file__).resolve().parents[PACKAGE.count(".") + 1]


class WorkerProcess:
    """A context manager around `pipeline.bench.runtimes.worker`: entering starts the process, leaving always ends it.

    Args:
        system: a name in `pipeline.bench.runtimes.table.SYSTEMS`.
        path: the program that it loads.
        bundle: the bundle whose manifest describes the inputs.
        threads: number of threads that the program runs on.
    """

    def __init__(self, system: str, path: Path, bundle: Path, threads: int):
        self.system, self.path, self.bundle, self.threads = system, path, bundle, threads

    def __enter__(self) -> WorkerProcess:
        command = [sys.executable, "-m", WORKER, self.system, str(self.path.resolve())]
        command += ["--bundle", str(self.bundle.resolve()), "--threads", str(self.threads)]
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            # Python looks for modules in the working folder first. The user's may hold modules named like ours.
            cwd=ROOT,
            # Only PyTorch's systems use torch's own threads, and set their number. In other processes idle threads
            # would spin in a loop.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        return self

    def ask(self, do: str, **arguments: int) -> dict[str, Any]:
        """Sends one request and returns its answer.

        Raises:
            UserError: the program cannot be loaded or run, or the process has ended.
        """
        try:
            self._requests.write(json.dumps({"do": do, **arguments}) + "\n")
            self._requests.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"the measuring process ended ({self._exit_reason()})", file=self.path)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def _exit_reason(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"killed by signal {-code}, perhaps for lack of memory"
        self._stderr.seek(0)
        return (self._stderr.read().strip().splitlines() or ["it printed nothing"])[-1]

    def __exit__(self, *exception: object) -> None:
        with suppress(BrokenPipeError):  # closing flushes the buffer, which may hold a request to a dead process
            self._requests.close()
        self._answers.close()
        try:
            self._process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()
