"""All checks of a bundle, and the gate that fails when one of them does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.bundle.conformance import read_conformance
from pipeline.bundle.manifest import read_manifest
from pipeline.names import APPLE_BACKENDS
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.verify.checks import Check


def verify_bundle(bundle: str | Path, on_step: OnStep = silent) -> list[Check]:
    """Runs every program of a bundle, from its saved files, and compares it with the model it came from.

    ExecuTorch programs run in ExecuTorch; those that Core ML computes, which only a Mac can run, in coremltools' own operator semantics.

    Raises:
        UserError: if the bundle or a file of it cannot be read. A check out of tolerance is returned, not raised.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    conformance = read_conformance(bundle)
    backends = {program.backend for program in manifest.programs}
    checks: list[Check] = []
    if "executorch" in backends:
        from pipeline.verify.executorch_parity import check_executorch

        checks += check_executorch(bundle, manifest, conformance, on_step)
    for backend in APPLE_BACKENDS:
        if backend in backends:
            from pipeline.verify.coreml_parity import check_coreml

            checks += check_coreml(bundle, manifest, conformance, on_step, backend=backend)
    return checks


def require(checks: Sequence[Check], report: Path) -> None:
    """Raises UserError naming the first check out of tolerance; `report` is where all of them can be read."""
    if said := failure(checks):
        raise UserError(f"{said}; the bundle does not compute what its model does, see the list", file=report)


def failure(checks: Sequence[Check]) -> str | None:
    """How many checks failed, and the first of them; None where all passed."""
    failed = [check for check in checks if not check.passed]
    return f"{len(failed)} of {len(checks)} checks failed, first {failed[0]}" if failed else None
