"""The conformance vectors of a bundle: texts with the ids, outputs and answers that every runtime must reproduce."""

from __future__ import annotations

from typing import Literal

from pipeline.bundle.manifest import Strict
from pipeline.names import Backend, Task

CONFORMANCE_FILE = "conformance.json"


class ExitVector(Strict):
    """What one segment gave for one window: each output but the hidden states, flat, and the uncertainty.

    It is the program's `uncertainty`, or by change what a runner computes from these outputs and those of the exit before. Outcomes follow
    from it, by patience and agreement together with the exits' answers, which the outputs give.
    """

    outputs: dict[str, list[float]]
    uncertainty: float


class WindowVector(Strict):
    """One input of the programs; only a question may have several windows, and only for questions there is an `answer_mask`."""

    input_ids: list[int]
    answer_mask: list[int] | None = None
    exits: list[ExitVector]


class Outcome(Strict):
    """The answer at one speed: `exit` counts segments from 0. A label for classification, a number in the data's unit for regression;
    text and character positions for QA.
    """

    exit: int
    label: str | None = None
    value: float | None = None
    answer: str | None = None
    start: int | None = None
    end: int | None = None


class Case(Strict):
    """One input, `text` (and `text_pair`) or `question` and `passage`."""

    text: str | None = None
    text_pair: str | None = None
    question: str | None = None
    passage: str | None = None
    windows: list[WindowVector]
    outcomes: dict[str, Outcome]


class ProgramVector(Strict):
    """A fingerprint for each output of one program that Core ML computes, at one length, see `pipeline.export.fingerprints`. Runners pass over it.

    Where activations are int8, `outputs` are with int8's range and without its steps, `rounded_outputs` with both; that is not there for other programs.
    """

    program: str
    backend: Backend = "coreml"
    length: int
    outputs: dict[str, list[float]]
    rounded_outputs: dict[str, list[float]] | None = None


class Conformance(Strict):
    """The file `conformance.json`. `tolerance` is the largest |difference| of a logit, `uncertainty_tolerance` of an uncertainty.

    `programs` is not there in bundles without Core ML programs, and in those written by early versions.
    """

    format_version: Literal[1] = 1
    task: Task
    tolerance: float
    uncertainty_tolerance: float
    cases: list[Case]
    programs: list[ProgramVector] | None = None
