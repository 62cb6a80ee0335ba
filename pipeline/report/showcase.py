"""Answers a few examples with a finished bundle, to show people what it does and where it is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.examples import Example
from pipeline.report.results import ShownAnswer

SHOWN = 4  # examples
TEXT_CHARACTERS = 110  # of a text or a question
AROUND_CHARACTERS = 90  # of the passage, on each side of the answer


def showcase(bundle: Path, examples: Sequence[Example]) -> list[ShownAnswer]:
    """Answers a few labelled examples, evenly from the whole list.

    Raises:
        UserError: the folder is not a bundle, or the examples do not fit it.
    """
    from pipeline.bundle.opening import Bundle, default_speed
    from pipeline.runtime.runner import Runner

    runner = Runner(Bundle.open(bundle))
    runner.prewarm()
    speed = default_speed(runner.manifest)
    task, context = runner.task, runner.manifest.answer_context
    targets = task.targets(examples, context)  # of all: a file writes all its labels in one way
    shown = []
    for example, target in spread(list(zip(examples, targets)), SHOWN):
        result = runner.predict(example, speed)
        before, after = task.around_answer(example, result) or ("", "")
        shown.append(
            ShownAnswer(
                text=shortened(task.shown(example), TEXT_CHARACTERS),
                before=last_words(before, AROUND_CHARACTERS),
                answer=task.shown_answer(result),
                after=shortened(after, AROUND_CHARACTERS),
                label=task.shown_target(target, context),
                wrong=task.is_wrong(result, target),
                depth=result.depth,
                segments=runner.manifest.segments,
                latency_ms=result.latency_ms,
            )
        )
    return shown


def spread(examples: Sequence[tuple[Example, object]], count: int) -> Sequence[tuple[Example, object]]:
    """A few examples, evenly from the whole list."""
    return examples[:: max(1, len(examples) // count)][:count]


def shortened(text: str, limit: int) -> str:
    """Returns the first words of a text on one line, at most so many characters; three dots stand for the others."""
    line = one_line(text)
    if len(line) <= limit:
        return line
    return line[: limit - 4].rsplit(" ", 1)[0].rstrip() + " ..."


def last_words(text: str, limit: int) -> str:
    """Returns the last words of a text, as `shortened` returns the first."""
    return shortened(text[::-1], limit)[::-1]


def one_line(text: str) -> str:
    """Returns a text with one space in place of each run of white space."""
    return re.sub(r"\s+", " ", text)
