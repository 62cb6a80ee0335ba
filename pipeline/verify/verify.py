"""All checks of a bundle in one call, and the gate that fails when one of them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle.conformance import read_conformance
from pipeline.bundle.manifest import Manifest, read_manifest
from pipeline.bundle.opening import Bundle
from pipeline.data.examples import ClassificationExample, Example
from pipeline.model.exit_model import ExitModel
from pipeline.names import APPLE_BACKENDS
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.agreement import check_agreement, check_coreml_labels
from pipeline.verify.checks import Check, EngineWarning, MacReport
from pipeline.verify.coreml_modules import check_against_model
from pipeline.verify.coreml_parity import check_coreml
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.executorch_parity import check_executorch, check_tokens
from pipeline.verify.neural_engine import lint_bundle
from pipeline.verify.on_mac import verify_on_mac


@dataclass(frozen=True)
class AnsweredExamples:
    """Labelled examples, and what the quantized model in PyTorch answers to each at full depth.

    Attributes:
        examples: those to run, in the form of the bundle's task.
        answers: in the form of `TaskDefinition.answer`, as JSON gives it back: label indices, numbers in the unit of
            the data, answer texts.
    """

    examples: tuple[Example, ...]
    answers: tuple[Any, ...]


class Verification(Document):
    """The result of `verify`.

    Attributes:
        checks: every comparison, those made by Core ML itself among them.
        warnings: operators that may not run on the Neural Engine. They fail nothing.
        mac: whether Core ML itself ran, and where it would run each operator.
    """

    checks: list[Check]
    warnings: list[EngineWarning]
    mac: MacReport

    @property
    def passed(self) -> bool:
        """Whether there are checks, and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def failure(self) -> str | None:
        """Returns how many checks failed, and the first of them; None where all passed."""
        failed = [check for check in self.checks if not check.passed]
        return f"{len(failed)} of {len(self.checks)} checks failed, first {failed[0]}" if failed else None

    def require(self, report: Path) -> None:
        """Raises UserError with the first failed check; `report` is the file in which all of them can be read."""
        if message := self.failure():
            raise UserError(f"{message}; the bundle does not compute what its model does, see the list", file=report)

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert verify --json` prints."""
        return {"passed": self.passed, **self.model_dump(mode="json")}


def verify(
    bundle: str | Path,
    model: ExitModel | None = None,
    examples: AnsweredExamples | None = None,
    on_step: OnStep = silent,
) -> Verification:
    """Runs every program of a bundle from its saved files and compares it with the model that it came from.

    ExecuTorch programs run in ExecuTorch. Programs for Core ML are evaluated in coremltools' own operator semantics,
    and on a Mac in Core ML, too.

    Args:
        bundle: the bundle's folder. Alone it is checked against the conformance vectors in it.
        model: the student that the bundle was exported from. With it each Core ML program is compared with its module
            in PyTorch, and a classifier's labels with those of float32 if there are examples.
        examples: with these the bundle's answers at full depth are compared with the quantized model's.
        on_step: is told of the progress.

    Raises:
        UserError: the bundle or a file of it cannot be read. A check out of tolerance is returned, not raised.
    """
    folder = Path(bundle)
    files = SavedFiles(folder)
    checks = check_conformance(folder, files, on_step)
    mac_checks, mac = verify_on_mac(folder, on_step)
    checks += mac_checks
    manifest = read_manifest(folder, check_files=False)
    if model is not None:
        checks += check_model(folder, files, manifest, model, examples.examples if examples else (), on_step)
    if examples is not None:
        checks.append(check_agreement(Bundle.open(folder), examples.examples, examples.answers, on_step))
    return Verification(checks=checks, warnings=lint_bundle(folder, files), mac=mac)


def check_conformance(bundle: Path, files: SavedFiles, on_step: OnStep) -> list[Check]:
    """Checks the sums in the manifest, and compares every program with the conformance vectors in the bundle."""
    manifest, conformance = read_manifest(bundle), read_conformance(bundle)
    backends = {program.backend for program in manifest.programs}
    checks: list[Check] = []
    if "executorch" in backends:
        checks += check_executorch(bundle, manifest, conformance, on_step)
    elif backends:  # a slice for Core ML, or for its delegate
        checks.append(check_tokens(bundle, conformance, sorted(backends)[0]))
    for backend in APPLE_BACKENDS:
        if backend in backends:
            checks += check_coreml(bundle, manifest, conformance, on_step, backend=backend, files=files)
    return checks


def check_model(
    bundle: Path,
    files: SavedFiles,
    manifest: Manifest,
    model: ExitModel,
    examples: Sequence[Example],
    on_step: OnStep,
) -> list[Check]:
    """Compares the Core ML programs with the model in PyTorch: each with its module, and the labels of the examples."""
    backends = {program.backend for program in manifest.programs}
    texts = [example for example in examples if isinstance(example, ClassificationExample)]
    checks: list[Check] = []
    for backend in APPLE_BACKENDS:
        if backend in backends:
            checks += check_against_model(model, bundle, manifest, on_step, backend=backend, files=files)
            if texts and get_task(manifest.task).has_classes:
                checks.append(check_coreml_labels(Bundle.open(bundle), model, texts, on_step, backend, files))
    return checks
