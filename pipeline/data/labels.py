"""The labels of a data set: the classes that occur, or the range of a regression."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import Field

from pipeline.data.examples import ClassificationExample, Example
from pipeline.support.document import Document
from pipeline.support.errors import UserError


class LabelRange(Document):
    """The smallest and the largest label that a regression was trained on, in the unit of the data.

    Programs compute shares of this range: the one logit z of a segment means `minimum` + (`maximum` - `minimum`) * z.
    The result is not clipped, since a text may deserve a label beyond those seen in training.
    """

    minimum: float = Field(allow_inf_nan=False)
    maximum: float = Field(allow_inf_nan=False)

    @property
    def width(self) -> float:
        return self.maximum - self.minimum

    # `Any`: numbers, numpy arrays and torch tensors, which have no common type.

    def share(self, value: Any) -> Any:
        """Converts a label, or an array or tensor of labels, to shares of the range."""
        return (value - self.minimum) / self.width

    def value(self, share: Any) -> Any:
        """Converts a share of the range, or an array or tensor of shares, to labels."""
        return self.minimum + self.width * share


def label_values(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the labels that occur in the order of their class ids: numbers by value, names by the alphabet.

    Raises:
        UserError: an example has no label, or there are fewer than two different labels.
    """
    # Readers give text labels for classification; `str` only tells the type checker so.
    found = {str(label) for label in labels_of(examples)}
    if len(found) < 2:
        only = f"one label only, {min(found)!r}" if found else "no examples, so no labels"
        raise UserError(f"{only}; a classifier needs examples of at least two labels", field="data.label")
    return tuple(order_labels(found))


def order_labels(labels: Collection[str]) -> list[str]:
    """Returns labels in the order of their class ids: numbers by value, names by the alphabet."""
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in labels):
        return sorted(labels, key=lambda value: (int(value), value))
    return sorted(labels)


def label_range(examples: Sequence[Example]) -> LabelRange:
    """Returns the range of the labels of a regression.

    Raises:
        UserError: an example has no label, or there are fewer than two different labels.
    """
    # Readers give numbers as labels for regression; `float` only tells the type checker so.
    found = {float(label) for label in labels_of(examples)}
    if len(found) < 2:
        only = f"one value only, {min(found):g}," if found else "no examples, so no values"
        raise UserError(f"{only} but labels have to differ; give more data, or another column", field="data.label")
    return LabelRange(minimum=min(found), maximum=max(found))


def labels_of(examples: Sequence[Example]) -> list[str | float]:
    """Returns the label of every example. Raises UserError for an example without one."""
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
