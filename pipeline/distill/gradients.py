"""Gradients summed over the processes of a run, once a step."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.support import processes


class Gradients:
    """Sums the gradients of all processes.

    By hand and not by `DistributedDataParallel`: losses call teacher and student as they are, several parts of them a step, which its
    hooks, one forward call of one wrapped module, would not see.
    """

    def __init__(self, parameters: list[nn.Parameter], device: torch.device):
        self.parameters = parameters
        # All gradients, for every parameter whether it has one, the loss, how many failed. One buffer is one exchange, and being made
        # before the first step it cannot be what a process runs out of memory on while the others wait for it.
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + len(parameters) + 2, device=device)
        *self.views, self.present, self.about = self.flat.split([*sizes, len(parameters), 2])

    @torch.no_grad()
    def exchange(self, loss: float, failure: Exception | None) -> float:
        """Replaces the gradients by their sum over all processes, and returns the sum of `loss`.

        Raises:
            Exception: what failed, on the process where it failed; `FailedElsewhere` on the others.
        """
        self.flat.zero_()
        for at, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self.views[at].copy_(parameter.grad.flatten())
                self.present[at] = 1.0
        self.about.copy_(torch.tensor([loss, float(failure is not None)]))
        torch.distributed.all_reduce(self.flat)
        total, failures = self.about.tolist()
        if failures:
            processes.share_failure(failure)
        for parameter, view, present in zip(self.parameters, self.views, self.present.tolist()):
            # What no process has a gradient for keeps none: the optimizer leaves it alone, as in a run of one.
            parameter.grad = view.view_as(parameter).clone() if present else None
        return total
