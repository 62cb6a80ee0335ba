"""Stages are published whole or not at all, skipped when nothing changed, and go on after a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.support.errors import UserError
from pipeline.support.workspace import Place, Workspace, digest_tree, fingerprint, write_text

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "out")


def content(text: str = "weights"):
    """A build that leaves two files, one in a folder."""

    def build(place: Place) -> None:
        (place.out / "a.txt").write_text(text)
        (place.out / "sub").mkdir()
        (place.out / "sub" / "b.txt").write_text("more")

    return build


def refuse(place: Place) -> None:
    raise AssertionError("a finished stage was built again")


def test_a_stage_is_published_whole_and_then_skipped(workspace):
    def build(place: Place) -> None:
        content()(place)
        assert not workspace.folder("model").exists()
        assert workspace.record("model") is None

    assert workspace.run("model", "mark", build) is True
    assert (workspace.folder("model") / "a.txt").read_text() == "weights"
    assert (workspace.folder("model") / "sub" / "b.txt").read_text() == "more"
    assert workspace.is_done("model", "mark")
    assert list((workspace.root / ".work").iterdir()) == []
    record = workspace.record("model")
    assert (
        record["seconds"] >= 0
        and record["resumed"] is False
        and record["digest"] == digest_tree(workspace.folder("model"))
    )
    assert workspace.run("model", "mark", refuse) is False
    assert Workspace(workspace.root).run("model", "mark", refuse) is False  # another process, another day


def test_a_changed_mark_builds_again_and_leaves_nothing_of_before(workspace):
    workspace.run("model", "one", content())
    assert not workspace.is_done("model", "two")

    def build(place: Place) -> None:
        (place.out / "other.txt").write_text("new")

    assert workspace.run("model", "two", build) is True
    assert [path.name for path in workspace.folder("model").iterdir()] == ["other.txt"]
    assert not workspace.is_done("model", "one")


def alter(folder: Path) -> None:
    (folder / "a.txt").write_text("weighst")


def add(folder: Path) -> None:
    (folder / "sub" / "c.txt").write_text("")


def remove(folder: Path) -> None:
    (folder / "sub" / "b.txt").unlink()


def rename(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "z.txt")


def remove_all(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [alter, add, remove, rename, remove_all])
def test_a_damaged_result_is_built_again(workspace, damage):
    workspace.run("model", "mark", content())
    damage(workspace.folder("model"))
    assert not workspace.is_done("model", "mark")
    assert workspace.run("model", "mark", content()) is True
    assert digest_tree(workspace.folder("model")) == workspace.record("model")["digest"]
    assert (workspace.folder("model") / "a.txt").read_text() == "weights"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": "mark"}'])
def test_a_damaged_record_counts_as_none(workspace, text):
    workspace.run("model", "mark", content())
    (workspace.root / ".stages" / "model.json").write_text(text)
    assert not workspace.is_done("model", "mark")
    assert workspace.run("model", "mark", content()) is True


def test_an_error_leaves_the_result_of_before(workspace):
    workspace.run("model", "one", content("before"))

    def build(place: Place) -> None:
        (place.out / "a.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        workspace.run("model", "two", build)
    assert (workspace.folder("model") / "a.txt").read_text() == "before"
    assert workspace.is_done("model", "one")


def test_the_time_of_attempts_that_were_cut_off_counts(workspace):
    """An attempt lasted until it last wrote; what was idle between two is not counted."""

    def cut_off(place: Place) -> None:
        (place.scratch / "checkpoint").write_text("half")
        note = place.scratch / "attempt"
        started = json.loads(note.read_text())["started"]
        os.utime(place.scratch / "checkpoint", (started + 70, started + 70))
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            workspace.run("model", "mark", cut_off)
    workspace.run("model", "mark", content())
    assert 140 <= workspace.record("model")["seconds"] < 150


# A kill: a real process, ended by a signal that it cannot see.

BUILD = """
import os, signal, sys
from pathlib import Path
from pipeline.support import workspace
from pipeline.support.workspace import Workspace

root, mark, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def build(place):
    steps = place.scratch / "steps"
    before = steps.read_text() if steps.exists() else ""
    print("found", repr(before), sorted(path.name for path in place.out.iterdir()))
    (place.out / "half.txt").write_text(mark)
    for step in range(len(before), 4):
        steps.write_text(steps.read_text() + str(step) if step else "0")
        if kill == "build" and step == 1:
            end()
    (place.out / "half.txt").unlink()
    (place.out / "whole.txt").write_text(mark)
    (place.out / "steps.txt").write_text(steps.read_text())

if kill == "publish":
    workspace.os.rename = lambda *_: end()
if kill == "record":
    write_text = workspace.write_text
    workspace.write_text = lambda path, text: end() if path.suffix == ".json" else write_text(path, text)
with Workspace(root).locked():
    print("built", Workspace(root).run("model", mark, build))
"""


def run_process(root: Path, mark: str, kill: str = "no") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(root), mark, kill], capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def published(workspace: Workspace) -> dict[str, str]:
    return {path.name: path.read_text() for path in workspace.folder("model").iterdir()}


WHOLE = {"whole.txt": "mark", "steps.txt": "0123"}


def test_a_kill_while_building_publishes_nothing_and_the_next_run_goes_on(workspace):
    killed = run_process(workspace.root, "mark", "build")
    assert killed.returncode == -signal.SIGKILL
    assert not workspace.folder("model").exists() and workspace.record("model") is None
    again = run_process(workspace.root, "mark")
    # What the stage kept in scratch is there, what it had half written to its result is not.
    assert again.stdout.splitlines() == ["found '01' []", "built True"], again.stderr
    assert published(workspace) == WHOLE and workspace.record("model")["resumed"] is True
    assert list((workspace.root / ".work").iterdir()) == []
    assert workspace.is_done("model", "mark")


def test_scratch_of_another_mark_is_thrown_away(workspace):
    run_process(workspace.root, "other", "build")
    again = run_process(workspace.root, "mark")
    assert again.stdout.splitlines() == ["found '' []", "built True"], again.stderr
    assert published(workspace) == WHOLE and workspace.record("model")["resumed"] is False


@pytest.mark.parametrize("kill", ["publish", "record"])
def test_a_kill_while_publishing_never_mixes_old_and_new(workspace, kill):
    workspace.run("model", "older", content())
    killed = run_process(workspace.root, "mark", kill)
    assert killed.returncode == -signal.SIGKILL
    assert not workspace.is_done("model", "mark") and not workspace.is_done("model", "older")
    assert run_process(workspace.root, "mark").returncode == 0
    assert published(workspace) == WHOLE and workspace.is_done("model", "mark")


# A full disk. Only Python's own files say so plainly; other libraries' errors are their own.


def full_in_python(place: Place) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place.out / "model.bin"))


def full_in_torch(place: Place) -> None:
    with open("/dev/full", "wb") as stream:
        torch.save({"weights": torch.zeros(100000)}, stream)


def full_in_rust(place: Place) -> None:
    raise RuntimeError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )  # safetensors' words


@pytest.mark.parametrize("build", [full_in_python, full_in_torch, full_in_rust])
def test_a_full_disk_is_one_line_and_harms_nothing(workspace, build):
    workspace.run("data", "mark", content())
    with pytest.raises(
        UserError, match="the disk is full in stage model; free some space and run the same command again"
    ):
        workspace.run("model", "mark", build)
    assert workspace.is_done("data", "mark") and not workspace.folder("model").exists()
    assert workspace.run("model", "mark", content()) is True


def test_other_errors_stay_what_they_are(workspace):
    def denied(place: Place) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def mistaken(place: Place) -> None:
        try:
            full_in_python(place)
        except OSError:
            raise UserError("its own line") from None

    with pytest.raises(PermissionError):
        workspace.run("model", "mark", denied)
    with pytest.raises(UserError, match="^its own line$"):
        workspace.run("model", "mark", mistaken)


def test_two_runs_do_not_share_a_folder(workspace):
    other = Workspace(workspace.root)
    with workspace.locked():
        with pytest.raises(UserError, match="another run is writing here"):
            with other.locked():
                pass
        refused = run_process(workspace.root, "mark")
        assert "another run is writing here" in refused.stderr and not workspace.folder("model").exists()
    with other.locked():
        pass
    run_process(workspace.root, "mark", "build")  # the lock of a killed process goes with it
    with workspace.locked():
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file.*cannot be made"):
            Workspace(root)


def test_fingerprints_tell_apart_what_differs():
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1})
    assert (
        len(
            {
                fingerprint(),
                fingerprint("a"),
                fingerprint("b"),
                fingerprint("a", "b"),
                fingerprint(["a", "b"]),
                fingerprint("ab"),
            }
        )
        == 6
    )


def test_small_files_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_text(path, json.dumps("old"))

    def broken(self, data):
        with open(self, "wb") as stream:
            stream.write(data[:2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError):
        write_text(path, json.dumps("new content"))
    assert path.read_text() == '"old"'
