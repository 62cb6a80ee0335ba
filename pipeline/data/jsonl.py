"""Keeps examples on disk between the stages of a run, as one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.examples import Example

ExampleT = TypeVar("ExampleT")


def save_examples(examples: Iterable[Example], path: Path) -> None:
    """Writes examples to a file that `load_examples` reads."""
    with open(path, "w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def load_examples(path: Path, example_from_json: Callable[[dict[str, Any]], ExampleT]) -> list[ExampleT]:
    """Returns the examples that `save_examples` wrote.

    Args:
        path: the file.
        example_from_json: makes an example of a JSON object, as `TaskDefinition.example_from_json` does.
    """
    # Not splitlines(): texts may hold line separators that JSON does not escape.
    with open(path, encoding="utf-8", newline="\n") as stream:
        return [example_from_json(json.loads(line)) for line in stream]
