"""Describes the computer that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from pipeline.bench.documents import Device
from pipeline.bench.runtimes.table import RUNTIME_PACKAGES
from pipeline.support.packages import installed_version


def this_computer(threads: int) -> Device:
    """Returns processor, operating system and library versions. Every system ran on `threads` threads."""
    runtime_versions = {package: installed_version(package) for package in RUNTIME_PACKAGES}
    return Device(
        kind="host",
        system=platform.platform(),
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        python=platform.python_version(),
        torch=version("torch"),
        executorch=version("executorch"),
        **{package: found for package, found in runtime_versions.items() if found is not None},
    )


def processor_name() -> str:
    """Returns Linux's name of the processor, elsewhere Python's, or the architecture if neither knows it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
