"""The range of a regression's labels."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.support.document import Document


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
