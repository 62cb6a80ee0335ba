"""Keeps programs that take long to make and are the same in every benchmark of a user."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from pipeline.support.errors import UserError
from pipeline.support.workspace import is_full_disk

CACHE_VARIABLE = "POCKETBERT_CACHE"
# Files and folders whose code decides what a cached program computes.
PROGRAM_CODE = (
    "pipeline/schemes.py",
    "pipeline/tasks",
    "pipeline/model",
    "pipeline/export",
    "pipeline/bench/runtimes",
    "quantize",
)


def cache_folder() -> Path:
    """Returns the user's cache folder: `POCKETBERT_CACHE`, or `~/.cache/pocketbert`."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "pocketbert").expanduser()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Returns a digest of the code that turns a model into programs, since another version makes other programs."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for place in PROGRAM_CODE:
        for path in sorted((root / place).glob("*.py")) or [root / place]:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def cached_path(name: str, build: Callable[[Path], None]) -> Path:
    """Returns a file or folder in the cache, and makes it on the first call. It is there completely or not at all.

    Args:
        name: path below the cache folder; it has to contain everything that the contents depend on.
        build: makes the file or folder at a given path. It may draw random numbers; the caller's generator is not
            changed.

    Raises:
        UserError: the cache folder cannot be written.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two benchmarks may make the same program at once. Each makes its own copy.
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name, suffix=".partial"))
    except OSError as error:
        raise unwritable(error, path.parent) from None
    try:
        with torch.random.fork_rng(devices=[]):
            build(scratch / path.name)
        os.replace(scratch / path.name, path)
    except Exception as error:
        if path.is_dir():  # the other benchmark was first, and `os.replace` does not replace a folder
            return path
        if isinstance(error, OSError) or is_full_disk(error):
            raise unwritable(error, path.parent) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def unwritable(error: Exception, folder: Path) -> UserError:
    """Returns the error for a cache folder that cannot be written."""
    full = is_full_disk(error) or getattr(error, "errno", None) == errno.EDQUOT
    reason = "the disk is full" if full else getattr(error, "strerror", None) or error
    return UserError(
        f"benchmark programs cannot be stored here ({reason}); set {CACHE_VARIABLE} to a folder with room (BERT-base "
        "takes 500 MB, the peers of a DistilBERT 2 GB and more), or measure without them",
        file=folder,
    )
