"""Chooses the values of a recipe that depend on the data: lengths, calibration, promises of speeds, and training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.data.lengths import Lengths
from pipeline.run.survey import Survey
from pipeline.support.errors import UserError

LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens; programs of other lengths gain little
CUT_SHARE = 0.99  # of the inputs are not cut
SMALLEST_WINDOW, LARGEST_WINDOW = 128, 384  # longer ones cost more than they find
SPECIAL_TOKENS = 3  # of a window
QUESTION_LENGTHS = (32, 48, 64, 96)
LEAST_ANSWER = 15  # tokens
ANSWER_ROOM = 1.5  # so that an answer longer than those seen is still found

LEAST_CALIBRATION, MOST_CALIBRATION = 50, 2000
CALIBRATION_SHARE, SHARE_OF_FEW = 0.2, 0.3  # of train; of fewer than `FEW` examples more, as a promise takes so many
FEW = 1000
# Losses that the speeds exact, balanced and fast promise to stay below, the strictest first.
PROMISES = ((0.005, 0.01, 0.02), (0.01, 0.02, 0.03), (0.02, 0.03, 0.05), (0.03, 0.05, 0.08), (0.05, 0.08, 0.12))
MARGIN = 1.25  # calibration examples beside those needed if none lost anything

TRAINING_STEPS = 400  # optimizer steps; with fewer the accuracy of the demo's teacher falls
SPAN_STEPS = 800  # finding an answer takes longer to learn than choosing a class
HEAD_STEPS = 150
MOST_EPOCHS, MOST_SPAN_EPOCHS = 12, 6  # passages are long, so that each pass takes long


@dataclass(frozen=True)
class Training:
    """How often and how fast a model sees the examples."""

    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Choices:
    """The values that fit the data.

    Attributes:
        max_length: tokens at which a text or pair is cut; the window of question answering.
        buckets: lengths of Core ML programs in tokens.
        max_question, stride, max_answer: for question answering, in tokens.
        calibration: examples.
        promises: losses of the speeds exact, balanced and fast.
        missing: calibration examples that would have to come for each promise that cannot be shown, by speed.
        teacher, student, exits: the trainings.
    """

    max_length: int
    buckets: tuple[int, ...]
    max_question: int
    stride: int
    max_answer: int
    calibration: int
    promises: tuple[float, float, float]
    missing: dict[str, int]
    teacher: Training
    student: Training
    exits: Training


def choose(found: Survey, delta: float) -> Choices:
    """Returns the values for these data.

    Args:
        delta: the recipe's chance that a promise does not hold.

    Raises:
        UserError: there are too few examples to train and to calibrate.
    """
    task = found.definition
    calibration = _calibration(found)
    promises, missing = _promises(calibration, delta, task.speed_metric)
    learning = len(found.train) - calibration
    small = learning < 3000
    batch = 16 if small or task.cuts_into_windows else 32
    steps = SPAN_STEPS if task.cuts_into_windows else TRAINING_STEPS
    most = MOST_SPAN_EPOCHS if task.cuts_into_windows else MOST_EPOCHS
    max_length, max_question = round_up(found.lengths.at(CUT_SHARE)), round_up(found.lengths.question, QUESTION_LENGTHS)
    if task.cuts_into_windows:
        max_length = min(LARGEST_WINDOW, max(SMALLEST_WINDOW, max_length))
    return Choices(
        max_length=max_length,
        buckets=_buckets(found.lengths, max_length),
        max_question=max_question,
        stride=min(max_length // 3, (max_length - max_question - SPECIAL_TOKENS) // 2),
        max_answer=max(LEAST_ANSWER, round(ANSWER_ROOM * found.lengths.answer)),
        calibration=calibration,
        promises=promises,
        missing=missing,
        teacher=Training(_epochs(learning, batch, steps, most), batch, 1e-4 if small else 8e-5),
        student=Training(_epochs(learning, batch, steps, most), batch, 8e-5 if small else 5e-5),
        exits=Training(_epochs(learning, 32, HEAD_STEPS, most), 32, 1e-3),
    )


def round_up(length: int, lengths: tuple[int, ...] = LENGTHS) -> int:
    """Returns the smallest of these lengths that is at least `length`, the last one if none is."""
    return next((bucket for bucket in lengths if bucket >= length), lengths[-1])


def _buckets(lengths: Lengths, longest: int) -> tuple[int, ...]:
    """Returns the length that half of the inputs need and that of the longest, as Core ML pads to a fixed length."""
    return tuple(sorted({min(longest, round_up(lengths.at(0.5))), longest}))


def _calibration(found: Survey) -> int:
    """Returns how many examples calibrate the speeds."""
    examples = len(found.train)
    # Of equal texts, and of a text and its parts, only one can be held out.
    available = sum(len(group.held) for group in found.definition.group(found.train))
    wanted = round((SHARE_OF_FEW if examples < FEW else CALIBRATION_SHARE) * examples)
    chosen = min(MOST_CALIBRATION, max(LEAST_CALIBRATION, wanted), examples // 2, available // 2)
    if chosen < LEAST_CALIBRATION:
        split = "" if found.dev_source else f" (beside {len(found.dev)} held out to measure on)"
        raise UserError(
            f"{examples} examples to train on{split} are too few, since {LEAST_CALIBRATION} different texts "
            f"of them have to calibrate the speeds; give at least {2 * LEAST_CALIBRATION} different ones",
            file=found.train_source,
        )
    return chosen


def _promises(calibration: int, delta: float, metric: str) -> tuple[tuple[float, float, float], dict[str, int]]:
    """Returns the strictest promises that so many examples can show, and how many more the others would take."""
    from pipeline.exits.calibrate import examples_needed  # imports torch

    for promises in PROMISES:
        if MARGIN * examples_needed(promises[0], delta, metric) <= calibration:
            return promises, {}
    needed = {
        name: examples_needed(loss, delta, metric) for name, loss in zip(("exact", "balanced", "fast"), PROMISES[-1])
    }
    return PROMISES[-1], {name: count - calibration for name, count in needed.items() if count > calibration}


def _epochs(examples: int, batch_size: int, steps: int, most: int) -> int:
    """Returns the epochs that make about so many optimizer steps, from 2 to `most`."""
    return min(most, max(2, math.ceil(steps * batch_size / examples)))
