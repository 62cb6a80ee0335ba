"""The training loop that all three trainers share: optimiser, schedule, mixed precision, and checkpoints that resume exactly."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.items import Batch, Item, collate, plan_batches
from pipeline.errors import UserError
from pipeline.progress import OnStep, silent
from pipeline.recipe import Training


@dataclass(frozen=True)
class TensorBatch:
    """A `Batch` on the device: ids, types [batch, length] int64; mask float32; answer_mask bool; targets [batch, 1 or 2]."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    answer_mask: Tensor | None
    targets: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> TensorBatch:
        def move(array):
            return None if array is None else torch.from_numpy(array).to(device)

        return cls(move(batch.ids), move(batch.type_ids), move(batch.mask), move(batch.answer_mask), move(batch.targets))


def device() -> torch.device:
    """The first accelerator, else the processor."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(precision: str) -> torch.dtype:
    """float32, or bfloat16 where the recipe asks for it or, by "auto", where the hardware multiplies in it."""
    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def autocast(precision: str) -> torch.autocast:
    """The mixed-precision context of a recipe's `precision`."""
    dtype = compute_dtype(precision)
    return torch.autocast(device().type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step (from 0): linear up over `warmup` of the steps, then linear down to 0."""
    rise = max(1, int(steps * warmup))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def parameter_groups(backbone: Sequence[nn.Parameter], heads: Sequence[nn.Parameter], training: Training) -> list[dict]:
    """AdamW's groups: heads have their own rate; biases and norms (one dimension) are not decayed. Frozen parameters are left out."""
    groups = []
    for parameters, rate in ((backbone, training.learning_rate), (heads, training.head_learning_rate)):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for chosen, decay in (([p for p in trained if p.ndim > 1], training.weight_decay), ([p for p in trained if p.ndim < 2], 0.0)):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return groups


class Trainer:
    """Runs one training.

    Args:
        what: what the progress bar says.
        modules: everything whose parameters change; saved in checkpoints.
        groups: see `parameter_groups`.
        loss: from a batch on the device to a scalar; runs under autocast.
        checkpoint: where to keep the place; an interrupted training with the same arguments goes on from it and ends in the same weights.
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

    def run(self, items: Sequence[Item]) -> None:
        """Trains over `items`; the modules hold the result.

        Raises:
            UserError: when there is nothing to train on, or when the loss stops being a number (the last checkpoint is kept).
        """
        if not items:
            raise UserError("no example is left to train on; check the answers and the windows", field="data.train")
        lengths = [len(item.ids) for item in items]
        size, accumulate = self.training.batch_size, self.training.accumulate
        batches_per_epoch = math.ceil(len(items) / size)
        batches = int(batches_per_epoch * self.training.epochs)
        steps = max(1, batches // accumulate) if self.training.epochs else 0  # a tiny data set makes a step, too
        start, mean_loss = self._resume()
        saved = time.monotonic()
        for step in range(start, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps, self.training.warmup)
            total = 0.0
            for number in range(step * accumulate, (step + 1) * accumulate):
                epoch, at = divmod(number, batches_per_epoch)
                plan = self._plan(lengths, epoch)
                batch = TensorBatch.of(collate([items[i] for i in plan[at]]), device())
                with autocast(self.precision):
                    loss = self.loss(batch) / accumulate
                loss.backward()
                total += float(loss.detach())
            if not math.isfinite(total):
                kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.is_file() else "no checkpoint was written yet"
                raise UserError(
                    f"{self.what}: the loss is {total} at step {step + 1} of {steps}; {kept}; lower the learning rate of this stage"
                )
            nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            mean_loss = total if mean_loss is None else 0.98 * mean_loss + 0.02 * total
            self.on_step(f"{self.what}, loss {mean_loss:.3f}", step + 1, steps)
            if time.monotonic() - saved > 60 * self.training.checkpoint_minutes:
                self._save(step + 1, mean_loss)
                saved = time.monotonic()

    def _plan(self, lengths: list[int], epoch: int) -> list:
        if getattr(self, "_planned", None) != epoch:
            self._planned, self._batches = epoch, plan_batches(lengths, self.training.batch_size, self.seed, epoch)
        return self._batches

    def _save(self, step: int, mean_loss: float) -> None:
        state = {
            "step": step,
            "mean_loss": mean_loss,
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
        state = torch.load(self.checkpoint, map_location=device(), weights_only=True)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["mean_loss"]
