"""What libraries say while they load is shown only where they fail."""

import os
import sys

import pytest

from pipeline.support.errors import UserError
from pipeline.support.quiet import quiet_stderr


def talk():
    print("from Python", file=sys.stderr)
    os.write(2, b"from C\n")


def test_nothing_is_shown_by_python_or_native_code(capfd):
    """pytest's `sys.stderr` writes to another file than file descriptor 2, as a notebook's does."""
    before = sys.stderr
    with quiet_stderr():
        talk()
    with pytest.raises(UserError), quiet_stderr():
        talk()
        raise UserError("complete in itself")
    assert sys.stderr is before and capfd.readouterr() == ("", "")
    talk()
    assert sorted(capfd.readouterr().err.splitlines()) == ["from C", "from Python"]


def test_a_failure_shows_all_of_it(capfd):
    with pytest.raises(RuntimeError), quiet_stderr():
        talk()
        raise RuntimeError
    assert capfd.readouterr().err.splitlines() == ["from Python", "from C"]
