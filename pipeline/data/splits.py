"""Holds a part of the examples out of training."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pipeline.data.examples import ClassificationExample, Example, QAExample
from pipeline.support.errors import UserError

# Shorter word sequences occur in unrelated texts: "a good film" in two texts does not make one a part of the other.
MIN_FRAGMENT_WORDS = 5


def split_off(
    examples: Sequence[Example], groups: Sequence[Group], count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Splits examples into (rest, held out), both in the order of `examples`.

    The held-out examples show how a model does on unseen text. So examples that belong together stay on one side:

    - The questions about one passage are held out together.
    - Of equal texts, or equal pairs of texts, one is held out and the others are dropped.
    - Of a text and its fragments, the text is held out and the fragments are dropped. SST-2's training set has both
      sentences and their phrases, and an app will see whole texts.
    - A fragment of fewer than `MIN_FRAGMENT_WORDS` words may belong to several texts, so it always stays in the rest.

    Args:
        examples: examples of one task.
        groups: the examples that belong together, as `TaskDefinition.group` gives them.
        count: examples to hold out. If passages do not allow exactly this many questions, as few more as possible.
        seed: the same seed gives the same split.

    Raises:
        UserError: `count` is not positive, or leaves nothing for the rest.
    """
    if not 1 <= count < len(examples):
        raise UserError(
            f"cannot hold out {count} of {len(examples)} examples; set 1 to {max(len(examples) - 1, 1)}, "
            "or give more data",
            field="count",
        )
    order = list(groups)
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    taken: set[int] = set()  # held out or dropped
    too_large = []

    def hold(group: Group) -> None:
        held.update(group.held)
        taken.update(group.members)

    for group in order:
        if not group.held:
            continue
        if len(held) + len(group.held) <= count:
            hold(group)
        else:
            too_large.append(group)
    if len(held) < count and too_large:
        hold(min(too_large, key=lambda group: len(group.held)))
    if len(held) < count or len(taken) == len(examples):
        raise UserError(
            f"holding out {count} examples leaves none, since {len(order)} "
            f"text{'s' if len(order) != 1 else ''} cannot be divided; give more data, or hold out fewer",
            field="count",
        )
    rest = [example for index, example in enumerate(examples) if index not in taken]
    return rest, [examples[index] for index in sorted(held)]


def split_dev(
    examples: Sequence[Example],
    inputs: Sequence[Hashable],
    strata: Sequence[str | None],
    share: float,
    seed: int,
) -> tuple[list[Example], list[Example]]:
    """Splits examples into (train, dev), both in the order of `examples`.

    Examples with the same input stay on one side. Each stratum gives its share of examples to dev, so that dev has the
    labels of train in the same proportions. A stratum with a single input stays in train.

    Args:
        examples: examples of one task.
        inputs: an entry for each example; those with equal entries belong together.
        strata: each example's label, None where labels are no classes.
        share: of the examples that go to dev, between 0 and 1.
        seed: the same seed gives the same split.

    Raises:
        UserError: there are fewer than two different inputs in every stratum, so nothing can be held out.
    """
    together: dict[Hashable, list[int]] = {}
    for index, entry in enumerate(inputs):
        together.setdefault(entry, []).append(index)
    by_stratum: dict[str | None, list[list[int]]] = {}
    for members in together.values():  # equal inputs with different labels count for the first one's
        by_stratum.setdefault(strata[members[0]], []).append(members)
    held: set[int] = set()
    rng = random.Random(seed)
    for groups in by_stratum.values():
        rng.shuffle(groups)
        wanted = max(1, round(share * sum(map(len, groups))))
        taken = 0
        for members in groups[1:]:  # at least one input of each label is left to learn from
            if taken and taken + len(members) > wanted:
                continue
            held.update(members)
            taken += len(members)
            if taken >= wanted:
                break
    if not held:
        raise UserError(
            f"cannot hold out a part of {len(examples)} examples, since no label has two different texts; "
            "give more data, or a file of its own",
            field="data.dev",
        )
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [examples[index] for index in sorted(held)],
    )


@dataclass(frozen=True)
class Group:
    """Indices of examples that belong together.

    Attributes:
        members: all of them.
        held: the members to hold out if the group is chosen; the others are then dropped.
    """

    members: tuple[int, ...]
    held: tuple[int, ...]


def passages(examples: Sequence[QAExample]) -> list[Group]:
    """Returns the questions about each passage as a group."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.passage, []).append(index)
    return [Group(tuple(group), tuple(group)) for group in groups.values()]


def whole_texts(examples: Sequence[ClassificationExample]) -> list[Group]:
    """Groups each text with its equals and its fragments of at least `MIN_FRAGMENT_WORDS` words.

    The held-out member is the longest text, the first one if several are equally long. A shorter fragment is a group of
    its own with no held-out member. Pairs of texts are grouped with equal pairs only.
    """
    first: dict[tuple[str, str | None], int] = {}
    parent: list[int] = []  # a union-find forest: following the parents leads to the example that represents the group
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
    # The texts that begin with the same words; a text of fewer words is found by all of them.
    by_beginning: dict[tuple[str, ...], list[int]] = {}
    for index, text in words.items():
        by_beginning.setdefault(tuple(text[:MIN_FRAGMENT_WORDS]), []).append(index)
    short_fragments = set()
    for index, text in words.items():
        for start in range(len(text)):
            for length in range(1, min(MIN_FRAGMENT_WORDS, len(text) - start) + 1):
                for fragment in by_beginning.get(tuple(text[start : start + length]), ()):
                    if fragment == index or words[fragment] != text[start : start + len(words[fragment])]:
                        continue
                    if len(words[fragment]) < MIN_FRAGMENT_WORDS:
                        short_fragments.add(fragment)
                    else:
                        parent[find(fragment)] = find(index)
    members: dict[int, list[int]] = {}
    for index in range(len(examples)):
        members.setdefault(find(index), []).append(index)
    groups = []
    for representative, indices in members.items():
        longest = min(indices, key=lambda index: (-len(examples[index].text.split()), index))
        groups.append(Group(tuple(indices), () if representative in short_fragments else (longest,)))
    return groups
