"""The table of all benchmarked systems. Its order is the order of measurements and reports."""

from __future__ import annotations

from pipeline.bench.runtimes import bert_base, executorch, litert, onnxruntime, pocketbert, pytorch
from pipeline.bench.runtimes.system import System

RUNTIMES = (pocketbert, bert_base, executorch, onnxruntime, litert, pytorch)

SYSTEMS: dict[str, System] = {system.name: system for runtime in RUNTIMES for system in runtime.SYSTEMS}
PEERS: tuple[System, ...] = tuple(system for system in SYSTEMS.values() if system.variants)

CONVERTER_PACKAGES = tuple(
    dict.fromkeys(package for system in SYSTEMS.values() for package in system.converter_packages)
)
RUNTIME_PACKAGES = tuple(
    dict.fromkeys(system.runtime_package for system in SYSTEMS.values() if system.runtime_package is not None)
)
