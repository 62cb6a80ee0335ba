"""The output folder of a run, with one folder a stage.

A stage's folder is published whole or not at all. The stage is skipped while its inputs and its result are unchanged.

OUT/<stage>/              the result of a finished stage
OUT/.stages/<stage>.json  its key (a digest of its inputs), its seconds, the digest of its result
OUT/.work/<stage>/        a stage under way: `out` becomes OUT/<stage>, the rest is for continuing after a kill
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.support import processes
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class StageFolder:
    """Where a running stage writes.

    Attributes:
        out: the result, which is published when the stage returns.
        scratch: what the stage needs to continue after a kill; it is deleted when the stage returns.
    """

    out: Path
    scratch: Path


def digest_of(*parts: object) -> str:
    """Returns the SHA-256 of values that JSON can hold; others count as their `str`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def digest_tree(folder: Path) -> str:
    """Returns a digest of the names and contents of all files below a folder."""
    entries = [
        (path.relative_to(folder).as_posix(), sha256_of(path)) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    return digest_of(entries)


def is_full_disk(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, is a full disk.

    Libraries written in C++ and Rust report it in the message only.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Workspace:
    """The output folder of a run.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not processes.is_main():  # writes nothing
            return
        try:
            (self.root / ".stages").mkdir(parents=True, exist_ok=True)
            (self.root / ".work").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot be made ({error.strerror}); give another folder with --out", file=self.root
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run out of the folder; all processes of one run share the lock.

        The operating system releases the lock when the process ends, even if it is killed.

        Raises:
            UserError: another run holds the lock.
        """
        if not processes.is_main():
            yield
            return
        with open(self.root / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another run is writing here; wait for it or give another --out", file=self.root
                ) from None
            yield

    def folder(self, stage: str) -> Path:
        """Returns where the result of a stage is, or will be."""
        return self.root / stage

    def record(self, stage: str) -> dict[str, Any] | None:
        """Returns the record that `run` wrote when the stage finished, None if there is none."""
        try:
            record: dict[str, Any] = json.loads((self.root / ".stages" / f"{stage}.json").read_text())
        except (OSError, ValueError):
            return None
        return record

    def is_done(self, stage: str, stage_key: str) -> bool:
        """Returns whether the stage's folder is undamaged and was made from the inputs of this key."""
        record = self.record(stage)
        folder = self.folder(stage)
        # The field is called "fingerprint" in the records of existing runs.
        if not isinstance(record, dict) or record.get("fingerprint") != stage_key or not folder.is_dir():
            return False
        return digest_tree(folder) == record.get("digest")

    def run(self, stage: str, stage_key: str, build: Callable[[StageFolder], None]) -> bool:
        """Builds a stage unless it is done. Returns whether it was built now.

        Args:
            stage: the name of the stage's folder.
            stage_key: a digest of everything that the result depends on.
            build: writes the result into the stage folder's `out`. After an interruption it is called again with the
                same `scratch`.

        Raises:
            UserError: the disk is full; the results of finished stages stay.
        """
        if self.is_done(stage, stage_key):
            return False
        work = self.root / ".work" / stage
        key_file = work / "fingerprint"
        if work.is_dir() and (not key_file.is_file() or key_file.read_text() != stage_key):
            shutil.rmtree(work)
        stage_folder = StageFolder(out=work / "out", scratch=work)
        started = time.monotonic()
        try:
            resumed = key_file.is_file()
            work.mkdir(exist_ok=True)
            earlier_seconds = note_attempt(work)
            write_text(key_file, stage_key)
            # A half-written result is never continued. A stage keeps what it can continue from in scratch.
            shutil.rmtree(stage_folder.out, ignore_errors=True)
            stage_folder.out.mkdir()
            build(stage_folder)
            seconds = earlier_seconds + time.monotonic() - started
            self._publish(stage, stage_key, stage_folder, seconds, resumed)
        except UserError:  # its message is complete
            raise
        except Exception as error:
            if is_full_disk(error):
                raise UserError(
                    f"the disk is full in stage {stage}; free some space and run the same command again, it continues",
                    file=self.root,
                ) from None
            raise
        return True

    def _publish(self, stage: str, stage_key: str, stage_folder: StageFolder, seconds: float, resumed: bool) -> None:
        folder = self.folder(stage)
        record = self.root / ".stages" / f"{stage}.json"
        digest = digest_tree(stage_folder.out)
        # A stage without a record counts as undone. So a kill between the next lines costs a rebuild but never mixes an
        # old result with a new one.
        record.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(stage_folder.out, folder)
        entry = {"fingerprint": stage_key, "digest": digest, "seconds": round(seconds, 1), "resumed": resumed}
        write_text(record, json.dumps(entry, indent=2) + "\n")
        shutil.rmtree(stage_folder.scratch, ignore_errors=True)


def note_attempt(work: Path) -> float:
    """Notes that an attempt at a stage starts now. Returns the seconds that earlier, interrupted attempts took.

    A killed process cannot note its end. Its attempt counts until its last write to a file that still exists.
    """
    note = work / "attempt"
    spent = 0.0
    if note.is_file():
        earlier = json.loads(note.read_text())
        last_write = max(path.stat().st_mtime for path in work.rglob("*") if path.is_file())
        spent = earlier["spent"] + max(0.0, last_write - earlier["started"])
    write_text(note, json.dumps({"spent": spent, "started": time.time()}))
    return spent


def write_text(path: Path, text: str) -> None:
    """Writes a small text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a small binary file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
