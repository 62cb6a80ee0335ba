"""The training loop of all trainings: optimizer, schedule, mixed precision, and checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """A `Batch` on the device, or one process's rows of it.

    Attributes:
        ids, types: [batch, length] int64.
        mask: [batch, length] float32, 1 at real tokens.
        answer_mask: [batch, length] bool, for question answering only.
        targets: [batch, 1 or 2], see `Batch`; None if no item has a label.
        indices: [batch] int64, the items' indices in the sequence that is trained on.
        whole: int64, the indices of the batch that all processes share; equal to `indices` in a run of one process.
        number: counts the training's batches from 0. A loss that draws random numbers seeds them with it, so that a
            resumed training repeats them.
        token_weight: turns a mean over this process's real tokens into its part of the mean over the whole batch's
            tokens; 1 in a run of one process.
    """

    ids: Tensor
    types: Tensor
    mask: Tensor
    answer_mask: Tensor | None
    targets: Tensor | None
    indices: np.ndarray
    whole: np.ndarray
    number: int = 0
    token_weight: float = 1.0

    @classmethod
    def of(
        cls,
        batch: Batch,
        device: torch.device,
        indices: np.ndarray | None = None,
        whole: np.ndarray | None = None,
        number: int = 0,
        token_weight: float = 1.0,
    ) -> TensorBatch:
        """Moves a batch to a device. Without `indices` its items count from 0; without `whole` it is a whole batch."""
        if indices is None:
            indices = np.arange(len(batch.ids))
        answer_mask, targets = batch.answer_mask, batch.targets
        return cls(
            ids=torch.from_numpy(batch.ids).to(device),
            types=torch.from_numpy(batch.type_ids).to(device),
            mask=torch.from_numpy(batch.mask).to(device),
            answer_mask=None if answer_mask is None else torch.from_numpy(answer_mask).to(device),
            targets=None if targets is None else torch.from_numpy(targets).to(device),
            indices=indices,
            whole=indices if whole is None else whole,
            number=number,
            token_weight=token_weight,
        )


def device() -> torch.device:
    """Returns this process's accelerator, or the CPU if there is none."""
    return processes.state().device


@contextmanager
def on_device(*models: nn.Module) -> Iterator[None]:
    """Moves models to this process's device. After the block they return to the CPU, in evaluation mode."""
    for model in models:
        model.to(device())
    yield
    for model in models:
        model.cpu().eval()


def compute_dtype(precision: str) -> torch.dtype:
    """Returns the dtype that a recipe's `precision` computes in.

    "auto" means bfloat16 if the hardware multiplies in it, else float32.
    """
    if precision == "auto":
        if device().type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            # The environment may hold torch to older instructions (ATEN_CPU_CAPABILITY), which make bfloat16 slow.
            limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
            hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            fast = hardware and not limited
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def engine(precision: str) -> Accelerator:
    """Returns accelerate's engine for a recipe's `precision`: device, mixed precision and the group of processes.

    Raises:
        UserError: the hardware does not compute in that precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    processes.state()  # creates the process state by this project's rules; accelerate then uses it
    AcceleratorState._reset_state()  # otherwise it keeps the first precision for the life of the process
    try:
        return Accelerator(mixed_precision="bf16" if compute_dtype(precision) is torch.bfloat16 else "no")
    except ValueError as error:
        raise UserError(f"{precision}: {error} Set it to auto or fp32", field="precision") from None


def schedule(step: int, steps: int, warmup: float) -> float:
    """Returns the factor on the learning rate at an optimizer step: a linear rise, then a linear fall to 0.

    Args:
        step: from 0.
        steps: steps of the whole training.
        warmup: share of the steps that the rise takes.
    """
    rise = max(1, int(steps * warmup))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def parameter_groups(
    backbone: Sequence[nn.Parameter], heads: Sequence[nn.Parameter], training: Training
) -> list[dict[str, Any]]:
    """Returns AdamW's parameter groups: heads have their own learning rate; biases and norms get no weight decay.

    Frozen parameters are left out.
    """
    groups: list[dict[str, Any]] = []
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

    Several processes split every batch by rows. Before an optimizer step their gradients are summed, weighted by the
    number of rows. So recipe and result do not depend on the number of processes. A loss that is not a mean over
    examples has to weight itself, with `TensorBatch.token_weight` or by counting over `TensorBatch.whole`.

    Args:
        name: shown in the progress bar and written to the loss curve.
        modules: all modules whose parameters change; checkpoints hold their parameters.
        groups: see `parameter_groups`.
        loss: from a batch on the device to a scalar, a mean over its examples; runs under autocast.
        training: the recipe's options for this training.
        precision: the recipe's.
        seed: of the order of batches and of everything that the loss draws.
        checkpoint: the file to resume from. An interrupted training that is called again with the same arguments
            continues and ends with the same weights.
        curve: where to write the loss curve as JSON at the end, {"training": name, "losses": one mean loss a step}.

    Attributes:
        losses: the mean loss of every step so far, including those before an interruption.
    """

    def __init__(
        self,
        name: str,
        modules: nn.Module,
        groups: list[dict[str, Any]],
        loss: Callable[[TensorBatch], Tensor],
        training: Training,
        *,
        precision: str,
        seed: int,
        checkpoint: Path,
        curve: Path | None = None,
        on_step: OnStep = silent,
    ):
        self.name, self.modules, self.loss, self.training = name, modules, loss, training
        self.precision, self.seed, self.checkpoint, self.curve = precision, seed, checkpoint, curve
        self.on_step = on_step
        self.trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.losses: list[float] = []
        self._plans: dict[int, list[np.ndarray]] = {}  # the batches of the current epoch

    def run(self, items: Sequence[Item]) -> None:
        """Trains on `items` and writes the loss curve. The modules hold the result.

        Raises:
            UserError: there are no items, or the loss or its gradient is not finite. The last checkpoint is kept.
        """
        if not items:
            raise UserError("no example is left to train on; check the answers and the windows", field="data.train")
        self.accelerator = engine(self.precision)
        lengths = [len(item.ids) for item in items]
        size, accumulate = self.training.batch_size, self.training.accumulate
        batches_per_epoch = math.ceil(len(items) / size)
        batches = int(batches_per_epoch * self.training.epochs)
        steps = max(1, batches // accumulate) if self.training.epochs else 0  # a tiny data set still makes a step
        start, mean_loss = self._resume()
        gradients = self._share_start(start)
        saved = time.monotonic()
        for step in range(start, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps, self.training.warmup)
            total: float = 0.0
            failure: Exception | None = None
            try:  # everything here may fail on one process only; the exchange of gradients tells the others
                if (
                    processes.is_main()
                    and step > start
                    and time.monotonic() - saved > 60 * self.training.checkpoint_minutes
                ):
                    self._save(step, mean_loss)
                    saved = time.monotonic()
                for number in range(step * accumulate, (step + 1) * accumulate):
                    epoch, index = divmod(number, batches_per_epoch)
                    total += self._backward(items, lengths, self._plan(lengths, epoch)[index], number)
            except Exception as error:
                if gradients is None:
                    raise
                failure = error
            if gradients is not None:
                total = gradients.exchange(total, failure)
            self._require_finite("loss", total, step, steps)
            norm = self.accelerator.clip_grad_norm_(self.trained.values(), 1.0)
            self._require_finite("gradient", float(norm), step, steps)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(total)
            mean_loss = total if mean_loss is None else 0.98 * mean_loss + 0.02 * total
            self.on_step(f"{self.name}, loss {mean_loss:.3f}", step + 1, steps)
        if self.curve and processes.is_main():
            write_text(self.curve, json.dumps({"training": self.name, "losses": self.losses}) + "\n")

    def _backward(self, items: Sequence[Item], lengths: list[int], rows: np.ndarray, number: int) -> float:
        """Adds this process's part of one batch to the gradients. Returns its part of the step's loss."""
        # A batch is sorted by length, so strided slices give every process long and short rows.
        own_rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        if not len(own_rows):
            return 0.0
        share = len(own_rows) / len(rows)
        tokens = sum(lengths[row] for row in own_rows) / sum(lengths[row] for row in rows)
        random = np.random.SeedSequence([self.seed, number, self.accelerator.process_index])
        # Seeded by the batch's number: a resumed training draws the same random numbers as an uninterrupted one.
        torch.manual_seed(int(random.generate_state(1, np.uint64)[0]))
        batch = TensorBatch.of(
            collate([items[row] for row in own_rows]), self.accelerator.device,
            indices=own_rows, whole=rows, number=number, token_weight=tokens / share,
        )  # fmt: skip
        with self.accelerator.autocast():
            loss = self.loss(batch) * share / self.training.accumulate
        self.accelerator.backward(loss)
        return float(loss.detach())

    def _require_finite(self, quantity: str, value: float, step: int, steps: int) -> None:
        if not math.isfinite(value):
            kept = (
                f"the last good checkpoint is {self.checkpoint}"
                if self.checkpoint.is_file()
                else "no checkpoint was written yet"
            )
            raise UserError(
                f"{self.name}: the {quantity} is {value} at step {step + 1} of {steps}; {kept}; "
                "lower the learning rate of this stage"
            )

    def _plan(self, lengths: list[int], epoch: int) -> list[np.ndarray]:
        """Returns the batches of an epoch; keeps only the last epoch's."""
        if epoch not in self._plans:
            self._plans = {epoch: plan_batches(lengths, self.training.batch_size, self.seed, epoch)}
        return self._plans[epoch]

    def _share_start(self, start: int) -> Gradients | None:
        """Gives all processes the main process's weights. Returns their gradient exchange, None in a run of one."""
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

    def _save(self, step: int, mean_loss: float | None) -> None:
        state = {
            "step": step,
            "mean_loss": mean_loss,
            "losses": self.losses,
            "parameters": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        with open(partial, "wb") as stream:  # given a path, torch writes in C++ and does not report a full disk
            torch.save(state, stream)
        os.replace(partial, self.checkpoint)

    def _resume(self) -> tuple[int, float | None]:
        """Loads the checkpoint if there is one. Returns the next step and the running mean loss."""
        if not self.checkpoint.is_file():
            return 0, None
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])  # moves its state to the parameters' device
        self.losses = list(state.get("losses", []))  # checkpoints of the first version have none
        return state["step"], state["mean_loss"]
