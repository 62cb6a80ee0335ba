"""What is asked of examples once they are read: which labels there are, and a part of them held apart."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.errors import UserError


def label_values(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels that occur, in the order of their class ids: numbers by value, names by the alphabet.

    Raises:
        UserError: an example without a label, or fewer than two different labels.
    """
    found = set()
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, ClassificationExample):
            raise UserError('questions have answers, not labels; set task to "qa"', field=f"example {number}")
        if example.label is None:
            raise UserError(
                "the example has no label; set data.label to the column that holds it", field=f"example {number}"
            )
        found.add(example.label)
    if len(found) < 2:
        only = f"one label only, {min(found)!r}" if found else "no examples, so no labels"
        raise UserError(f"{only}; a classifier needs examples of at least two labels", field="data.label")
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in found):
        return tuple(sorted(found, key=lambda value: (int(value), value)))
    return tuple(sorted(found))


def split_off(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split examples into (rest, held), the same way for the same seed, each part in its old order.

    What would leak stays on one side: the questions on one passage, the examples of one text (or pair of texts). So
    `held` has exactly `count` examples where such groups allow it, and otherwise as few more as they do.

    Raises:
        UserError: `count` is not positive, or leaves nothing for the rest.
    """
    if not 1 <= count < len(examples):
        raise UserError(
            f"cannot hold {count} of {len(examples)} examples apart; set 1 to {max(len(examples) - 1, 1)}, "
            "or give more data",
            field="count",
        )
    groups: dict[Any, list[int]] = {}
    for index, example in enumerate(examples):
        key = example.passage if isinstance(example, QAExample) else (example.text, example.text_pair)
        groups.setdefault(key, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    left = []
    for group in order:
        if len(held) + len(group) <= count:
            held.update(group)
        else:
            left.append(group)
    if len(held) < count:
        held.update(min(left, key=len))
    if len(held) == len(examples):
        raise UserError(
            f"holding {count} examples apart leaves none, since {len(groups)} "
            f"text{'s' if len(groups) != 1 else ''} stay whole; give more data, or hold fewer apart",
            field="count",
        )
    rest = [example for index, example in enumerate(examples) if index not in held]
    return rest, [examples[index] for index in sorted(held)]
