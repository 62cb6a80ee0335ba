"""The conformance vectors of a bundle: inputs, with the ids, outputs and answers that every runtime must reproduce."""

from __future__ import annotations

from pathlib import Path

from pipeline.bundle.fields import BundleDocument, read_document
from pipeline.names import Backend, Task
from pipeline.support.document import Document

CONFORMANCE_FILE = "conformance.json"


class ExitVector(Document):
    """What one segment returned for one window.

    Attributes:
        outputs: the values of each output by name, flat. The hidden states are left out.
        uncertainty: the program's `uncertainty`. A regression's programs have none, so there it is the change that a
            runner computes from this exit's logit and the one before. Outcomes by patience and agreement also need the
            answers, which follow from `outputs`.
    """

    outputs: dict[str, list[float]]
    uncertainty: float


class WindowVector(Document):
    """One input of the programs. Only a question may have several, and only a question's has an `answer_mask`."""

    input_ids: list[int]
    answer_mask: list[int] | None = None
    exits: list[ExitVector]


class Outcome(Document):
    """The answer at one speed.

    Attributes:
        exit: the segment that the input left after, counted from 0.
        label: for classification.
        value: for regression, in the data's unit.
        answer, start, end: for question answering; `start` and `end` are positions in the passage, in code points.
    """

    exit: int
    label: str | None = None
    value: float | None = None
    answer: str | None = None
    start: int | None = None
    end: int | None = None


class Case(Document):
    """One example: `text` with or without a `text_pair`, or `question` and `passage`. `outcomes` are by speed."""

    text: str | None = None
    text_pair: str | None = None
    question: str | None = None
    passage: str | None = None
    windows: list[WindowVector]
    outcomes: dict[str, Outcome]


class ProgramVector(Document):
    """The fingerprint of a Core ML program at one length (`pipeline.export.fingerprints`). Runners skip it.

    Attributes:
        outputs: the fingerprint of each output. Where the program rounds activations to int8, with int8's range but
            without rounding.
        rounded_outputs: the same with rounding; None for other programs.
    """

    program: str
    backend: Backend = "coreml"
    length: int
    outputs: dict[str, list[float]]
    rounded_outputs: dict[str, list[float]] | None = None


class Conformance(BundleDocument):
    """The file `conformance.json` in the bundle's folder.

    Attributes:
        tolerance: the largest difference that is allowed in a logit.
        uncertainty_tolerance: the largest difference that is allowed in an uncertainty.
        programs: absent in bundles without Core ML programs, and in those that early versions wrote.
    """

    task: Task
    tolerance: float
    uncertainty_tolerance: float
    cases: list[Case]
    programs: list[ProgramVector] | None = None


def read_conformance(bundle: str | Path) -> Conformance:
    """Reads the conformance vectors of a bundle.

    Raises:
        UserError: naming the file and the field, where the file is missing or does not fit the format.
    """
    return read_document(Path(bundle) / CONFORMANCE_FILE, Conformance)
