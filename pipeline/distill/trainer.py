"""The training loop that all three trainers share: optimiser, schedule, mixed precision, and checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.items import Batch, Item, collate, plan_batches
from pipeline.distill.gradients import Gradients
from pipeline.recipe import Training
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TensorBatch:
    """A `Batch` on the device: ids, types [batch, length] int64; mask float32; answer_mask bool; targets [batch, 1 or 2].

    Attributes:
        indices: [batch] int64 numpy, where these items stand in what the trainer was given.
        number: counts the batches of the training from 0; a loss that draws by chance draws by this, and a resumed training repeats it.
        whole: [examples] int64 numpy, the indices of the batch that the processes of a run share; equal to `indices` in a run of one.
        token_weight: a mean over real tokens times this is the process' part in the mean over the whole batch's tokens; 1 in a run of one.
    """

    ids: Tensor
    types: Tensor
    mask: Tensor
    answer_mask: Tensor | None
    targets: Tensor | None
    indices: np.ndarray | None = None
    number: int = 0
    whole: np.ndarray | None = None
    token_weight: float = 1.0

    @classmethod
    def of(cls, batch: Batch, device: torch.device, **about) -> TensorBatch:
        def move(array):
            return None if array is None else torch.from_numpy(array).to(device)

        return cls(
            move(batch.ids),
            move(batch.type_ids),
            move(batch.mask),
            move(batch.answer_mask),
            move(batch.targets),
            **about,
        )


def device() -> torch.device:
    """This process' accelerator, else the processor; `accelerate` says which."""
    return processes.state().device


def compute_dtype(precision: str) -> torch.dtype:
    """float32, or bfloat16 where the recipe asks for it or, by "auto", where the hardware multiplies in it."""
    if precision == "auto":
        if device().type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def engine(precision: str) -> Accelerator:
    """accelerate's engine in a recipe's `precision`: device, mixed precision, and the group of processes.

    Raises:
        UserError: if the hardware does not compute in the precision asked for.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    processes.state()  # made here first, by the project's own rules; the engine takes it over
    AcceleratorState._reset_state()  # it keeps the first precision for ever; a process may train in another one after it
    try:
        return Accelerator(mixed_precision="bf16" if compute_dtype(precision) is torch.bfloat16 else "no")
    except ValueError as error:
        raise UserError(f"{precision}: {error} Set it to auto or fp32", field="precision") from None


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step (from 0): linear up over `warmup` of the steps, then linear down to 0."""
    rise = max(1, int(steps * warmup))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def parameter_groups(backbone: Sequence[nn.Parameter], heads: Sequence[nn.Parameter], training: Training) -> list[dict]:
    """AdamW's groups: heads have their own rate; biases and norms (one dimension) are not decayed. Frozen parameters are left out."""
    groups = []
    for parameters, rate in ((backbone, training.learning_rate), (heads, training.head_learning_rate)):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for chosen, decay in (
            ([p for p in trained if p.ndim > 1], training.weight_decay),
            ([p for p in trained if p.ndim < 2], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return groups


class Trainer:
    """Runs one training, on one process or on all that `accelerate launch` started.

    Several processes share every batch: each takes some of its rows, and the gradients are summed, weighted by the rows, before the step.
    So recipe and result stay the same whatever their number. A loss that is a mean over something else than the batch's examples has to
    weight itself (`TensorBatch.token_weight`, or a count of its own over `TensorBatch.whole`).

    Args:
        what: what the progress bar says.
        modules: everything whose parameters change; saved in checkpoints.
        groups: see `parameter_groups`.
        loss: from a batch on the device to a scalar, a mean over the examples; runs under autocast.
        checkpoint: where to keep the place; an interrupted training with the same arguments goes on from it and ends in the same weights.

    Attributes:
        losses: the mean loss of every step so far, those before an interruption included.
    """

    def __init__(
        self,
        what: str,
        modules: nn.Module,
        groups: list[dict],
        loss: Callable[[TensorBatch], Tensor],
        training: Training,
        *,
        precision: str,
        seed: int,
        checkpoint: Path,
        on_step: OnStep = silent,
    ):
        self.what, self.modules, self.loss, self.training = what, modules, loss, training
        self.precision, self.seed, self.checkpoint, self.on_step = precision, seed, checkpoint, on_step
        self.trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.losses: list[float] = []

    def run(self, items: Sequence[Item]) -> None:
        """Trains over `items`; the modules hold the result.

        Raises:
            UserError: when there is nothing to train on, or when the loss or its gradient stops being a number (the last checkpoint is
                kept).
        """
        if not items:
            raise UserError("no example is left to train on; check the answers and the windows", field="data.train")
        self.accelerator = engine(self.precision)
        lengths = [len(item.ids) for item in items]
        size, accumulate = self.training.batch_size, self.training.accumulate
        batches_per_epoch = math.ceil(len(items) / size)
        batches = int(batches_per_epoch * self.training.epochs)
        steps = max(1, batches // accumulate) if self.training.epochs else 0  # a tiny data set makes a step, too
        start, mean_loss = self._resume()
        gradients = self._share_start(start)
        saved = time.monotonic()
        for step in range(start, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps, self.training.warmup)
            total, failure = 0.0, None
            try:  # all that may fail on one process alone: the others learn of it when gradients are exchanged
                if (
                    processes.is_main()
                    and step > start
                    and time.monotonic() - saved > 60 * self.training.checkpoint_minutes
                ):
                    self._save(step, mean_loss)
                    saved = time.monotonic()
                for number in range(step * accumulate, (step + 1) * accumulate):
                    epoch, at = divmod(number, batches_per_epoch)
                    total += self._backward(items, lengths, self._plan(lengths, epoch)[at], number)
            except Exception as error:
                if gradients is None:
                    raise
                failure = error
            if gradients is not None:
                total = gradients.exchange(total, failure)
            self._require_number("loss", total, step, steps)
            norm = self.accelerator.clip_grad_norm_(self.trained.values(), 1.0)
            self._require_number("gradient", float(norm), step, steps)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(total)
            mean_loss = total if mean_loss is None else 0.98 * mean_loss + 0.02 * total
            self.on_step(f"{self.what}, loss {mean_loss:.3f}", step + 1, steps)

    def write_losses(self, path: Path) -> None:
        """Writes the loss curve as JSON, {"training", "losses"}, one mean loss a step; on the main process alone."""
        if processes.is_main():
            write_text(path, json.dumps({"training": self.what, "losses": self.losses}) + "\n")

    def _backward(self, items: Sequence[Item], lengths: list[int], rows: np.ndarray, number: int) -> float:
        """Adds this process' part of one batch to the step's gradient; returns its part in the step's loss."""
        # Every so many-th row: a batch is sorted by length, and so nobody gets all the long ones.
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        if not len(mine):
            return 0.0
        share = len(mine) / len(rows)
        tokens = sum(lengths[row] for row in mine) / sum(lengths[row] for row in rows)
        random = np.random.SeedSequence([self.seed, number, self.accelerator.process_index])
        torch.manual_seed(
            int(random.generate_state(1, np.uint64)[0])
        )  # a resumed training draws what the whole one drew
        batch = TensorBatch.of(
            collate([items[row] for row in mine]), self.accelerator.device,
            indices=mine, number=number, whole=rows, token_weight=tokens / share,
        )  # fmt: skip
        with self.accelerator.autocast():
            loss = self.loss(batch) * share / self.training.accumulate
        self.accelerator.backward(loss)
        return float(loss.detach())

    def _require_number(self, what: str, value: float, step: int, steps: int) -> None:
        if not math.isfinite(value):
            kept = (
                f"the last good checkpoint is {self.checkpoint}"
                if self.checkpoint.is_file()
                else "no checkpoint was written yet"
            )
            raise UserError(
                f"{self.what}: the {what} is {value} at step {step + 1} of {steps}; {kept}; lower the learning rate of this stage"
            )

    def _plan(self, lengths: list[int], epoch: int) -> list:
        if getattr(self, "_planned", None) != epoch:
            self._planned, self._batches = epoch, plan_batches(lengths, self.training.batch_size, self.seed, epoch)
        return self._batches

    def _share_start(self, start: int) -> Gradients | None:
        """Has all processes begin from the same place; returns what they exchange gradients through, None in a run of one."""
        if not processes.in_group():
            return None
        from accelerate.utils import broadcast

        gradients = Gradients(list(self.trained.values()), device())
        if len(set(processes.gather(start))) > 1:
            raise UserError(
                "is not the same to all processes; --out must be on a file system that all hosts share",
                file=self.checkpoint,
            )
        for tensor in self.modules.state_dict().values():
            broadcast(tensor)
        return gradients

    def _save(self, step: int, mean_loss: float) -> None:
        state = {
            "step": step,
            "mean_loss": mean_loss,
            "losses": self.losses,
            "parameters": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        with open(partial, "wb") as stream:  # given a path, torch writes in C++ and does not say that the disk is full
            torch.save(state, stream)
        os.replace(partial, self.checkpoint)

    def _resume(self) -> tuple[int, float | None]:
        if not self.checkpoint.is_file():
            return 0, None
        state = torch.load(
            self.checkpoint, map_location="cpu", weights_only=True
        )  # what is loaded moves to where the parameters are
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state.get("losses", []))  # a checkpoint of the first version has none
        return state["step"], state["mean_loss"]
