"""Routes about the service itself: liveness, readiness, metrics; events; the login; the pages."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import FileResponse, RedirectResponse, Response

from es_service.api import metrics
from es_service.api.guard.auth import COOKIE, SESSION_S, Auth, safe_next
from es_service.api.guard.problems import Problem
from es_service.api.models import service as models
from es_service.api.routes import events
from es_service.api.routes.answers import RunName, answer, catalogue_of, errors_of
from es_service.storage.listing import find_runs

__all__ = ["STATIC", "router"]

STATIC = Path(__file__).parent.parent / "static"

router = APIRouter()
pages = APIRouter(include_in_schema=False)


@router.get("/-/healthz", tags=["service"], response_model=models.Health, responses=errors_of())
async def healthz() -> Response:
    """Liveness: 200 while the process runs; needs no token."""
    return Response('{"status": "ok"}', media_type="application/json")


@router.get("/-/readyz", tags=["service"], response_model=models.Health, responses=errors_of())
def readyz(request: Request) -> Response:
    """Readiness: 200 if the storage can be read, else 503."""
    find_runs(catalogue_of(request).storage)
    return Response('{"status": "ready"}', media_type="application/json")


@router.get(
    "/metrics",
    tags=["service"],
    response_class=Response,
    responses={**errors_of(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def prometheus(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    return Response(request.app.state.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


@router.get("/v1/session", tags=["service"], response_model=models.Session, responses=errors_of())
def session(request: Request) -> Response:
    """Return what the dashboard needs to know of the service."""
    auth: Auth = request.app.state.auth
    return answer(
        request,
        {
            "needs_token": auth.needs_token,
            "logged_in": True,  # or the guard would have refused
            "version": request.app.version,
            "storage": catalogue_of(request).storage,
        },
    )


def _known(request: Request, run: RunName, response: Response) -> None:
    """Raise the Problem of a missing run before a stream begins."""
    catalogue_of(request).row(run)
    response.headers["Cache-Control"] = "private"  # beside FastAPI's no-cache


@router.get(
    "/v1/runs/{run}/events",
    tags=["runs"],
    response_class=EventSourceResponse,
    responses=errors_of(404),
    dependencies=[Depends(_known)],
)
async def run_events(request: Request, run: RunName) -> AsyncIterator[ServerSentEvent]:
    """Stream the run's row whenever it changes; ends with the run."""
    catalogue = catalogue_of(request)
    async for event in events.stream(lambda: catalogue.detail(run), request.app.state.settings.refresh_s):
        yield event


# -- the login ----------------------------------------------------------------------------------------------------


@pages.get("/login")
def login_form(request: Request) -> Response:
    """Show the login form."""
    return _file(request, "login.html")


@pages.post("/login")
async def login(request: Request) -> Response:
    """Start a session in exchange for the token."""
    auth: Auth = request.app.state.auth
    client = request.client.host if request.client else ""
    if not _is_from_here(request):
        raise Problem("unauthorized", "this form was sent by another site", "log in on this server's own page")
    body = (await request.body()).decode("latin-1")  # nothing is awaited from here on, so that each failure counts
    if request.app.state.failed_logins.is_empty(client):
        raise Problem("too-many-requests", "too many failed logins", "wait a minute", headers={"Retry-After": "60"})
    try:
        fields = parse_qs(body, max_num_fields=8)
    except ValueError as error:
        raise Problem("bad-query", f"the form cannot be read: {error}", "send token and next") from error
    root = request.app.state.settings.root_path
    wanted = safe_next(fields.get("next", [""])[0], root)
    if auth.needs_token and not auth.accepts_token(fields.get("token", [""])[0].strip()):
        request.app.state.failed_logins.take(client)
        return RedirectResponse(f"{root}/login?failed=1&next={quote(wanted, safe='/')}", status_code=303)
    response = RedirectResponse(wanted, status_code=303)
    if auth.needs_token:
        is_secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE,
            auth.new_session(),
            max_age=SESSION_S,
            path=root or "/",
            httponly=True,
            samesite="strict",
            secure=is_secure,
        )
    return response


@pages.post("/logout")
async def logout(request: Request) -> Response:
    """End the session."""
    if not _is_from_here(request):
        raise Problem("unauthorized", "this form was sent by another site", "log out on this server's own page")
    root = request.app.state.settings.root_path
    response = RedirectResponse(f"{root}/login", status_code=303)
    response.delete_cookie(COOKIE, path=root or "/", httponly=True, samesite="strict")
    return response


def _is_from_here(request: Request) -> bool:
    origin = request.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:  # it is not an address
        return False


# -- the pages ----------------------------------------------------------------------------------------------------


@pages.get("/")
def front_page(request: Request) -> Response:
    """Show all runs."""
    return _file(request, "index.html")


@pages.get("/runs/{run}")
def run_page(request: Request, run: RunName) -> Response:  # noqa: ARG001 - the page reads its own address
    """Show one run; the page itself reports a missing one."""
    return _file(request, "run.html")


@pages.get("/static/{name:path}")
def static(
    request: Request,
    name: Annotated[str, PathParameter(max_length=200)],
    v: Annotated[str | None, Query(max_length=64)] = None,  # noqa: ARG001 - makes an address new
) -> Response:
    """Return one of the pages' files."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    path = _own(name)
    if path is None:
        raise Problem("no-such-route", f"nothing at {request.url.path}", "/openapi.json lists every route")
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache, private"})


def _own(name: str) -> Path | None:
    """Return the file of that name below `static`, None where there is none, or it would lie elsewhere."""
    path = (STATIC / name).resolve() if "\0" not in name else STATIC
    return path if path.is_file() and path.is_relative_to(STATIC.resolve()) else None


router.include_router(pages)
