"""The base class of documents: manifests, reports, recipes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A document or a part of one. It is immutable, and an unknown field in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
