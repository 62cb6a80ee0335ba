"""Silences third-party libraries while they are imported and while they run. Nothing else in the project does so.

All of these messages are noise, since the user cannot act on any of them:

- torchao looks for CUDA kernels that a CPU build does not have ("Failed to load ... .so") and registers enums in a
  deprecated way;
- coremltools warns that torch and scikit-learn are too new and that macOS frameworks are missing;
- ExecuTorch's cpuinfo lists the processor on stderr.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pipeline.support.errors import UserError


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Drops Python warnings and all log records up to ERROR. Printed output, such as a progress bar, still shows."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps everything off the process' stderr, native code's output too, and shows it only if the block fails.

    ExecuTorch writes to Python's `sys.stderr`, which is another stream than file descriptor 2 in a notebook.

    The whole process loses its stderr (file descriptor 2) meanwhile, even the thread of a progress bar. Use this for
    short calls and `quiet_logging` for long ones.
    """
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
    except (OSError, ValueError, AttributeError):  # closed or missing (a windowed process): nothing to silence
        yield
        return
    shown = sys.stderr
    with (
        tempfile.TemporaryFile() as captured,
        open(os.dup(captured.fileno()), "w", encoding="utf-8", errors="replace", buffering=1) as text,
    ):
        os.dup2(captured.fileno(), 2)
        sys.stderr = text
        failed = False
        try:
            yield
        except UserError:  # its message is complete
            raise
        except BaseException:
            failed = True
            raise
        finally:
            text.flush()
            sys.stderr = shown
            os.dup2(stderr, 2)
            if failed:
                captured.seek(0)
                os.write(stderr, captured.read())
            os.close(stderr)


def import_quietly(name: str) -> ModuleType:
    """Imports a module without its messages. Raises ImportError as `importlib.import_module` does."""
    if name in sys.modules:
        return sys.modules[name]
    with quiet_stderr(), quiet_logging():
        return importlib.import_module(name)
