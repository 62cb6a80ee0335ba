"""Sums gradients over the processes of a run, once per optimizer step."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.support import processes


class Gradients:
    """Sums the gradients of all processes.

    `DistributedDataParallel` does not fit: its hooks expect one forward call of one wrapped module, while our losses
    call parts of teacher and student several times a step.
    """

    def __init__(self, parameters: list[nn.Parameter], device: torch.device):
        self.parameters = parameters
        # One buffer, so one exchange: all gradients, a flag per parameter that has one, the loss, and the number of
        # failures. It is allocated before the first step. So a process cannot run out of memory for it while the
        # others wait.
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + len(parameters) + 2, device=device)
        *self.views, self.present, self.totals = torch.split(self.flat, [*sizes, len(parameters), 2])

    @torch.no_grad()
    def exchange(self, loss: float, failure: Exception | None) -> float:
        """Replaces the gradients by their sum over all processes. Returns the sum of `loss`.

        Args:
            loss: this process's part of the loss.
            failure: the exception that stopped this process's step, if any.

        Raises:
            Exception: `failure`, on the process that failed; `FailedElsewhere` on the others.
        """
        self.flat.zero_()
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.views[index].copy_(parameter.grad.flatten())
                self.present[index] = 1.0
        self.totals.copy_(torch.tensor([loss, float(failure is not None)]))
        torch.distributed.all_reduce(self.flat)
        total, failures = self.totals.tolist()
        if failures:
            processes.share_failure(failure)
        for parameter, view, present in zip(self.parameters, self.views, self.present.tolist()):
            # A parameter that has no gradient on any process keeps none. The optimizer skips it, as in a run of one
            # process.
            parameter.grad = view.view_as(parameter).clone() if present else None
        return total
