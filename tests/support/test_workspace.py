"""Stages are published whole or not at all, skipped when nothing changed, and continue after a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.support import workspace as workspace_module
from pipeline.support.errors import UserError
from pipeline.support.workspace import StageFolder, Workspace, digest_of, digest_tree, write_text

REPOSITORY = Path(__file__).resolve().parents[2]
# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "out")


def content(text: str = "weights"):
    """Returns a build that leaves two files, one of them in a folder."""

    def build(folder: StageFolder) -> None:
        (folder.out / "a.txt").write_text(text)
        (folder.out / "sub").mkdir()
        (folder.out / "sub" / "b.txt").write_text("more")

    return build


def refuse(folder: StageFolder) -> None:
    raise AssertionError("a finished stage was built again")


def test_a_stage_is_published_whole_and_then_skipped(workspace):
    def build(folder: StageFolder) -> None:
        content()(folder)
        assert not workspace.folder("model").exists()
        assert workspace.record("model") is None

    assert workspace.run("model", "key", build) is True
    assert (workspace.folder("model") / "a.txt").read_text() == "weights"
    assert (workspace.folder("model") / "sub" / "b.txt").read_text() == "more"
    assert workspace.is_done("model", "key")
    assert list((workspace.root / ".work").iterdir()) == []
    record = workspace.record("model")
    assert (
        record["seconds"] >= 0
        and record["resumed"] is False
        and record["digest"] == digest_tree(workspace.folder("model"))
    )
    assert workspace.run("model", "key", refuse) is False
    assert Workspace(workspace.root).run("model", "key", refuse) is False  # another process, another day


def test_a_changed_key_builds_again_and_leaves_nothing_of_the_old_result(workspace):
    workspace.run("model", "one", content())
    assert not workspace.is_done("model", "two")

    def build(folder: StageFolder) -> None:
        (folder.out / "other.txt").write_text("new")

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
    workspace.run("model", "key", content())
    damage(workspace.folder("model"))
    assert not workspace.is_done("model", "key")
    assert workspace.run("model", "key", content()) is True
    assert digest_tree(workspace.folder("model")) == workspace.record("model")["digest"]
    assert (workspace.folder("model") / "a.txt").read_text() == "weights"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": "key"}'])
def test_a_damaged_record_counts_as_missing(workspace, text):
    workspace.run("model", "key", content())
    (workspace.root / ".stages" / "model.json").write_text(text)
    assert not workspace.is_done("model", "key")
    assert workspace.run("model", "key", content()) is True


def test_an_error_leaves_the_old_result(workspace):
    workspace.run("model", "one", content("before"))

    def build(folder: StageFolder) -> None:
        (folder.out / "a.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        workspace.run("model", "two", build)
    assert (workspace.folder("model") / "a.txt").read_text() == "before"
    assert workspace.is_done("model", "one")


def test_the_time_of_interrupted_attempts_counts(workspace, monkeypatch):
    """An attempt counts until its last write. The idle time between two attempts does not count."""
    # The clock stands still but for the build's own seconds. It is ahead of the machine's, and so are the checkpoint's
    # times: the real times of other files cannot matter.
    clock = SimpleNamespace(time=lambda: 2e9, seconds=0.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(workspace_module, "time", clock)

    def interrupted(folder: StageFolder) -> None:
        (folder.scratch / "checkpoint").write_text("half")
        os.utime(folder.scratch / "checkpoint", (2e9 + 70, 2e9 + 70))
        raise ZeroDivisionError

    def five_seconds(folder: StageFolder) -> None:
        content()(folder)
        clock.seconds += 5

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            workspace.run("model", "key", interrupted)
    workspace.run("model", "key", five_seconds)
    assert workspace.record("model")["seconds"] == 70 + 70 + 5


# A kill: a real process ends itself with a signal that it cannot catch, at a point that the test chooses.

BUILD = """
import os, signal, sys
from pathlib import Path
from pipeline.support import workspace
from pipeline.support.workspace import Workspace

root, stage_key, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def build(folder):
    steps = folder.scratch / "steps"
    before = steps.read_text() if steps.exists() else ""
    print("found", repr(before), sorted(path.name for path in folder.out.iterdir()))
    (folder.out / "half.txt").write_text(stage_key)
    for step in range(len(before), 4):
        steps.write_text(steps.read_text() + str(step) if step else "0")
        if kill == "build" and step == 1:
            end()
    (folder.out / "half.txt").unlink()
    (folder.out / "whole.txt").write_text(stage_key)
    (folder.out / "steps.txt").write_text(steps.read_text())

if kill == "publish":
    workspace.os.rename = lambda *_: end()
if kill == "record":
    write_text = workspace.write_text
    workspace.write_text = lambda path, text: end() if path.suffix == ".json" else write_text(path, text)
with Workspace(root).locked():
    print("built", Workspace(root).run("model", stage_key, build))
"""


def run_process(root: Path, stage_key: str, kill: str = "no") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BUILD, str(root), stage_key, kill], capture_output=True, text=True, cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def published(workspace: Workspace) -> dict[str, str]:
    return {path.name: path.read_text() for path in workspace.folder("model").iterdir()}


WHOLE = {"whole.txt": "key", "steps.txt": "0123"}


def test_a_kill_while_building_publishes_nothing_and_the_next_run_continues(workspace):
    killed = run_process(workspace.root, "key", "build")
    assert killed.returncode == -signal.SIGKILL
    assert not workspace.folder("model").exists() and workspace.record("model") is None
    again = run_process(workspace.root, "key")
    # The stage finds what it kept in scratch, but not its half-written result.
    assert again.stdout.splitlines() == ["found '01' []", "built True"], again.stderr
    assert published(workspace) == WHOLE and workspace.record("model")["resumed"] is True
    assert list((workspace.root / ".work").iterdir()) == []
    assert workspace.is_done("model", "key")


def test_the_scratch_of_another_key_is_thrown_away(workspace):
    run_process(workspace.root, "other", "build")
    again = run_process(workspace.root, "key")
    assert again.stdout.splitlines() == ["found '' []", "built True"], again.stderr
    assert published(workspace) == WHOLE and workspace.record("model")["resumed"] is False


@pytest.mark.parametrize("kill", ["publish", "record"])
def test_a_kill_while_publishing_never_mixes_old_and_new(workspace, kill):
    workspace.run("model", "older", content())
    killed = run_process(workspace.root, "key", kill)
    assert killed.returncode == -signal.SIGKILL
    assert not workspace.is_done("model", "key") and not workspace.is_done("model", "older")
    assert run_process(workspace.root, "key").returncode == 0
    assert published(workspace) == WHOLE and workspace.is_done("model", "key")


# A full disk. Python's own files report it with an error number; other libraries raise errors of their own.


def full_in_python(folder: StageFolder) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.out / "model.bin"))


def full_in_torch(folder: StageFolder) -> None:
    with open("/dev/full", "wb") as stream:
        torch.save({"weights": torch.zeros(100000)}, stream)


def full_in_rust(folder: StageFolder) -> None:
    # The words of safetensors.
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("build", [full_in_python, full_in_torch, full_in_rust])
def test_a_full_disk_is_one_line_and_harms_nothing(workspace, build):
    workspace.run("data", "key", content())
    with pytest.raises(
        UserError, match="the disk is full in stage model; free some space and run the same command again"
    ):
        workspace.run("model", "key", build)
    assert workspace.is_done("data", "key") and not workspace.folder("model").exists()
    assert workspace.run("model", "key", content()) is True


def test_other_errors_pass_unchanged(workspace):
    def denied(folder: StageFolder) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def mistaken(folder: StageFolder) -> None:
        try:
            full_in_python(folder)
        except OSError:
            raise UserError("its own line") from None

    with pytest.raises(PermissionError):
        workspace.run("model", "key", denied)
    with pytest.raises(UserError, match="^its own line$"):
        workspace.run("model", "key", mistaken)


def test_two_runs_do_not_share_a_folder(workspace):
    other = Workspace(workspace.root)
    with workspace.locked():
        with pytest.raises(UserError, match="another run is writing here"):
            with other.locked():
                pass
        refused = run_process(workspace.root, "key")
        assert "another run is writing here" in refused.stderr and not workspace.folder("model").exists()
    with other.locked():
        pass
    run_process(workspace.root, "key", "build")  # a killed process releases its lock
    with workspace.locked():
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file.*cannot be made"):
            Workspace(root)


def test_different_values_have_different_digests():
    assert digest_of("a", {"x": 1, "y": 2}) == digest_of("a", {"y": 2, "x": 1})
    values = [(), ("a",), ("b",), ("a", "b"), (["a", "b"],), ("ab",)]
    assert len({digest_of(*parts) for parts in values}) == len(values)


def test_digests_stay_the_same_so_that_older_runs_count_as_done():
    assert digest_of("prepare", 2, [{"text": "é", "limit": None}], Path("a")) == (
        "3c65788cb997610821d34fc073554168e0c38197381574784984bd628edc0b53"
    )


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
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
