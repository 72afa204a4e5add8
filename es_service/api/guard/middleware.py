"""Middleware around every route: checks of the request, security headers of the answer.

In this order: the host it is addressed to, the client's rate limit, the token, the body, which must come whole and in
time, the number of requests under way. A request that fails gets a problem, and so does every WebSocket: there are
none here. Every answer has the security headers, and any exception leaves as a plain 500.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from es_service.api.guard import bodies, problems
from es_service.api.guard.auth import Auth
from es_service.api.guard.limits import Buckets, Slots
from es_service.api.guard.problems import Problem
from es_service.api.settings import Settings

__all__ = ["CONTENT_SECURITY_POLICY", "OPEN_PATHS", "Guard"]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser says "Origin: null" of our own form
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
OPEN_PATHS = ("/-/healthz", "/login", "/static/login.css", "/static/login.js", "/static/icon.svg")
"""What may be read without a token."""

_log = logging.getLogger("es_service.api")
Count = Callable[[Scope, int, float], None]


class Guard:
    """ASGI middleware; see the module's text.

    Args:
        app: that it guards.
        settings: of the service.
        auth: who may read.
        count: called for every answer: scope, status, seconds.
    """

    def __init__(self, app: ASGIApp, settings: Settings, auth: Auth, count: Count) -> None:
        self._app, self._auth, self._count = app, auth, count
        self._hosts = {host.strip("[]").lower() for host in settings.hosts}
        limits = settings.limits
        self._root, self._limits = settings.root_path, limits
        self._requests = Buckets(limits.per_second, limits.burst)
        self._wrong_tokens = Buckets(limits.wrong_tokens_per_minute / 60.0, limits.wrong_tokens_per_minute)
        self._slots, self._streams = Slots(limits.concurrent), Slots(limits.streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0
        scope = self._below_root(scope)
        if scope["type"] == "websocket":
            scope = {**scope, "method": "GET"}

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"].endswith("http.response.start"):  # a WebSocket is refused by one, too
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                message["headers"] = headers.raw
            await send(message)

        try:
            refused = self._refusal(scope)
            if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
                status = 403  # which servers make of it that cannot send an answer of ours
                await send({"type": "websocket.close", "code": 1008})
                return
            if refused is not None:
                await refused(scope, receive, send_guarded)
                return
            receive = await bodies.read_whole(receive, self._limits.body_bytes, self._limits.request_s)
            slots = self._streams if scope["path"].endswith(("/export", "/events")) else self._slots
            if scope["path"] != "/-/healthz" and not slots.enter():
                problem = Problem("unavailable", "as many requests as are taken are under way", "ask again in a moment")
                await problems.response(problem)(scope, receive, send_guarded)
                return
            try:
                await self._app(scope, receive, send_guarded)
            finally:
                if scope["path"] != "/-/healthz":
                    slots.leave()
        except Problem as of_body:
            if status == 0:
                await problems.response(of_body)(scope, receive, send_guarded)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if status != 0:  # it is under way: it can only be broken off
                raise
            problem = Problem("internal", "the service failed to answer this", "see its log")
            await problems.response(problem)(scope, receive, send_guarded)
        finally:
            self._count(scope, status, time.perf_counter() - begin)

    def _below_root(self, scope: Scope) -> Scope:
        """Return the scope with its path below the service's root, whether a proxy has left it that or not."""
        path: str = scope["path"]
        if self._root and f"{path}/".startswith(f"{self._root}/"):
            path = path[len(self._root) :]
            return {**scope, "path": path, "raw_path": path.encode()}
        return scope

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = _name(headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            hint = "name it with --allowed-host if it is this service's"
            return problems.response(Problem("wrong-host", f"this service is not {host!r}", hint))
        client = (scope.get("client") or ("",))[0]
        wait = self._requests.take(client) if path != "/-/healthz" else 0.0
        if wait > 0:
            problem = Problem(
                "too-many-requests", "this client asks faster than is answered", f"wait {wait:.1f} s",
                headers={"Retry-After": str(max(1, round(wait)))},
            )  # fmt: skip
            return problems.response(problem)
        if not path:  # the root without a slash at its end: links of a page there would lead elsewhere
            return RedirectResponse(f"{self._root}/", status_code=308)
        if path not in OPEN_PATHS and self._auth.needs_token:
            stranger = self._stranger(scope, headers, client)
            if stranger is not None:
                return stranger
        if scope["type"] == "websocket":
            return problems.response(Problem("no-such-route", f"no WebSocket at {path}", "read /events"))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._limits.body_bytes:
            return problems.response(bodies.too_large(self._limits.body_bytes))
        return None

    def _stranger(self, scope: Scope, headers: Headers, client: str) -> Response | None:
        """Return the answer to a client that may not read, None if it may.

        A right token is accepted whatever else came from that address: clients behind a proxy share one, and one
        that guesses must not lock the others out.
        """
        if self._auth.accepts(headers):
            return None
        if self._auth.shows_any(headers) and self._wrong_tokens.take(client):
            hint = "wait, and check the token that this client sends"
            return problems.response(
                Problem("too-many-requests", "too many wrong tokens", hint, headers={"Retry-After": "10"})
            )
        if _is_page(scope, headers):
            query = scope["query_string"].decode("latin-1")
            path = f"{self._root}{scope['path']}"
            wanted = quote(f"{path}?{query}" if query else path, safe="/")
            return RedirectResponse(f"{self._root}/login?next={wanted}", status_code=303)
        problem = Problem(
            "unauthorized", "this request shows no token, or a wrong one", "send Authorization: Bearer <token>",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
        return problems.response(problem)


def _name(host: str) -> str:
    """Return a Host header's name, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_page(scope: Scope, headers: Headers) -> bool:
    path: str = scope["path"]
    is_page = path == "/" or (path.startswith("/runs/") and path.count("/") == 2)
    return is_page and scope["method"] == "GET" and "text/html" in headers.get("accept", "text/html")
