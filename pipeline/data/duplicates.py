"""Finds inputs that occur more than once, within a data set and in two data sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Repeats:
    """How often inputs occur again.

    Attributes:
        repeated: examples whose input an earlier example has too.
        contradicting: inputs that occur with different labels.
    """

    repeated: int
    contradicting: int


def normalise(text: str) -> str:
    """Returns a text without the differences of case and whitespace that make no other text of it."""
    return " ".join(text.casefold().split())


def count_repeats(inputs: Sequence[Hashable], labels: Sequence[str | None]) -> Repeats:
    """Counts the inputs that occur more than once, and those among them whose labels differ.

    Args:
        inputs: an entry for each example, equal where the inputs are.
        labels: each example's label; None where labels cannot contradict each other.
    """
    found: dict[Hashable, set[str]] = defaultdict(set)
    for entry, label in zip(inputs, labels):
        found[entry].update(() if label is None else (label,))
    return Repeats(len(inputs) - len(found), sum(len(different) > 1 for different in found.values()))


def count_overlap(train: Sequence[Hashable], dev: Sequence[Hashable]) -> int:
    """Returns how many examples of dev have an input that train has too."""
    known = set(train)
    return sum(entry in known for entry in dev)
