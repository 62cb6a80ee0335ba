"""The files of a bundle that Core ML computes, each read at most once."""

from __future__ import annotations

from pathlib import Path

from pipeline.verify.evaluator.delegate import DelegateFile, load_delegate_file
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.evaluator.program import Package


class SavedFiles:
    """Reads a bundle's files when they are first needed. All checks of one verification share them.

    The methods raise UserError if a file cannot be read.
    """

    def __init__(self, bundle: str | Path):
        self.bundle = Path(bundle)
        self._packages: dict[str, Package] = {}
        self._delegates: dict[str, DelegateFile] = {}

    def package(self, file: str) -> Package:
        """Returns a package by its path in the bundle."""
        if file not in self._packages:
            self._packages[file] = load_package(self.bundle / file)
        return self._packages[file]

    def delegate(self, file: str) -> DelegateFile:
        """Returns a `.pte` for Core ML by its path in the bundle."""
        if file not in self._delegates:
            self._delegates[file] = load_delegate_file(self.bundle / file)
        return self._delegates[file]
