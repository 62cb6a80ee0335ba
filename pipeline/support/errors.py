"""The one error a user can cause: a single line that names the place and the way out."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave, said in one line.

    The command line prints `str(error)` on stderr and exits with 2; it never shows a traceback for it.

    Args:
        message: what is wrong, and after a semicolon or "; " the way out.
        file: the file it is about, if there is one.
        field: the key, column, line or manifest field it is about, if there is one.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, field: str | None = None):
        place = ": ".join(str(part) for part in (file, field) if part is not None)
        line = f"{place}: {message}" if place else message
        super().__init__(" ".join(line.split()))
        self.file = None if file is None else str(file)
        self.field = field
