"""Stage folders: written whole or not at all, skipped when nothing that went into them has changed.

OUT/<stage>/              what a finished stage left
OUT/.stages/<stage>.json  its fingerprint, its seconds, the digests of its files
OUT/.work/<stage>/        a stage under way: `out` becomes the stage folder, the rest is its place to continue from
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

from pipeline.support import processes
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a running stage writes: `out` is published when the stage returns; `scratch` survives a kill and is then deleted."""

    out: Path
    scratch: Path


def fingerprint(*parts) -> str:
    """A digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def digest_tree(folder: Path) -> str:
    """A digest of all files below a folder: names and contents."""
    entries = [
        (path.relative_to(folder).as_posix(), sha256_of(path)) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    return fingerprint(entries)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is a full disk. Libraries written in C++ and Rust only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Workspace:
    """The output folder of a run."""

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
        """Keeps a second run out of the same folder; all processes of one run share it. The lock goes with the process, however that ends."""
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
        return self.root / stage

    def record(self, stage: str) -> dict | None:
        """What `run` noted when the stage finished, None if it has not."""
        try:
            return json.loads((self.root / ".stages" / f"{stage}.json").read_text())
        except (OSError, ValueError):
            return None

    def is_done(self, stage: str, mark: str) -> bool:
        """Whether the stage's folder is there, whole, and made from exactly this."""
        record = self.record(stage)
        folder = self.folder(stage)
        if not isinstance(record, dict) or record.get("fingerprint") != mark or not folder.is_dir():
            return False
        return digest_tree(folder) == record.get("digest")

    def run(self, stage: str, mark: str, build: Callable[[Place], None]) -> bool:
        """Builds a stage unless it is done. Returns whether it had to.

        Args:
            stage: the folder's name.
            mark: fingerprint of everything that goes in.
            build: writes into `place.out`; called again with the same `place.scratch` after an interruption.

        Raises:
            UserError: when the disk is full; everything finished stays.
        """
        if self.is_done(stage, mark):
            return False
        work = self.root / ".work" / stage
        mark_file = work / "fingerprint"
        if work.is_dir() and (not mark_file.is_file() or mark_file.read_text() != mark):
            shutil.rmtree(work)
        place = Place(out=work / "out", scratch=work)
        started = time.monotonic()
        try:
            resumed = mark_file.is_file()
            work.mkdir(exist_ok=True)
            before = note_attempt(work)
            write_text(mark_file, mark)
            # A half-written result is never continued; what a stage can continue from, it keeps in scratch.
            shutil.rmtree(place.out, ignore_errors=True)
            place.out.mkdir()
            build(place)
            seconds = before + time.monotonic() - started
            self._publish(stage, mark, place, seconds, resumed)
        except UserError:  # says all there is to say
            raise
        except Exception as error:
            if is_full_disk(error):
                raise UserError(
                    f"the disk is full in stage {stage}; free some space and run the same command again, it continues",
                    file=self.root,
                ) from None
            raise
        return True

    def _publish(self, stage: str, mark: str, place: Place, seconds: float, resumed: bool) -> None:
        folder = self.folder(stage)
        record = self.root / ".stages" / f"{stage}.json"
        digest = digest_tree(place.out)
        # Without its record a stage counts as undone, so a kill between these lines costs a rebuild, never a mix of old and new.
        record.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(place.out, folder)
        entry = {"fingerprint": mark, "digest": digest, "seconds": round(seconds, 1), "resumed": resumed}
        write_text(record, json.dumps(entry, indent=2) + "\n")
        shutil.rmtree(place.scratch, ignore_errors=True)


def note_attempt(work: Path) -> float:
    """Notes that work on a stage starts here and now; returns the seconds that earlier attempts, which were cut off, put into it.

    Nobody notes when a process is killed: an attempt lasted until it last wrote something that stayed.
    """
    note = work / "attempt"
    spent = 0.0
    if note.is_file():
        earlier = json.loads(note.read_text())
        last = max(path.stat().st_mtime for path in work.rglob("*") if path.is_file())
        spent = earlier["spent"] + max(0.0, last - earlier["started"])
    write_text(note, json.dumps({"spent": spent, "started": time.time()}))
    return spent


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same of a file that is no text."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
