"""The base of everything that is written as JSON for people and scripts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A JSON document, or a part of one: immutable, and an unknown field is an error, since only this project writes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
