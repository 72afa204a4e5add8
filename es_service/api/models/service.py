"""Response models of the service itself, and of errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from es_service.api.models.base import Model

__all__ = ["Health", "ProblemBody", "Session"]


class ProblemBody(Model):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:es-service:problem:no-such-run"])
    title: str
    status: int
    detail: str = Field(description="what is wrong, and which value")
    hint: str | None = Field(description="what to change")
    errors: list[dict[str, str]] | None = Field(None, description="each parameter that is wrong: where, message")


class Health(Model):
    """Liveness or readiness of the service."""

    status: Literal["ok", "ready"]


class Session(Model):
    """What the dashboard needs to know of the service."""

    needs_token: bool
    logged_in: bool
    version: str
    storage: str
