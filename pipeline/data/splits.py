"""What is asked of examples once they are read: which labels there are, and a part of them held apart."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.data.labels import LabelRange
from pipeline.support.errors import UserError


def label_values(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels that occur, in the order of their class ids: numbers by value, names by the alphabet.

    Raises:
        UserError: an example without a label, or fewer than two different labels.
    """
    found = set(labels_of(examples))
    if len(found) < 2:
        only = f"one label only, {min(found)!r}" if found else "no examples, so no labels"
        raise UserError(f"{only}; a classifier needs examples of at least two labels", field="data.label")
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in found):
        return tuple(sorted(found, key=lambda value: (int(value), value)))
    return tuple(sorted(found))


def label_range(examples: Sequence[Example]) -> LabelRange:
    """The least and the greatest number among the labels of a regression.

    Raises:
        UserError: an example without a label, or fewer than two different ones.
    """
    found = set(labels_of(examples))
    if len(found) < 2:
        only = f"one value only, {min(found):g}," if found else "no examples, so no values"
        raise UserError(f"{only} where labels have to differ; give more data, or another column", field="data.label")
    return LabelRange(minimum=min(found), maximum=max(found))


def labels_of(examples: Sequence[Example]) -> list[str | float]:
    """Every example's label. UserError for one without."""
    labels = []
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, ClassificationExample):
            raise UserError('questions have answers, not labels; set task to "qa"', field=f"example {number}")
        if example.label is None:
            raise UserError(
                "the example has no label; set data.label to the column that holds it", field=f"example {number}"
            )
        labels.append(example.label)
    return labels


# Shorter word sequences are anybody's: "a good film" in two texts does not make one of them a part of the other.
FRAGMENT_WORDS = 5


def split_off(
    examples: Sequence[Example], groups: Sequence[Group], count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split examples into (rest, held), the same way for the same seed, each part in its old order.

    `held` is to say how a model does on what it never saw, so what belongs together stays on one side: the questions on one passage,
    equal texts (or pairs of texts), and a text with its fragments (SST-2's training set holds the phrases of its sentences). Of a text
    with its fragments, `held` takes the whole text alone, since whole texts are what an app will see, and the fragments go nowhere. A fragment
    too short to tell whose it is always stays in the rest.

    Questions of a passage are all held: `held` has exactly `count` of them where passages allow it, otherwise as few more as they do.

    Args:
        groups: of the task (`TaskDefinition.group`).

    Raises:
        UserError: `count` is not positive, or leaves nothing for the rest.
    """
    if not 1 <= count < len(examples):
        raise UserError(
            f"cannot hold {count} of {len(examples)} examples apart; set 1 to {max(len(examples) - 1, 1)}, "
            "or give more data",
            field="count",
        )
    order = list(groups)
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    gone: set[int] = set()
    left = []

    def hold(group: Group) -> None:
        held.update(group.held)
        gone.update(group.members)

    for group in order:
        if not group.held:
            continue
        if len(held) + len(group.held) <= count:
            hold(group)
        else:
            left.append(group)
    if len(held) < count and left:
        hold(min(left, key=lambda group: len(group.held)))
    if len(held) < count or len(gone) == len(examples):
        raise UserError(
            f"holding {count} examples apart leaves none, since {len(order)} "
            f"text{'s' if len(order) != 1 else ''} stay whole; give more data, or hold fewer apart",
            field="count",
        )
    rest = [example for index, example in enumerate(examples) if index not in gone]
    return rest, [examples[index] for index in sorted(held)]


@dataclass(frozen=True)
class Group:
    """Indices of examples that belong together: all `members`, and those of them that a held part takes."""

    members: tuple[int, ...]
    held: tuple[int, ...]


def passages(examples: Sequence[QAExample]) -> list[Group]:
    """The questions of each passage."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.passage, []).append(index)
    return [Group(tuple(group), tuple(group)) for group in groups.values()]


def whole_texts(examples: Sequence[ClassificationExample]) -> list[Group]:
    """Each text with its equals and its fragments of at least `FRAGMENT_WORDS` words; the held one is the first of the longest.

    Shorter fragments are groups of their own, of which none is held. Pairs of texts group with equal pairs only.
    """
    first: dict[tuple, int] = {}
    parent = []  # a forest: an example points towards the one that stands for its group
    for index, example in enumerate(examples):
        parent.append(first.setdefault((example.text, example.text_pair), index))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    words = {
        index: example.text.split()
        for index, example in enumerate(examples)
        if example.text_pair is None and parent[index] == index
    }
    starts: dict[tuple, list[int]] = {}  # by their first words, all of them where there are fewer
    for index, text in words.items():
        starts.setdefault(tuple(text[:FRAGMENT_WORDS]), []).append(index)
    short_fragments = set()
    for index, text in words.items():
        for at in range(len(text)):
            for length in range(1, min(FRAGMENT_WORDS, len(text) - at) + 1):
                for fragment in starts.get(tuple(text[at : at + length]), ()):
                    if fragment == index or words[fragment] != text[at : at + len(words[fragment])]:
                        continue
                    if len(words[fragment]) < FRAGMENT_WORDS:
                        short_fragments.add(fragment)
                    else:
                        parent[find(fragment)] = find(index)
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(find(index), []).append(index)
    whole = []
    for standing_for, group in groups.items():
        longest = min(group, key=lambda index: (-len(examples[index].text.split()), index))
        whole.append(Group(tuple(group), () if standing_for in short_fragments else (longest,)))
    return whole
