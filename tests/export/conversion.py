"""Converts one program to a package of its own, for tests that evaluate a single program."""

from __future__ import annotations

from pathlib import Path

from pipeline.export.coreml import convert_structure
from pipeline.export.packages import write_package
from pipeline.export.program_modules import ProgramModule, StoredWeights


def convert(program: ProgramModule, length: int, target: str, precision: str, package: Path) -> None:
    """Writes a program at one length as a package with the function `main`; arguments as in `convert_structure`."""
    structure = convert_structure(program, length, target, precision)
    structure.fill(StoredWeights(program, precision).for_length(length))
    write_package({"main": structure}, package)
