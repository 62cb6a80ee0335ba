"""What the teacher says of every training item, computed once and kept on disk, so that no later step has to run the teacher."""

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

# Items of one file: a file is the unit that is written whole or not at all, and that processes share out among them.
BLOCK = 4096


class Targets:
    """The kept logits, read by memory map.

    They are float16: two bytes a number, 11 significant bits, so logits within 16 of 0 are off by at most 0.004; what autocast computed
    in bfloat16 fits exactly.

    Args:
        folder: where `keep_targets` wrote.
        sizes: how many tokens each item has.
        width: numbers of one token (2 for question answering), or of one item (labels).
        per_token: whether logits are of tokens.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], width: int, per_token: bool):
        self.sizes, self.width, self.per_token = np.asarray(sizes), width, per_token
        rows = self.sizes if per_token else np.ones(len(sizes), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        self.blocks = [np.load(folder / name_of(block), mmap_mode="r") for block in range(block_count(len(sizes)))]

    def of(self, index: int) -> np.ndarray:
        """One item's logits, [labels] or [length, 2] float16."""
        block = index // BLOCK
        first = self.starts[block * BLOCK]
        rows = self.blocks[block][self.starts[index] - first : self.starts[index + 1] - first]
        return rows if self.per_token else rows[0]

    def batch(self, indices: np.ndarray, device: torch.device) -> Tensor:
        """The logits of a batch, [batch, labels] or [batch, length, 2] float32, padded with 0 as `collate` pads."""
        shape = (self.sizes[indices].max(), self.width) if self.per_token else (self.width,)
        out = np.zeros((len(indices), *shape), np.float32)
        for row, index in enumerate(indices):
            values = self.of(int(index))
            out[(row, slice(len(values))) if self.per_token else row] = values
        return torch.from_numpy(out).to(device)


def block_count(items: int) -> int:
    return -(-items // BLOCK)


def name_of(block: int) -> str:
    return f"{block:05d}.npy"


def keep_targets(
    folder: Path,
    teacher: Callable[[TensorBatch], Tensor],
    items: Sequence[Item],
    precision: str,
    on_step: OnStep = silent,
) -> Targets:
    """Asks the teacher about every item, once; a pass that was interrupted goes on with the blocks that are missing.

    The processes of a run share the blocks, and all write: files of their own, which the others then read.

    Args:
        folder: made by this; belongs to this teacher and these items alone.
        teacher: from a batch to logits, [batch, labels] or [batch, length, 2].
        precision: the recipe's, since targets are to be what training would have computed.
    """
    folder.mkdir(exist_ok=True)
    accelerator = engine(precision)
    blocks = block_count(len(items))
    for block in range(accelerator.process_index, blocks, accelerator.num_processes):
        on_step("asking the teacher", block, blocks)
        if not (folder / name_of(block)).is_file():
            with torch.no_grad(), accelerator.autocast():
                values = _logits(teacher, items[block * BLOCK : (block + 1) * BLOCK], accelerator.device)
            partial = folder / f"{name_of(block)}.partial"
            with open(partial, "wb") as stream:
                np.save(stream, np.concatenate(values))
            os.replace(partial, folder / name_of(block))
    processes.wait()
    on_step("asking the teacher", blocks, blocks)
    lengths = [len(item.ids) for item in items]
    per_token = items[0].answer_mask is not None
    width = np.load(folder / name_of(0), mmap_mode="r").shape[-1]
    return Targets(folder, lengths, width, per_token)


def _logits(teacher: Callable[[TensorBatch], Tensor], items: Sequence[Item], device: torch.device) -> list[np.ndarray]:
    """Each item's rows, [1, labels] or [length, 2] float16, in the items' order; like lengths go through the teacher together."""
    values: list[np.ndarray] = [np.empty(0)] * len(items)
    for rows in sorted_batches([len(item.ids) for item in items]):
        logits = (
            teacher(TensorBatch.of(collate([items[row] for row in rows]), device))
            .float()
            .cpu()
            .numpy()
            .astype(np.float16)
        )
        for row, part in zip(rows, logits):
            values[row] = part[: len(items[row].ids)] if part.ndim == 2 else part[None]
    return values
