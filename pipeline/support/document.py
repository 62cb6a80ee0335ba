"""The base class of every JSON document that the project writes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A JSON document or a part of one.

    It is immutable. Since only this project writes these documents, an unknown field is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
