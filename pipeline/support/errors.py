"""The error for mistakes of the user: one line that names the place and the way out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

ResultT = TypeVar("ResultT")


class UserError(Exception):
    """A mistake in what the user gave.

    The command line prints `str(error)` on stderr and exits with 2. It never shows a traceback for it.

    Args:
        message: what is wrong, then a semicolon, then what to do about it.
        file: the file that is wrong, if there is one.
        field: the recipe key, column, line or manifest field that is wrong, if there is one.
        settings: the `key=value` of a recipe that mend it, where there are such. The line ends with them.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        settings: Sequence[str] = (),
    ):
        self.message = " ".join(message.split())
        self.file = None if file is None else str(file)
        self.field = field
        self.settings = tuple(settings)
        super().__init__(self.line(self.file))

    @property
    def errors(self) -> tuple[UserError, ...]:
        """The mistakes, one by one; most errors are about one."""
        return (self,)

    def line(self, file: str | None) -> str:
        """Returns the mistake in one line that begins with this file, if it is not None."""
        place = [" ".join(part.split()) for part in (file, self.field) if part is not None]
        mend = " ".join(f"--set {shlex.quote(setting)}" for setting in self.settings)
        return ": ".join([*place, self.message]) + (f" ({mend})" if mend else "")


class SeveralErrors(UserError):
    """Several mistakes, said at once: a line with their number, and an indented line for each.

    Args:
        errors: at least two.
        source: what most of them are in, such as a recipe file; their own lines need not repeat it.
    """

    def __init__(self, errors: Sequence[UserError], source: str | Path | None = None):
        title = f"{len(errors)} problems"
        super().__init__(title, file=source, field=None)
        self._errors = tuple(errors)
        lines = [error.line(None if error.file == self.file else error.file) for error in errors]
        self.args = ("\n".join([super().line(self.file), *(f"  {line}" for line in lines)]),)

    @property
    def errors(self) -> tuple[UserError, ...]:
        return self._errors


class Problems:
    """Keeps the errors of several checks, so that a user hears of all mistakes at once."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def attempt(self, action: Callable[[], ResultT]) -> ResultT | None:
        """Returns the result of an action, or None if it raised a UserError, which is kept."""
        try:
            return action()
        except UserError as error:
            # One file may be read twice, for training and to measure on.
            self.errors += [new for new in error.errors if str(new) not in map(str, self.errors)]
            return None

    def require_none(self, source: str | Path | None = None) -> None:
        """Raises what was kept: one error as it is, several together. `source` is that of `SeveralErrors`."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise SeveralErrors(self.errors, source)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, cut to 200 characters; the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
