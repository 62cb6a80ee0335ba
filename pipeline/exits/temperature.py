"""Temperature scaling: one number per exit that makes its probabilities mean what they say (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.items import Item
from pipeline.exits.predictions import run_model
from pipeline.model.exit_model import ExitModel
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task

# Where the best temperature is looked for; beyond it, a head has learned nothing that a temperature could repair.
BOUNDS = (0.1, 10.0)


def labelled_logits(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[tuple[Tensor, Tensor]]:
    """For every exit (logits [examples, classes], targets [examples]); start and end of a span are two examples, padded with -inf.

    Args:
        items: labelled. For question answering, only tokens that may be an answer are classes.
    """
    outputs = run_model(model, items, on_step)
    per_exit = []
    for exit in range(len(model.heads)):
        rows, targets = [], []
        for item, output in zip(items, outputs):
            logits = torch.from_numpy(output.logits[exit])
            for part, target in zip(get_task(model.task).split_logits(logits), item.target):
                if item.answer_mask is not None:
                    part = part.masked_fill(~torch.from_numpy(item.answer_mask), float("-inf"))
                rows.append(part)
                targets.append(target)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("-inf"))
        per_exit.append((padded, torch.tensor(targets)))
    return per_exit


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature that makes the labels most likely: the minimum of a function of 1 / T that is convex.

    Args:
        logits: [examples, classes], -inf where a class is none.
        targets: [examples].
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        """Of the mean negative log-likelihood by 1 / T: the expected logit less the label's."""
        probabilities = F.softmax(logits * inverse, dim=-1)
        expected = (probabilities * logits.nan_to_num(neginf=0.0)).sum(dim=-1)
        return float((expected - logits.gather(1, targets[:, None])[:, 0]).mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / middle


def expected_calibration_error(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017, equation 3)."""
    confidence, answers = F.softmax(logits.double(), dim=-1).max(dim=-1)
    right = (answers == targets).double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for at in range(bins):
        chosen = which == at
        if chosen.any():
            error += float((confidence[chosen].mean() - right[chosen].mean()).abs() * chosen.double().mean())
    return error


def calibrate_heads(model: ExitModel, items: Sequence[Item], on_step: OnStep = silent) -> list[dict[str, float]]:
    """Sets the temperature of every exit, and returns for each the temperature and the calibration error before and after it."""
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
