"""The range of a regression's labels."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class LabelRange(BaseModel):
    """The least and the greatest label that a regression was trained on, in the data's own unit.

    Programs work in shares of it: a segment's one logit z means `minimum` + (`maximum` - `minimum`) * z. Nothing clips that, since the
    greatest label seen need not be the greatest there is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: float = Field(allow_inf_nan=False)
    maximum: float = Field(allow_inf_nan=False)

    @property
    def width(self) -> float:
        return self.maximum - self.minimum

    def share(self, value: Any) -> Any:
        """From the data's unit to a share of the range; a number or an array."""
        return (value - self.minimum) / self.width

    def value(self, share: Any) -> Any:
        """From a share of the range to the data's unit; a number or an array."""
        return self.minimum + self.width * share
