"""The exit rule that all runtimes share: after which segment an input leaves, and how its uncertainty is derived."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

FULL_DEPTH = 0.0  # a threshold that no uncertainty is below
ANSWER_MEASURES = ("patience", "agreement")  # the measures that need the answer of every exit


def leaves(uncertainty: float, threshold: float, segment: int, segments: int) -> bool:
    """Whether an input stops after this segment (0-based): it is below the threshold, or no segment is left."""
    return segment == segments - 1 or uncertainty < threshold


def exit_taken(uncertainties: Sequence[float], thresholds: Sequence[float]) -> int:
    """Returns the segment (0-based) that an input leaves after.

    Args:
        uncertainties: the uncertainty after every segment.
        thresholds: one per segment.

    Raises:
        ValueError: there are no segments.
    """
    for segment, (uncertainty, threshold) in enumerate(zip(uncertainties, thresholds)):
        if leaves(uncertainty, threshold, segment, len(thresholds)):
            return segment
    raise ValueError("no segments")


def exits_taken(uncertainties: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Returns `exit_taken` of many inputs at once.

    Args:
        uncertainties: [examples, segments].
        thresholds: one per segment.

    Returns:
        integers, [examples].
    """
    # In float64, as `leaves` compares: a threshold such as 0.7 is another number in float32.
    below = uncertainties.astype(np.float64) < np.asarray(thresholds, dtype=np.float64)
    below[:, -1] = True
    return below.argmax(axis=1)


def patience_uncertainty(answers: Sequence[Hashable]) -> float:
    """Returns the patience uncertainty of the last exit: 1 / (1 + n), where the n exits just before it gave its answer.

    PABEE (Zhou et al. 2020, section 3.2) leaves when an answer has been repeated `patience` times. Written as an
    uncertainty, this follows the same exit rule as the other measures: a patience of p is any threshold above
    1 / (p + 1) and up to 1 / p; 1 / (p + 0.5) is well inside.

    Args:
        answers: the answers of all exits so far, at least one: labels, or texts ("" for no answer).

    Returns:
        in (0, 1]; 1 at the first exit.
    """
    repeated = 0
    for earlier in reversed(answers[:-1]):
        if earlier != answers[-1]:
            break
        repeated += 1
    return 1.0 / (1 + repeated)


def compared_uncertainty(measure: str, program_uncertainty: float, answers: Sequence[Hashable]) -> float:
    """Returns the number that is compared with the threshold at the last of some exits.

    "agreement" multiplies the programs' entropy with the patience uncertainty. So an exit that is fairly certain and
    repeats the answers before it counts as much as one that is very certain alone.

    Args:
        measure: a name of `pipeline.names.Uncertainty`.
        program_uncertainty: the output of that exit's program; patience ignores it.
        answers: see `patience_uncertainty`; only the measures in `ANSWER_MEASURES` read it.
    """
    if measure == "patience":
        return patience_uncertainty(answers)
    if measure == "agreement":
        return program_uncertainty * patience_uncertainty(answers)
    return program_uncertainty


def change_uncertainty(shares: Sequence[float]) -> float:
    """Returns the change uncertainty of a regression's last exit: the distance between its prediction and the previous.

    PABEE's rule for regression (Zhou et al. 2020, section 3.2) counts the predictions that differ from the previous one
    by less than a threshold. This is that rule with a patience of 1, where the speed sets the threshold.

    Args:
        shares: the predictions of all exits so far, at least one, as shares of the label range.

    Returns:
        in [0, 1]; 1 at the first exit.
    """
    return min(1.0, abs(shares[-1] - shares[-2])) if len(shares) > 1 else 1.0
