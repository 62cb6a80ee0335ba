"""Programs to compare with, kept from one benchmark to the next: they take long to make and are the same each time."""

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


def cache_folder() -> Path:
    """Where programs are kept that take long to make and are the same for all benchmarks of a user."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "pocketbert").expanduser()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """What identifies the code that makes programs of a model: those of another version of it are others."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for folder in ("pipeline/model", "pipeline/export", "quantize"):
        for path in sorted((root / folder).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def kept(name: str, build: Callable[[Path], None]) -> Path:
    """A file or folder of the cache, made on first use; it is there whole or not at all.

    Args:
        name: below the cache folder; says all that the contents depend on.
        build: makes the file or folder at the path that it is given. Lowering draws random numbers; those of the caller are not touched.

    Raises:
        UserError: the cache folder cannot be written.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two benchmarks may make the same at once: each makes its own.
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name, suffix=".partial"))
    except OSError as error:
        raise unwritable(error, path.parent) from None
    try:
        with torch.random.fork_rng(devices=[]):
            build(scratch / path.name)
        os.replace(scratch / path.name, path)
    except Exception as error:
        if path.is_dir():  # the other benchmark was first, and a folder is not replaced
            return path
        if isinstance(error, OSError) or is_full_disk(error):
            raise unwritable(error, path.parent) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def unwritable(error: Exception, folder: Path) -> UserError:
    full = is_full_disk(error) or getattr(error, "errno", None) == errno.EDQUOT
    return UserError(
        f"what is compared with cannot be kept here ({'the disk is full' if full else getattr(error, 'strerror', None) or error}); set "
        f"{CACHE_VARIABLE} to a folder with room (BERT-base takes 500 MB, the peers of a DistilBERT 2 GB and more), or measure without it",
        file=folder,
    )
