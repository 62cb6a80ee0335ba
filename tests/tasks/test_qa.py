"""A question whose passage is cut into windows: which window decides, and what counts as the same answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.tasks import AnswerContext, get_task

CONTEXT = AnswerContext(InputOptions(64, QuestionOptions(8, 2, 2, 2, allow_no_answer=False)))


@dataclass(frozen=True)
class Window:
    """A window of four tokens, the last two of which may be an answer."""

    answer_mask: np.ndarray


WINDOWS = [Window(np.array([False, False, True, True])) for _ in range(3)]


def logits(*best: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns start and end logits of windows whose best span scores twice the given number."""
    return [(np.array([9.0, 9.0, peak, 0.0]), np.array([9.0, 9.0, 0.0, peak])) for peak in best]


def test_the_window_with_the_best_span_decides():
    task = get_task("qa")
    assert task.decisive_input(WINDOWS, logits(1.0, 7.5, 3.0), CONTEXT) == 1
    assert task.decisive_input(WINDOWS, logits(2.0, 2.0, 1.0), CONTEXT) == 0  # the first in a tie
    assert task.decisive_input(WINDOWS[:1], logits(0.5), CONTEXT) == 0


def test_another_span_is_the_same_best_one_within_the_slack():
    task, mask = get_task("qa"), WINDOWS[0].answer_mask
    expected = (np.array([0.0, 0.0, 5.0, 4.9]), np.array([0.0, 0.0, 1.0, 5.0]))
    other = (np.array([0.0, 0.0, 4.0, 5.0]), np.array([0.0, 0.0, 1.0, 5.0]))
    assert task.same_best(mask, expected, expected, 0.0, CONTEXT)
    assert not task.same_best(mask, expected, other, 0.05, CONTEXT)  # 0.1 below the best
    assert task.same_best(mask, expected, other, 0.2, CONTEXT)
