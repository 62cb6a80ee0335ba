"""The stage verify: checks the bundle against the models that it came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.run.results import ANSWERS_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder, write_text

if TYPE_CHECKING:
    from pipeline.verify.verify import Verification

CHECKS_FILE = "checks.json"


def verify(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes all checks.

    Raises:
        UserError: a check failed. All of them can then be read in the file that the message names.
    """
    verification = verify_results(results, on_step)
    content = json.dumps(verification.to_json(), indent=2)
    failed = place.scratch / "failed.json"
    write_text(failed, content)
    verification.require(failed)
    write_text(place.out / CHECKS_FILE, content)


def verify_results(results: Results, on_step: OnStep) -> Verification:
    """Checks the bundle of a run against its student, and against the quantized model's answers to the dev examples."""
    from pipeline.verify.verify import AnsweredExamples
    from pipeline.verify.verify import verify as verify_bundle

    answers = json.loads((results.path("quantize") / ANSWERS_FILE).read_text())
    dev = AnsweredExamples(tuple(results.examples("dev")), tuple(answers))
    return verify_bundle(results.path("export"), results.model("exits"), dev, on_step)


STAGE = Stage("verify", "verification", after=("export",), sections=(), build=verify, version=6)
