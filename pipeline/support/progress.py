"""What a person sees while long work runs: a bar on a terminal, a line now and then elsewhere. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.support import processes

# Of several processes, all of which come here, one speaks.
console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not processes.is_main())

WIDTH_IN_A_FILE = 110


def output() -> Console:
    """A console on stdout, for results; wide enough for a table where it is no terminal."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)


# (what is being done, steps done, steps in all)
OnStep = Callable[[str, int, int], None]

SECONDS_BETWEEN_LINES = 10.0


def silent(what: str, done: int, total: int) -> None:
    """An `OnStep` that shows nothing."""


@contextmanager
def progress() -> Iterator[OnStep]:
    """Gives a function to report steps with. A new description starts a new bar."""
    if not processes.is_main():
        yield silent
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, object] = {}

        def on_step(what: str, done: int, total: int) -> None:
            # The text after a comma (a loss, say) changes from step to step; the bar stays the same one.
            name = what.split(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], completed=done, total=total, description=what)

        yield on_step


def _lines() -> OnStep:
    """Prints a line when something new starts, then at most one every ten seconds, and one at its end."""
    state = {"name": None, "last": 0.0, "start": 0.0}

    def on_step(what: str, done: int, total: int) -> None:
        now, name = time.monotonic(), what.split(",")[0]
        if name != state["name"]:
            state.update(name=name, start=now, last=0.0)
        if done >= total or now - state["last"] >= SECONDS_BETWEEN_LINES:
            state["last"] = now
            print(f"  {what}: {done}/{total}, {now - state['start']:.0f} s", file=sys.stderr, flush=True)

    return on_step
