"""Temperature scaling: calibrates an exit's probabilities with one number (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.items import UNLABELLED, Item
from pipeline.exits.predictions import run_model
from pipeline.model.exit_model import ExitModel
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task

# Range of temperatures that is searched. A head that needs one outside of it has not learned the task.
BOUNDS = (0.1, 10.0)


def labelled_logits(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[tuple[Tensor, Tensor]]:
    """Collects logits and targets for every exit. A span's start and end, or two tokens, count as two examples.

    Args:
        items: labelled. For question answering, the classes are the tokens that may belong to an answer.

    Returns:
        for every exit logits, [examples, classes], padded with -inf, and targets, [examples].
    """
    outputs = run_model(model, items, on_step)
    per_exit = []
    for exit in range(len(model.heads)):
        rows: list[Tensor] = []
        targets: list[object] = []
        for item, output in zip(items, outputs):
            assert item.target is not None  # items are labelled
            logits = torch.from_numpy(output.logits[exit])
            for part, target in zip(get_task(model.task).split_logits(logits), item.target):
                if isinstance(target, np.ndarray):  # a class for each token, [length]; `part` is [length, classes]
                    labelled = target != UNLABELLED
                    rows += part[torch.from_numpy(labelled)].unbind()
                    targets += target[labelled].tolist()
                    continue
                if item.answer_mask is not None:
                    part = part.masked_fill(~torch.from_numpy(item.answer_mask), float("-inf"))
                rows.append(part)
                targets.append(target)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("-inf"))
        per_exit.append((padded, torch.tensor(targets)))
    return per_exit


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the temperature that makes the targets most likely.

    The mean negative log-likelihood is convex in 1 / temperature, so bisection on its slope finds the minimum.

    Args:
        logits: [examples, classes], -inf where there is no such class.
        targets: [examples].
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        """Returns the derivative of the loss by 1 / temperature: expected logit minus target logit."""
        probabilities = F.softmax(logits * inverse, dim=-1)
        expected = (probabilities * logits.nan_to_num(neginf=0.0)).sum(dim=-1)
        return float((expected - logits.gather(1, targets[:, None])[:, 0]).mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / middle


def expected_calibration_error(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Returns the mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, equation 3).

    Args:
        logits: [examples, classes].
        targets: [examples].
        bins: number of bins over confidences from 0 to 1.
    """
    confidence, answers = F.softmax(logits.double(), dim=-1).max(dim=-1)
    right = (answers == targets).double()
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for index in range(bins):
        member = bin_index == index
        if member.any():
            error += float((confidence[member].mean() - right[member].mean()).abs() * member.double().mean())
    return error


def calibrate_heads(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[dict[str, float]]:
    """Fits and sets the temperature of every exit.

    Returns:
        for every exit its temperature, and the expected calibration error before and after scaling.
    """
    report = []
    for logits, targets in labelled_logits(model, items, on_step):
        temperature = fit_temperature(logits, targets)
        report.append(
            {
                "temperature": temperature,
                "error_before": expected_calibration_error(logits, targets),
                "error_after": expected_calibration_error(logits / temperature, targets),
            }
        )
    model.temperatures = [entry["temperature"] for entry in report]
    return report
