"""Keeps examples on disk between the stages of a run, as one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pipeline.data.examples import Answer, ClassificationExample, Example, QAExample


def save_examples(examples: Iterable[Example], path: Path) -> None:
    """Writes examples to a file that `load_examples` reads."""
    with open(path, "w", encoding="utf-8") as stream:
        for example in examples:
            stream.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def load_examples(path: Path) -> list[Example]:
    """Returns the examples that `save_examples` wrote."""
    examples: list[Example] = []
    # Not splitlines(): texts may hold line separators that JSON does not escape.
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            fields = json.loads(line)
            if "question" in fields:
                fields["answers"] = tuple(Answer(**answer) for answer in fields["answers"])
                examples.append(QAExample(**fields))
            else:
                examples.append(ClassificationExample(**fields))
    return examples
