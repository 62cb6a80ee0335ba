"""The one place that silences what third-party libraries say on import and while they run.

What is silenced, and why it is noise: torchao looks for CUDA kernels that a CPU build has not ("Failed to load ... .so") and
registers enums in a deprecated way; coremltools warns that this torch and scikit-learn are newer than those it was tested with, and
that macOS' frameworks are missing; ExecuTorch's cpuinfo lists the processor on stderr. None of it is for the user to act on.
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
    """Drops Python warnings and all log records up to ERROR. What the user's own code prints, a progress bar say, still shows."""
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
    """Keeps everything, native code's lines too, off the process' stderr (file descriptor 2) and shows it only if the block fails.

    The whole process loses its stderr for that time, a progress bar's thread too: only for short calls; `quiet_logging` for long ones.
    """
    try:
        sys.stderr.flush()
        stderr = os.dup(2)
    except (OSError, ValueError, AttributeError):  # closed, or none at all (a windowed process): nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        failed = False
        try:
            yield
        except UserError:  # says all there is to say
            raise
        except BaseException:
            failed = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            if failed:
                said.seek(0)
                os.write(stderr, said.read())
            os.close(stderr)


def import_quietly(name: str) -> ModuleType:
    """Imports a module, `importlib.import_module(name)`, without the noise. Raises ImportError as an import does."""
    if name in sys.modules:
        return sys.modules[name]
    with quiet_stderr(), quiet_logging():
        return importlib.import_module(name)
