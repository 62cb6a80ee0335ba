"""pocketbert distils a BERT into a small model with an exit after every layer and packs it into a bundle for phones.

A bundle is a folder with everything that an app needs: programs, vocabulary and manifest.

    import pocketbert

    runner = pocketbert.load("runs/reviews")
    print(runner.classify("A moving and clever film.").label)

The other functions make bundles (`run`, `quantize`, `init`) and examine them (`evaluate`, `verify`). What a user did
wrong is a `UserError`. Its message is one line that names the file, the field and the way out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.support.errors import UserError
from pocketbert.functions import FinishedRun, evaluate, init, load, quantize, run, verify

if TYPE_CHECKING:
    from pipeline.run.propose import Proposal
    from pipeline.runtime.evaluate import Evaluation
    from pipeline.runtime.runner import Runner
    from pipeline.tasks.results import (
        AnswerCandidate,
        AnswerResult,
        ClassificationResult,
        LabelCandidate,
        RegressionResult,
    )
    from pipeline.verify.verify import Verification
    from quantize.checkpoint import QuantizedCheckpoint

__all__ = [
    "AnswerCandidate",
    "AnswerResult",
    "ClassificationResult",
    "Evaluation",
    "FinishedRun",
    "LabelCandidate",
    "Proposal",
    "QuantizedCheckpoint",
    "RegressionResult",
    "Runner",
    "UserError",
    "Verification",
    "__version__",
    "evaluate",
    "init",
    "load",
    "quantize",
    "run",
    "verify",
]

# Imported on first use (PEP 562), so that `import pocketbert` costs nothing.
_MODULE_OF = {
    "AnswerCandidate": "pipeline.tasks.results",
    "AnswerResult": "pipeline.tasks.results",
    "ClassificationResult": "pipeline.tasks.results",
    "Evaluation": "pipeline.runtime.evaluate",
    "LabelCandidate": "pipeline.tasks.results",
    "Proposal": "pipeline.run.propose",
    "RegressionResult": "pipeline.tasks.results",
    "Runner": "pipeline.runtime.runner",
    "Verification": "pipeline.verify.verify",
}


def __getattr__(name: str) -> Any:
    if name == "QuantizedCheckpoint":
        from quantize.checkpoint import QuantizedCheckpoint

        return QuantizedCheckpoint
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
