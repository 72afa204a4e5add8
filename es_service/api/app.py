"""The application: routes, guard and state put together. The same one under uvicorn and under Ray Serve."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
from fastapi import FastAPI

from es_service.api.guard import problems
from es_service.api.guard.auth import Auth
from es_service.api.guard.limits import Buckets
from es_service.api.guard.middleware import Guard
from es_service.api.metrics import Metrics
from es_service.api.models import service as models
from es_service.api.routes import runs, samples, service, table
from es_service.api.runs.catalogue import Catalogue
from es_service.api.runs.previews import Previews
from es_service.api.settings import Settings

__all__ = ["create_app"]

_DESCRIPTION = """Which samples matter, which are never picked, which look mislabelled, does selection pay: asked of
runs while they train and afterwards. Read-only. Durations are seconds, sizes bytes, shares lie in 0..1, times are ISO
8601 in UTC; a value that does not exist is null. Errors are application/problem+json with a hint."""


def create_app(settings: Settings) -> FastAPI:
    """Return the application.

    Args:
        settings: of the service.
    """
    catalogue = Catalogue(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        catalogue.live.connect()
        pa.array([0]).to_numpy()  # imports pandas where it is installed: a quarter of a second, not of the first page
        yield
        catalogue.close()

    app = FastAPI(
        title="es_service",
        version=importlib.metadata.version("es-service"),
        description=_DESCRIPTION,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=lifespan,
    )
    app.state.settings, app.state.catalogue = settings, catalogue
    app.state.auth = auth = Auth(settings.token)
    app.state.previews = Previews(own_tasks=settings.own_tasks)
    app.state.metrics = metrics = Metrics(catalogue)
    per_minute = settings.limits.logins_per_minute
    app.state.failed_logins = Buckets(per_minute / 60.0, per_minute)
    for module in (runs, samples, table, service):
        app.include_router(module.router)
    problems.install(app)
    app.add_middleware(Guard, settings=settings, auth=auth, count=metrics.count)
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _secure(original())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _secure(schema: dict[str, Any]) -> None:
    """Describe authentication in the OpenAPI document, and which routes need none."""
    schema["components"]["schemas"]["ProblemBody"] = models.ProblemBody.model_json_schema()
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer", "description": "the service's token, where it has one"}
    schema["security"] = [{"token": []}]
    schema["paths"]["/-/healthz"]["get"]["security"] = []
