"""Errors as application/problem+json (RFC 9457), each with a hint on what to change; never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from es_service import errors

__all__ = ["MEDIA_TYPE", "STATUS", "TITLES", "Problem", "install", "of_error", "response"]

MEDIA_TYPE = "application/problem+json"

TITLES: Mapping[str, tuple[int, str]] = {
    "bad-query": (400, "The query is invalid"),
    "unauthorized": (401, "A token is needed"),
    "no-such-run": (404, "Run not found"),
    "no-such-sample": (404, "Sample not found"),
    "no-such-route": (404, "Route not found"),
    "no-preview": (404, "The sample cannot be shown"),
    "method-not-allowed": (405, "The service is read-only"),
    "request-timeout": (408, "The request arrived too slowly"),
    "no-table-yet": (409, "The run has no table yet"),
    "body-too-large": (413, "The request body is too large"),
    "wrong-host": (421, "The request is addressed to another host"),
    "invalid-parameter": (422, "A parameter is out of range"),
    "too-many-requests": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "unavailable": (503, "Temporarily unavailable"),
}
STATUS = {slug: status for slug, (status, _) in TITLES.items()}


class Problem(Exception):  # noqa: N818 - an answer rather than an accident
    """An error answer to a request.

    Args:
        slug: one of `TITLES`.
        detail: what is wrong, with the value.
        hint: what to change.
        headers: of the response.
        more: further members of the JSON object.
    """

    def __init__(
        self,
        slug: str,
        detail: str,
        hint: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.slug, self.detail, self.hint, self.more = slug, detail, hint, more
        self.headers = dict(headers or {})


def response(problem: Problem) -> Response:
    """Return the problem as a response."""
    status, title = TITLES[problem.slug]
    body = {
        "type": f"urn:es-service:problem:{problem.slug}",
        "title": title,
        "status": status,
        "detail": problem.detail,
        "hint": problem.hint,
        **problem.more,
    }
    headers = dict(problem.headers)
    if status in (429, 503):
        headers.setdefault("Retry-After", "2")
    content = json.dumps(body, allow_nan=False).encode()
    return Response(content, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def of_error(error: errors.EsServiceError) -> Problem:
    """Return what an error of this package is to a reader."""
    if isinstance(error, (errors.RunNotFoundError, errors.RunNameError)):
        return Problem("no-such-run", str(error), "GET /v1/runs lists the runs there are")
    if isinstance(error, errors.DataError):
        return Problem("no-preview", str(error), "give the service the data where the run had them")
    if isinstance(error, errors.ConfigError):
        return Problem("bad-query", str(error), "see /openapi.json for the valid parameters")
    return Problem("unavailable", str(error), "try again in a few seconds")


def install(app: Any) -> None:
    """Have an app answer its exceptions this way."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(errors.EsServiceError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return response(problem)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.EsServiceError)
    return response(of_error(error))


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [{"where": ".".join(map(str, one["loc"])), "message": str(one["msg"])} for one in error.errors()]
    first = found[0] if found else {"where": "request", "message": "cannot be used"}
    detail = f"{first['where']}: {first['message']}"
    return response(Problem("invalid-parameter", detail, "see /openapi.json for the valid parameters", errors=found))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = Problem(
            "method-not-allowed", f"{request.method} is not answered here", "use GET", headers=error.headers
        )
    elif error.status_code == 404:
        problem = Problem("no-such-route", f"nothing at {request.url.path}", "/openapi.json lists every route")
    else:
        problem = Problem("bad-query", str(error.detail), None)
    return response(problem)
