"""The rule that all runtimes share: after which segment an input leaves, and with which answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

FULL_DEPTH = 0.0  # a threshold that no uncertainty is below


def leaves(uncertainty: float, threshold: float, segment: int, segments: int) -> bool:
    """Whether an input stops after this segment (0-based): below the threshold, or nothing is left to run."""
    return segment == segments - 1 or uncertainty < threshold


def exit_taken(uncertainties: Sequence[float], thresholds: Sequence[float]) -> int:
    """The segment (0-based) after which an input leaves, given the uncertainty after every segment.

    Args:
        uncertainties, thresholds: one number per segment; a scalar threshold is repeated by `thresholds_of`.
    """
    for segment, (uncertainty, threshold) in enumerate(zip(uncertainties, thresholds)):
        if leaves(uncertainty, threshold, segment, len(thresholds)):
            return segment
    raise ValueError("no segments")


def exits_taken(uncertainties: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """`exit_taken` for many inputs; uncertainties: [examples, segments]. Returns [examples] integers."""
    # In float64, as `leaves` compares: a threshold such as 0.7 is another number in float32.
    below = uncertainties.astype(np.float64) < np.asarray(thresholds, dtype=np.float64)
    below[:, -1] = True
    return below.argmax(axis=1)


def question_uncertainty(window_scores: Sequence[float], window_uncertainties: Sequence[float]) -> float:
    """The uncertainty of a question whose passage was cut into windows: that of the window whose best span scores highest.

    All windows of a question run to the same depth, so that their scores come from one exit and may be compared. The other windows
    hold no answer; how unsure they are of one says nothing.
    """
    return float(window_uncertainties[int(np.argmax(window_scores))])


def patience_uncertainty(answers: Sequence[Hashable]) -> float:
    """The uncertainty by patience at the last of some exits: 1 / (1 + n), where the n exits just before it gave the same answer.

    PABEE (Zhou et al. 2020, section 3.2) leaves when an answer has been repeated `patience` times. Put as an uncertainty, the one rule
    holds for it, too: patience p is any threshold above 1 / (p + 1) and up to 1 / p, see `patience_threshold`.

    Args:
        answers: of every exit so far, at least one: labels, or texts ("" for no answer).

    Returns:
        in (0, 1]; 1 at the first exit, which nothing comes before.
    """
    repeated = 0
    for earlier in reversed(answers[:-1]):
        if earlier != answers[-1]:
            break
        repeated += 1
    return 1.0 / (1 + repeated)


COUNTED = ("patience", "agreement")  # the measures for which a runner has to know the answer at every exit


def compared_uncertainty(measure: str, by_program: float, answers: Sequence[Hashable]) -> float:
    """What is compared with the threshold at the last of some exits.

    By "agreement" it is the programs' entropy times patience: an exit that is fairly sure and says what those before it said may be
    believed as much as one that is very sure alone.

    Args:
        measure: a name of `pipeline.names.Uncertainty`.
        by_program: what the program of that exit gives; by patience it does not count.
        answers: as of `patience_uncertainty`; read only by the measures in `COUNTED`.
    """
    if measure == "patience":
        return patience_uncertainty(answers)
    if measure == "agreement":
        return by_program * patience_uncertainty(answers)
    return by_program


def change_uncertainty(shares: Sequence[float]) -> float:
    """The uncertainty by change at the last of some exits of a regression: how far its prediction is from that of the exit before.

    PABEE's rule for regression (Zhou et al. 2020, section 3.2) counts predictions that differ from the one before by less than a
    threshold; this is the one with a patience of 1, where the threshold is the speed.

    Args:
        shares: what every exit so far predicts, at least one, as a share of the label range.

    Returns:
        in [0, 1]; 1 at the first exit, which nothing comes before.
    """
    return min(1.0, abs(shares[-1] - shares[-2])) if len(shares) > 1 else 1.0


def patience_threshold(patience: int) -> float:
    """The threshold that leaves once an answer has been repeated so often; well inside its range, where rounding moves nothing."""
    return 1.0 / (patience + 0.5)
