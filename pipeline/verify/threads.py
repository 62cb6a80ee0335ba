"""Keeps the evaluation of Core ML programs on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute on one thread inside the block.

    An evaluation is thousands of operators of a millisecond or less. torch's threads wait for each other after each of
    them, and they spin while they wait. Where another program keeps a core busy that took minutes instead of seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
