"""What all shapes of answers have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Model"]


class Model(BaseModel):
    """A shape of an answer: just these fields, of just these types."""

    model_config = ConfigDict(extra="forbid", strict=True)
