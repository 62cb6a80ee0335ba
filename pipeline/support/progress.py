"""Shows the progress of long work on stderr: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.support import processes

# All processes of a run print here, but only the main one is heard.
console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not processes.is_main())

WIDTH_OF_A_FILE = 110  # characters


def output() -> Console:
    """Returns a console on stdout, for results. It is wide enough for a table even if stdout is a file."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)


# Arguments: a description of the work, the steps done, the steps in all.
OnStep = Callable[[str, int, int], None]

SECONDS_BETWEEN_LINES = 10.0


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing: the default `OnStep`."""


@contextmanager
def muted() -> Iterator[OnStep]:
    """Shows nothing inside the block, and yields a function that reports nothing. For calls from Python."""
    before, console.quiet = console.quiet, True
    try:
        yield silent
    finally:
        console.quiet = before


@contextmanager
def progress() -> Iterator[OnStep]:
    """Yields a function that reports steps. A new description starts a new bar."""
    if console.quiet or not processes.is_main():
        yield silent
        return
    if not sys.stderr.isatty():
        yield _line_printer()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def on_step(what: str, done: int, total: int) -> None:
            # The text after a comma, such as a loss, changes at every step. The bar stays the same.
            name = what.split(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], completed=done, total=total, description=what)

        yield on_step


def _line_printer() -> OnStep:
    """Returns an `OnStep` that prints a line when work starts, then at most every ten seconds, and when it ends."""
    current: str | None = None
    started = last_line = 0.0

    def on_step(what: str, done: int, total: int) -> None:
        nonlocal current, started, last_line
        now, name = time.monotonic(), what.split(",")[0]
        if name != current:
            current, started, last_line = name, now, 0.0
        if done >= total or now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            print(f"  {what}: {done}/{total}, {now - started:.0f} s", file=sys.stderr, flush=True)

    return on_step
