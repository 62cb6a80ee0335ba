"""Runs the `sh` and `python` blocks of pages as a reader would: in order, in one folder, in one environment.

    python docs/run_blocks.py --bin VENV/bin README.md docs/quickstart.md

Files of the reader's own (train.csv, checkpoint, ...) are written from the embedded demo data first. A comment on the
line before a block changes how it runs:

    <!-- not run here: REASON -->   the block is skipped, and the reason is printed
    <!-- run with: ARGUMENTS -->    each `pocketbert run` in it gets these arguments too, to end sooner

The Python blocks of a page run in one process, so that each knows what those before it defined. `--bundles RUN...`
puts the bundles of finished runs where a page expects them, at runs/NAME/bundle.

An unmarked block that fails, and a mark without a reason, end the program with 1.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

LANGUAGES = ("sh", "python")
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)\s*$")
MARK = re.compile(r"^<!--\s*(?P<kind>not run here|run with)(?::\s*(?P<rest>.*?))?\s*-->\s*$")
RUN = re.compile(r"^(\s*pocketbert run\b.*?)(\s+#.*)?$")
BUDGET_SECONDS = 600  # of all blocks together


class BlockError(Exception):
    """A page has a block that cannot be run, or that failed. The message names the page and the line."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        place: the page and the line of the fence.
        reason: why the block is not run; None if it is.
        extra: arguments that `pocketbert run` gets beside those in the block.
    """

    place: str
    language: str
    code: str
    reason: str | None = None
    extra: str = ""

    @property
    def page(self) -> str:
        return self.place.rpartition(":")[0]


def with_arguments(code: str, extra: str) -> str:
    """Returns shell code in which each `pocketbert run` has more arguments, before a comment at the line's end."""
    if not extra:
        return code
    joined = code.replace("\\\n", " ")
    return "\n".join(RUN.sub(rf"\1 {extra}\2", line) for line in joined.splitlines()) + "\n"


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """Yields the blocks of a page that a reader would run.

    Raises:
        BlockError: a mark has no reason or stands before nothing, or a block has no end.
    """
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        place = f"{page}:{index + 1}"
        mark, fence = MARK.match(lines[index]), FENCE.match(lines[index])
        if mark:
            if not mark["rest"]:
                raise BlockError(f"{place}: the mark says nothing after {mark['kind']!r}")
            if index + 1 == len(lines) or not FENCE.match(lines[index + 1]):
                raise BlockError(f"{place}: the mark does not stand on the line before a block")
        if fence:
            end = next((at for at in range(index + 1, len(lines)) if lines[at].rstrip() == fence["fence"]), None)
            if end is None:
                raise BlockError(f"{place}: the block has no end")
            if fence["language"] in LANGUAGES:
                before = MARK.match(lines[index - 1]) if index else None
                skipped = before is not None and before["kind"] == "not run here"
                code = "\n".join(lines[index + 1 : end]) + "\n"
                yield Block(
                    place,
                    fence["language"],
                    code,
                    reason=before["rest"] if before and skipped else None,
                    extra=before["rest"] if before and not skipped else "",
                )
            index = end
        index += 1


class Interpreter:
    """A Python process in which the blocks of a page run one after the other, with the same names."""

    # Reads a block as a line of hexadecimal digits from stdin, and answers on a pipe with 0 or 1.
    DRIVER = """
import os, sys, traceback
answers, names = int(sys.argv[1]), {"__name__": "__main__"}
for line in sys.stdin:
    try:
        exec(compile(bytes.fromhex(line).decode(), "block", "exec"), names)
        answer = b"0"
    except BaseException:
        traceback.print_exc()
        answer = b"1"
    sys.stdout.flush()
    os.write(answers, answer)
"""

    def __init__(self, python: Path, folder: Path, environment: Mapping[str, str]):
        self.answers, written = os.pipe()
        self.process = subprocess.Popen(
            [str(python), "-c", self.DRIVER, str(written)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            pass_fds=[written],
        )
        os.close(written)

    def run(self, code: str, seconds: float) -> int:
        """Runs a block and returns 0 or 1; 1 also where the process ended. TimeoutExpired after so many seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(code.encode().hex().encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.answers], [], [], seconds)
        if not ready:
            raise subprocess.TimeoutExpired("python", seconds)
        return int(os.read(self.answers, 1) or b"1")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.answers)


def run_blocks(blocks: Sequence[Block], bin_folder: Path, folder: Path, budget: float = BUDGET_SECONDS) -> None:
    """Runs blocks in a folder, in an environment whose commands come first on the path.

    Raises:
        BlockError: a block failed, or all of them together took longer than the budget in seconds.
    """
    # Without PYTHONPATH, so that a block sees what is installed and not this checkout.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    interpreters: dict[str, Interpreter] = {}  # by page
    started = time.monotonic()
    try:
        for block in blocks:
            if block.reason is not None:
                print(f"{block.place}: not run here: {block.reason}", flush=True)
                continue
            left = max(budget - (time.monotonic() - started), 1)
            try:
                if block.language == "python":
                    if block.page not in interpreters:
                        interpreters[block.page] = Interpreter(bin_folder / "python", folder, environment)
                    code = interpreters[block.page].run(block.code, left)
                else:
                    code = run_shell(with_arguments(block.code, block.extra), folder, environment, left)
            except subprocess.TimeoutExpired:
                raise BlockError(f"{block.place}: the blocks took longer than {budget:.0f} s together") from None
            if code:
                raise BlockError(f"{block.place}: the block ended with {code}:\n{block.code}")
            with_extra = f", with {block.extra}" if block.extra else ""
            print(f"{block.place}: ran, {time.monotonic() - started:.0f} s so far{with_extra}", flush=True)
    finally:
        for interpreter in interpreters.values():
            interpreter.close()


def run_shell(code: str, folder: Path, environment: Mapping[str, str], seconds: float) -> int:
    """Runs shell code up to its first failing command, and returns the exit status."""
    command = ["bash", "-e", "-u", "-o", "pipefail", "-c", code]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what the shell started, too
        process.wait()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--bin", required=True, type=Path, help="folder of the environment's commands")
    parser.add_argument(
        "--bundles", nargs="*", type=Path, default=[], help="finished runs whose bundles to put in runs/"
    )
    parser.add_argument("--list", action="store_true", help="only list the blocks")
    options = parser.parse_args()
    try:
        blocks = [block for page in options.pages for block in blocks_of(page.read_text(encoding="utf-8"), str(page))]
        if options.list:
            for block in blocks:
                print(f"{block.place}: {block.language}, {block.reason or 'run'}")
            return
        with tempfile.TemporaryDirectory(prefix="blocks-") as folder:
            from reader_files import write_reader_files

            write_reader_files(Path(folder))
            for run in options.bundles:
                shutil.copytree(run / "bundle", Path(folder) / "runs" / run.name / "bundle")
            run_blocks(blocks, options.bin.resolve(), Path(folder))
    except BlockError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
