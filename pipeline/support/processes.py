"""Coordinates the processes of one run that `accelerate launch` started.

The main process (rank 0) writes files and the terminal. The others compute with it, wait for it and fail with it.
A run of one process, the usual case, passes through here without importing torch or accelerate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

# The other processes may wait for hours while one measures or downloads. The launcher notices a process that dies.
COLLECTIVE_TIMEOUT = timedelta(days=7)

# True once the processes no longer coordinate: the run failed, or only the main process has work left.
group_dissolved = False


class FailedElsewhere(Exception):
    """Another process of the run failed and reports why. This process ends without a message."""


def count() -> int:
    """Returns the number of processes in the run, 1 unless a launcher started it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns the number of this process in the run, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Returns whether this process writes files and the terminal."""
    return rank() == 0


def state() -> PartialState:
    """Returns accelerate's `PartialState`, which knows the device of this process.

    The first call creates the process group if the run has several processes.
    """
    import torch
    from accelerate import PartialState

    # Without an explicit `cpu`, PartialState treats several processes without an accelerator as separate runs.
    cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available()
    )
    return PartialState(cpu=cpu, **({"timeout": COLLECTIVE_TIMEOUT} if count() > 1 else {}))


def in_group() -> bool:
    """Returns whether this process still coordinates with others."""
    return count() > 1 and not group_dissolved


def gather(value: T) -> list[T]:
    """Returns the value of every process, in the order of their ranks.

    Every process must call this or `share_failure`.

    Raises:
        FailedElsewhere: another process has failed.
    """
    if not in_group():
        return [value]
    answers = _exchange((False, value))
    if any(failed for failed, _ in answers):
        dissolve_group()
        raise FailedElsewhere
    return [value for _, value in answers]


def from_main(work: Callable[[], T]) -> T:
    """Calls `work` on the main process only and returns its result on every process."""
    if not in_group():
        return work()
    # The main process is rank 0, so the first value is what `work` returned there.
    values: list[Any] = gather(work() if is_main() else None)
    result: T = values[0]
    return result


def wait() -> None:
    """Waits until every process has called this."""
    gather(None)


def share_failure(error: BaseException | None) -> None:
    """Tells every process whether this one failed; returns if none did.

    Raises:
        FailedElsewhere: on every process but the first that failed, which raises its own `error`.
    """
    failed = [failed for failed, _ in _exchange((error is not None, None))]
    if any(failed):
        dissolve_group()
        if error is not None and failed.index(True) == rank():
            raise error
        raise FailedElsewhere


def dissolve_group() -> None:
    """Ends the coordination: from here on no process waits for another.

    The group is destroyed here because the interpreter's shutdown could abort the process in one of its threads.
    """
    global group_dissolved
    group_dissolved = True
    state().destroy_process_group()


def leave() -> None:
    """Waits for all processes, then dissolves the group. They call it when only the main process has work left."""
    if in_group():
        wait()
        dissolve_group()


@contextmanager
def together() -> Iterator[None]:
    """Makes all processes fail as soon as one fails inside the block. One of them reports why."""
    if count() == 1:
        yield
        return
    try:
        yield
        leave()
    except Exception as error:
        if in_group() and not isinstance(error, FailedElsewhere):
            share_failure(error)
        raise


def _exchange(value: T) -> list[T]:
    from accelerate.utils import gather_object

    state()
    return gather_object([value])
