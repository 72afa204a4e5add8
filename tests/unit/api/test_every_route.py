"""Every route of the application's own table, asked in every way: none opens without the token, none fails."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from es_service.api.app import create_app
from es_service.api.guard.auth import COOKIE, Auth
from es_service.api.guard.middleware import OPEN_PATHS
from es_service.api.settings import Limits, Settings

TOKEN = "a-token-of-enough-letters"
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "NONSENSE", "get")
PATIENT = Limits(per_second=1e6, burst=1_000_000, wrong_tokens_per_minute=1_000_000)
Asked = tuple[str, str, bytes, dict[str, str]]
Answer = tuple[int, dict[str, str], bytes]


async def answer_of(app: FastAPI, asked: Asked) -> Answer:
    """What the application answers to a request as it came over the wire: method, path, query, headers."""
    method, path, query, headers = asked
    sent: list[Any] = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8420),
    }
    await app(scope, receive, send)
    head = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:])


def answers_of(app: FastAPI, asked: Sequence[Asked]) -> list[Answer]:
    async def one_after_the_other() -> list[Answer]:
        return [await asyncio.wait_for(answer_of(app, one), 60) for one in asked]

    return asyncio.run(one_after_the_other())


def routes_of(routes: Any) -> Iterator[Route]:
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from routes_of(inner)
        elif isinstance(route, Route):
            yield route


def paths_of(app: FastAPI) -> list[str]:
    paths = sorted({route.path for route in routes_of(app.routes)})
    assert len(paths) > 20
    return [path.replace("{run}", "done").replace("{id}", "3").replace("{name:path}", "index.html") for path in paths]


def disguised(path: str) -> list[str]:
    """Ways to write a path that a careless check takes for one that is open."""
    return [
        *(f"/{path}", f"{path}/", path.upper(), f"/static/login.css/../..{path}", f"/login/..{path}", f"{path}\0"),
        *(f"/-/healthz/..{path}", f"/-/healthz;{path}", f"/login?{path}", f"{path};/login", f"/static/..{path}"),
    ]


def test_no_verb_and_no_credential_but_the_token_opens_a_route(storage: Path) -> None:
    app = create_app(Settings(storage=str(storage), ray=False, token=TOKEN, limits=PATIENT))
    past = Auth(TOKEN, lambda: time.time() - 13 * 3600).new_session()
    session = Auth(TOKEN).new_session()
    credentials: list[dict[str, str]] = [
        {},
        *(
            {"authorization": value}
            for value in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}")
        ),
        *({"authorization": value} for value in (TOKEN, f"Bearer  {TOKEN.upper()}", "Bearer \xff")),
        *({"cookie": f"{COOKIE}={value}"} for value in (past, session[:-1], TOKEN, f"9{session}", "", "9999999999.")),
        {"cookie": f"{COOKIE}={Auth(TOKEN + 'x').new_session()}"},
        {"x-forwarded-user": "admin", "x-original-url": "/-/healthz", "x-forwarded-for": "127.0.0.1", "token": TOKEN},
    ]
    paths = [path for path in [*paths_of(app), "/openapi.json", "/docs", "/v1/nothing"] if path not in OPEN_PATHS]
    query = f"token={TOKEN}&access_token={TOKEN}".encode()
    asked = [(verb, path, query, shown) for path in paths for verb in VERBS for shown in credentials]
    asked += [("GET", one, b"", {}) for path in paths for one in disguised(path)]
    assert len(asked) > 2254
    for one, (status, headers, body) in zip(asked, answers_of(app, asked), strict=True):
        is_login = status == 303 and headers["location"].startswith("/login?")
        assert status == 401 or (is_login and not body), one
    right = [("GET", path, b"", {"authorization": f"Bearer {TOKEN}"}) for path in paths if path != "/v1/nothing"]
    opened = [status for status, _, _ in answers_of(app, right)]
    assert not {401, 303} & set(opened)
    assert opened.count(200) > 15


VALUES: tuple[Callable[[random.Random], str], ...] = (
    lambda luck: str(
        luck.choice([-1, 0, 1, 1.5, 1e308, "nan", "inf", "-0", 2**63, 2**64, 10**400, "0x10", "1_0", "٣"])
    ),
    lambda luck: luck.choice(["", " ", "\0", "null", "true", "[]", "{}", "../..", "%", "\ud7ff", "é", "w", "-w", "id"]),
    lambda luck: luck.choice(
        ["w>0", "w>", ">", "w=null", "w!=null", "label=hat", "id>1e400", "w>=nan", "a=b=c", "w<<1"]
    ),
    lambda luck: luck.choice(
        ["parquet", "csv", "arrow", "log", "linear", "done", "half", "live", "-accuracy", "w,id,w"]
    ),
    lambda luck: bytes(luck.randrange(256) for _ in range(luck.randrange(40))).decode("latin-1"),
    lambda luck: luck.choice("aw0>=-,") * luck.choice([1, 300, 5000]),
)
NAMES = (
    "where",
    "order",
    "limit",
    "offset",
    "cursor",
    "columns",
    "column",
    "bins",
    "scale",
    "points",
    "format",
    "a",
    "b",
)
NAMES += ("q", "status", "search", "v", "next", "nothing")


def no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_no_query_makes_a_route_fail(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    app, luck = create_app(Settings(storage=str(storage), ray=False, limits=PATIENT)), random.Random(7)
    paths = [path for path in paths_of(app) if "preview" not in path]
    asked: list[Asked] = []
    for _ in range(800):
        pairs = [(luck.choice(NAMES), luck.choice(VALUES)(luck)) for _ in range(luck.randrange(1, 5))]
        query = "&".join(f"{name}={quote(value) if luck.random() < 0.8 else value}" for name, value in pairs)
        path = luck.choice(paths)
        if luck.random() < 0.2:
            path = path.replace("done", luck.choice(["half", "fresh", "..", "", "\0", "a" * 300, "é"]))
        if luck.random() < 0.2:
            path = path.replace("/3", f"/{luck.choice(VALUES)(luck)}")
        if not (path.endswith("/events") and "done" not in path):  # those of a run that trains do not end
            asked.append(("GET", path, query.encode("utf-8", "replace"), {}))
    with caplog.at_level(logging.ERROR):
        for one, (status, headers, body) in zip(asked, answers_of(app, asked), strict=True):
            assert status in (200, 304, 400, 404, 405, 409, 422), (one, status)
            if status >= 400:
                assert headers["content-type"] == "application/problem+json", one
                assert json.loads(body)["status"] == status, one
            elif headers.get("content-type") == "application/json":
                json.loads(body, parse_constant=no_number)
    assert caplog.records == []
