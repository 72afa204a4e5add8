"""The base of all response models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Model"]


class Model(BaseModel):
    """A response model: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)
