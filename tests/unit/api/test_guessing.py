"""Tokens are not found by trying: one after the other or at once, in the form, a header or a cookie."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from es_service.api.guard.auth import COOKIE, Auth
from es_service.api.settings import Limits

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def test_guesses_at_once_pass_the_limit_of_logins_no_more_than_others(
    storage: Path, make_server: Callable[..., int]
) -> None:
    port = make_server(storage, token=TOKEN, limits=Limits(logins_per_minute=10))
    with contextlib.ExitStack() as held:
        guesses = []
        for number in range(120):
            body = b"token=a-wrong-token-%03d" % number
            guess = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            head = (
                f"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            guess.sendall(head.encode() + body[:-1])
            guesses.append((guess, body[-1:]))
        for guess, rest in guesses:
            guess.sendall(rest)
        statuses = [guess.makefile("rb").readline().split()[1] for guess, _ in guesses]
    assert set(statuses) == {b"303", b"429"}
    assert 10 <= statuses.count(b"303") < 20  # some may come back meanwhile


@pytest.mark.parametrize("kind", ["bearer", "cookie"])
def test_wrong_tokens_have_a_limit_of_their_own(
    kind: str, storage: Path, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(storage, token=TOKEN, limits=Limits(wrong_tokens_per_minute=5))
    cookie = {"Cookie": f"{COOKIE}={Auth(TOKEN).new_session()}"}
    wrong = {"bearer": {"Authorization": "Bearer wrong"}, "cookie": {"Cookie": f"{COOKIE}=9999999999.wrong"}}[kind]
    assert [client.get("/v1/runs", headers=wrong).status_code for _ in range(7)] == [401] * 5 + [429] * 2
    assert client.get("/v1/runs", headers=wrong).headers["retry-after"] == "10"
    for right in (BEARER, cookie):  # clients behind a proxy share an address: a guesser locks none of them out
        assert client.get("/v1/runs", headers=right).status_code == 200
    assert client.get("/v1/runs").status_code == 401  # who shows none does not guess
    assert client.get("/login").status_code == 200
    assert client.post("/login", data={"token": TOKEN}).status_code == 303


def test_right_tokens_do_not_count(storage: Path, make_client: Callable[..., TestClient]) -> None:
    client = make_client(storage, token=TOKEN, limits=Limits(wrong_tokens_per_minute=2, logins_per_minute=2))
    assert {client.get("/v1/session", headers=BEARER).status_code for _ in range(20)} == {200}
    assert {client.post("/login", data={"token": TOKEN}).status_code for _ in range(20)} == {303}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ("&".join(f"f{number}=x" for number in range(9)), {}, 400),
        ("&" * 5000, {}, 400),
        ("token=%ff%00%", {}, 303),
        ("token=" + "\ud7ff", {}, 303),
        ("", {}, 303),
        ("token=x", {"Origin": "http://["}, 401),
        ("token=x", {"Origin": "http://[::1"}, 401),
        ("token=x", {"Origin": "null"}, 401),
        ("token=x", {"Content-Length": "9" * 5000}, 413),
    ],
)
def test_a_form_that_cannot_be_read_is_no_failure_of_ours(
    body: str, headers: dict[str, str], expected: int, storage: Path, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(storage, token=TOKEN)
    answer = client.post("/login", content=body.encode(), headers=headers)
    assert answer.status_code == expected
    if expected != 303:
        assert answer.headers["content-type"] == "application/problem+json"
