"""The processes of one run, as `accelerate launch` starts them: which one writes, and how all of them wait, share and fail together.

A run of one process, the usual one, passes through here without importing anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# Others wait while one measures or downloads, for hours if it must be. A process that dies is noticed by the launcher, which ends the rest.
PATIENCE = timedelta(days=7)

parted = (
    False  # every process on its own from here on: the run failed, or only the main process has anything left to do
)


class Elsewhere(Exception):
    """Another process of the run failed and says why; this one ends without a word."""


def count() -> int:
    """How many processes the run has; 1 unless a launcher started it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and the terminal."""
    return rank() == 0


def state():
    """accelerate's `PartialState`: this process' device; the group of several processes is made on the first call."""
    import torch
    from accelerate import PartialState

    # Said outright: left to itself, PartialState takes several processes without an accelerator for several runs of one.
    cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available()
    )
    return PartialState(cpu=cpu, **({"timeout": PATIENCE} if count() > 1 else {}))


def shared() -> bool:
    """Whether other processes run beside this one and still keep step with it."""
    return count() > 1 and not parted


def agree(value: T = None) -> list[T]:
    """Every process' value, in their order. All of them must call it, or have failed.

    Raises:
        Elsewhere: when one has failed.
    """
    if not shared():
        return [value]
    answers = _exchange((False, value))
    if any(failed for failed, _ in answers):
        part()
        raise Elsewhere
    return [value for _, value in answers]


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, which alone calls it."""
    return agree(work() if is_main() or not shared() else None)[0]


def wait() -> None:
    """Until every process is here."""
    agree()


def settle(error: BaseException | None) -> None:
    """Tells every process whether this one failed. The first that did raises its error, the others `Elsewhere`."""
    failed = [failed for failed, _ in _exchange((error is not None, None))]
    if any(failed):
        part()
        if failed.index(True) == rank():
            raise error
        raise Elsewhere


def part() -> None:
    """No process waits for another any more.

    The group goes here and not with the interpreter, whose end may abort the process in one of the group's threads.
    """
    global parted
    parted = True
    state().destroy_process_group()


def leave() -> None:
    """The same without a failure: all processes call it when only the main one has anything left to do."""
    if shared():
        wait()
        part()


@contextmanager
def together() -> Iterator[None]:
    """What happens inside fails on all processes as soon as it fails on one, and one of them says why."""
    if count() == 1:
        yield
        return
    try:
        yield
        leave()
    except Exception as error:
        if shared() and not isinstance(error, Elsewhere):
            settle(error)
        raise


def _exchange(value: T) -> list[T]:
    from accelerate.utils import gather_object

    state()
    return gather_object([value])
