"""Exports BERT-base ahead of the benchmark, in a process of its own, while other work leaves a core idle."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.bench.cache import CACHE_VARIABLE, cache_folder
from pipeline.bench.runtimes.bert_base import bert_base_program, file_name
from pipeline.model.encoder import EncoderConfig
from pipeline.support.progress import OnStep, silent
from quantize.size import BERT_BASE

FEWEST_CORES = 2  # on one core the two would only take turns
NICENESS = 5  # the work at hand goes first
ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # of the packages, whatever they are called

_exports: dict[int, subprocess.Popen[bytes]] = {}  # those that this process started, by length in tokens


def start_export(length: int, shape: EncoderConfig = BERT_BASE) -> bool:
    """Starts to export BERT-base for inputs of some length, unless the cache has it. Returns whether it started.

    The process takes 3 GB of memory and about as long as the export of a small bundle. Its result is a file in the
    cache, which appears when it is complete. So nothing is lost if the process is killed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < FEWEST_CORES or length in _exports or (cache_folder() / file_name(length, shape)).exists():
        return False
    _exports[length] = subprocess.Popen(
        [sys.executable, "-m", __name__, str(length), json.dumps(asdict(shape))],
        cwd=ROOT,  # Python looks for modules in the working folder first, and the user's may hold some named like ours
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", CACHE_VARIABLE: str(cache_folder().resolve())},
    )
    return True


def wait_for_export(length: int, on_step: OnStep = silent) -> None:
    """Waits until an export that was started has ended, so that it disturbs no measurement.

    If it failed, the benchmark exports BERT-base itself and says what is wrong.
    """
    process = _exports.pop(length, None)
    if process is not None:
        on_step("exporting BERT-base", 0, 1)
        process.wait()
        on_step("exporting BERT-base", 1, 1)


@atexit.register
def stop_exports() -> None:
    """Ends all exports that were started and were not waited for, because the run ends before its measurements."""
    while _exports:
        _, process = _exports.popitem()
        process.kill()
        process.wait()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    bert_base_program(int(sys.argv[1]), EncoderConfig(**json.loads(sys.argv[2])))
