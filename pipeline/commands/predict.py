"""The command `predict`: answers one input, or each line of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pipeline.commands.options import AsJson, BundleFolder, Speed, print_json
from pipeline.support.errors import UserError

if TYPE_CHECKING:
    from pipeline.runtime.runner import Runner
    from pipeline.tasks import Result

STANDARD_INPUT = "-"


def predict(
    bundle: BundleFolder,
    text: Annotated[Optional[str], typer.Option(help="The text to classify, or to predict a number for.")] = None,
    text_pair: Annotated[Optional[str], typer.Option("--text-pair", help="The second text of a pair.")] = None,
    question: Annotated[Optional[str], typer.Option(help="The question.")] = None,
    passage: Annotated[
        Optional[str], typer.Option(help="The passage that holds the answer, or @FILE to read it from a file.")
    ] = None,
    lines: Annotated[
        Optional[str],
        typer.Option(
            metavar="FILE",
            help="Answer each line of FILE, or of standard input for -. A line is a text, or a JSON object with "
            "text, text_pair, question, passage or speed.",
        ),
    ] = None,
    speed: Speed = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, metavar="N", help="Show the N best answers with their scores.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Answers one input, or each line of a file.

    Shows the exit that was taken, the uncertainty at each exit up to it, and the time in milliseconds. Without an input
    it answers the lines of standard input. With --lines and --json it prints one JSON object a line.
    """
    from pipeline.bundle.opening import Bundle, find_bundle
    from pipeline.runtime.runner import Runner
    from pipeline.tasks import Request

    given = any(value is not None for value in (text, text_pair, question, passage))
    if given and lines is not None:
        raise UserError("goes without --text, --text-pair, --question and --passage; leave them out", field="--lines")
    folder = find_bundle(bundle)
    runner = Runner(Bundle.open(folder))
    if lines is not None or not (given or sys.stdin is None or sys.stdin.isatty()):
        count, first_failure = answer_lines(runner, read_lines(lines or STANDARD_INPUT), speed, top_k, as_json)
        if first_failure is not None:
            print(first_failure, file=sys.stderr)
            raise typer.Exit(1)
        if count or lines is not None:
            return
    request = Request(text, text_pair, question, None if passage is None else read_text(passage))
    example = runner.task.example_from_request(request, folder)
    runner.predict(example, speed, top_k)  # the first run loads the programs
    result = runner.predict(example, speed, top_k)
    if as_json:
        print_json(result.to_json(candidates=top_k > 1))
    else:
        print_safely(shown(runner, result))
        for candidate in result.candidates if top_k > 1 else ():
            print_safely(f"  {candidate.score:.3f}  {runner.task.shown_answer(candidate)}")


def answer_lines(
    runner: Runner, lines: Iterable[bytes], speed: str | None, top_k: int, as_json: bool
) -> tuple[int, str | None]:
    """Answers each line and prints one line for it at once; for a bad line an error, and the next one is read.

    Args:
        speed: for the lines that name none.

    Returns:
        the number of lines, and a sentence on those that failed, None where all were answered.
    """
    count, failed, first, is_warm = 0, 0, "", False
    for count, line in enumerate(lines, start=1):
        try:
            example, own_speed = read_request(runner, line)
            wanted = speed if own_speed is None else own_speed
            if not is_warm:  # so that no line's time includes the loading of programs
                runner.prewarm()
                runner.predict(example, wanted, top_k)
                is_warm = True
            result = runner.predict(example, wanted, top_k)
        except UserError as error:
            failed, first = failed + 1, first or f"line {count}: {error}"
            print_safely(json_line({"error": str(error)}) if as_json else f"error: {error}")
            continue
        if as_json:
            print_safely(json_line(result.to_json(candidates=top_k > 1)))
        else:
            print_safely(" ".join(shown(runner, result, top_k).splitlines()))
    return count, f"{failed} of {count} lines failed, first {first}" if failed else None


def read_request(runner: Runner, line: bytes) -> tuple[Any, str | float | None]:
    """Returns the example that a line asks for, and the speed that it names.

    A line that starts with "{" is a JSON object. Any other is a text.

    Raises:
        UserError: the line is not UTF-8 or not JSON, has an unknown field or a wrong value, or lacks what the bundle
            needs.
    """
    from pipeline.tasks import Request

    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if not text.startswith("{"):
        return runner.task.example_from_request(Request(text)), None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error}); a line that starts with {{ is a JSON object") from None
    texts = ("text", "text_pair", "question", "passage")
    for name, value in fields.items():
        if name not in (*texts, "speed"):
            raise UserError(f"is not known; a line has {', '.join(texts)} or speed", field=name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (value is None or isinstance(value, str) or (name == "speed" and is_number)):
            raise UserError(f"{json.dumps(value)[:40]} is not a text; write it in quotes", field=name)
    speed = fields.pop("speed", None)
    return runner.task.example_from_request(Request(**fields)), speed


def read_lines(source: str) -> Iterator[bytes]:
    """Yields each line of a file, or of standard input for "-", as soon as it can be read. UserError if it cannot."""
    try:
        if source == STANDARD_INPUT:
            yield from sys.stdin.buffer
        else:
            with open(Path(source).expanduser(), "rb") as stream:
                yield from stream
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=source) from None


def read_text(value: str) -> str:
    """Returns the value itself, or the contents of the file that "@FILE" names."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=value[1:]) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 (byte {error.start})", file=value[1:]) from None


def shown(runner: Runner, result: Result, top_k: int = 1) -> str:
    """Returns a result in one line for people, with the other candidates where more than one was asked for."""
    score = f"score {result.score:.3f}, " if hasattr(result, "score") else ""
    uncertainty = ", ".join(f"{value:.2f}" for value in result.uncertainty)
    line = (
        f"{runner.task.shown_answer(result)}  ({score}{result.depth} of {runner.manifest.segments} segments, "
        f"uncertainty {uncertainty}, {result.latency_ms:.1f} ms)"
    )
    others = getattr(result, "candidates", ())[1:] if top_k > 1 else ()
    return line + "".join(f"; {runner.task.shown_answer(other)} {other.score:.3f}" for other in others)


def json_line(value: dict[str, Any]) -> str:
    """Returns JSON in one line. Half a surrogate pair, which UTF-8 cannot hold, makes it escape all but ASCII."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def print_safely(line: str) -> None:
    """Prints a line at once, with "?" for half a surrogate pair."""
    print(line.encode("utf-8", "replace").decode("utf-8"), flush=True)
