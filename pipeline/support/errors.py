"""The error for mistakes of the user: one line that names the place and the way out."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave.

    The command line prints `str(error)` on stderr and exits with 2. It never shows a traceback for it.

    Args:
        message: what is wrong, then a semicolon, then what to do about it.
        file: the file that is wrong, if there is one.
        field: the recipe key, column, line or manifest field that is wrong, if there is one.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, field: str | None = None):
        place = ": ".join(str(part) for part in (file, field) if part is not None)
        line = f"{place}: {message}" if place else message
        super().__init__(" ".join(line.split()))
        self.file = None if file is None else str(file)
        self.field = field


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, cut to 200 characters; the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
