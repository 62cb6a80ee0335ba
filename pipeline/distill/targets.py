"""Keeps the teacher's logits for every training item on disk, so that training does not run the teacher again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.items import Item, collate, sorted_batches
from pipeline.distill.trainer import TensorBatch, engine
from pipeline.support import processes
from pipeline.support.progress import OnStep, silent

# Items per file. A file is written completely or not at all, and the processes of a run share the files out.
BLOCK = 4096


class Targets:
    """The kept logits, read through memory maps.

    They are float16: two bytes a number and 11 significant bits, so logits between -16 and 16 are off by at most
    0.004. Values that autocast computed in bfloat16 fit exactly.

    Args:
        folder: the folder that `keep_targets` wrote.
        lengths: tokens of every item.
        width: numbers per token (2 for question answering) or per item (the labels).
        per_token: whether each token has logits, rather than each item.
    """

    def __init__(self, folder: Path, lengths: Sequence[int], width: int, per_token: bool):
        self.lengths, self.width, self.per_token = np.asarray(lengths), width, per_token
        rows = self.lengths if per_token else np.ones(len(lengths), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self.blocks = [np.load(folder / block_name(block), mmap_mode="r") for block in range(block_count(len(lengths)))]

    def of(self, index: int) -> np.ndarray:
        """Returns one item's logits, float16: [labels], or [length, 2] for question answering."""
        block = index // BLOCK
        first = self.starts[block * BLOCK]
        rows = self.blocks[block][self.starts[index] - first : self.starts[index + 1] - first]
        return rows if self.per_token else rows[0]

    def batch(self, indices: np.ndarray, device: torch.device) -> Tensor:
        """Returns some items' logits, float32: [batch, labels] or [batch, length, 2], padded with 0."""
        shape = (self.lengths[indices].max(), self.width) if self.per_token else (self.width,)
        out = np.zeros((len(indices), *shape), np.float32)
        for row, index in enumerate(indices):
            values = self.of(int(index))
            out[(row, slice(len(values))) if self.per_token else row] = values
        return torch.from_numpy(out).to(device)


def block_count(items: int) -> int:
    """Returns the number of files for so many items."""
    return -(-items // BLOCK)


def block_name(block: int) -> str:
    """Returns the file name of a block (from 0)."""
    return f"{block:05d}.npy"


def keep_targets(
    folder: Path,
    teacher: Callable[[TensorBatch], Tensor],
    items: Sequence[Item],
    precision: str,
    on_step: OnStep = silent,
) -> Targets:
    """Runs the teacher on every item once and keeps its logits. A repeated call computes only missing blocks.

    The processes of a run share the blocks. Each writes its own files, and all read all files.

    Args:
        folder: created if missing; for this teacher and these items only.
        teacher: maps a batch to logits, [batch, labels] or [batch, length, 2].
        precision: the recipe's, so that the logits are those that training would have computed.
    """
    folder.mkdir(exist_ok=True)
    accelerator = engine(precision)
    blocks = block_count(len(items))
    for block in range(accelerator.process_index, blocks, accelerator.num_processes):
        on_step("asking the teacher", block, blocks)
        if not (folder / block_name(block)).is_file():
            with torch.no_grad(), accelerator.autocast():
                values = _logits(teacher, items[block * BLOCK : (block + 1) * BLOCK], accelerator.device)
            partial = folder / f"{block_name(block)}.partial"
            with open(partial, "wb") as stream:
                np.save(stream, np.concatenate(values))
            os.replace(partial, folder / block_name(block))
    processes.wait()
    on_step("asking the teacher", blocks, blocks)
    lengths = [len(item.ids) for item in items]
    per_token = items[0].answer_mask is not None
    width = np.load(folder / block_name(0), mmap_mode="r").shape[-1]
    return Targets(folder, lengths, width, per_token)


def _logits(teacher: Callable[[TensorBatch], Tensor], items: Sequence[Item], device: torch.device) -> list[np.ndarray]:
    """Returns each item's rows, [1, labels] or [length, 2] float16, in the items' order. Batches hold like lengths."""
    values: list[np.ndarray] = [np.empty(0)] * len(items)
    for rows in sorted_batches([len(item.ids) for item in items]):
        batch = TensorBatch.of(collate([items[row] for row in rows]), device)
        logits = teacher(batch).float().cpu().numpy().astype(np.float16)
        for row, part in zip(rows, logits):
            values[row] = part[: len(items[row].ids)] if part.ndim == 2 else part[None]
    return values
