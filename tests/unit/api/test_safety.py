"""Who may read, how much, from where; what every answer carries; what never gets out."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from es_service import errors
from es_service.api import settings
from es_service.api.deployed import build_app
from es_service.api.guard.auth import COOKIE, Auth, safe_next
from es_service.api.guard.limits import Buckets, Slots
from es_service.api.guard.middleware import CONTENT_SECURITY_POLICY, OPEN_PATHS
from es_service.api.settings import Limits, Settings, read_token
from es_service.cli import main

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def locked(storage: Path, make_client: Callable[..., TestClient]) -> TestClient:
    """A client of a service that asks for a token."""
    return make_client(storage, token=TOKEN)


def every_path(client: TestClient) -> list[str]:
    """Every route's path, with a run and a sample put in."""
    found = [route.path for route in flat(client.app.routes)]  # type: ignore[attr-defined]
    assert len(found) > 20
    return [path.replace("{run}", "done").replace("{id}", "3").replace("{name:path}", "index.html") for path in found]


def flat(routes: Any) -> list[Any]:
    found = []
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        found += flat(inner) if inner else [route] if isinstance(route, APIRoute) or hasattr(route, "path") else []
    return found


# -- the token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"])
def test_every_route_and_verb_asks_for_the_token(method: str, locked: TestClient) -> None:
    for path in [*every_path(locked), "/v1/nothing", "/openapi.json", "/docs", "//v1/runs", "/-/healthz/", "/login/x"]:
        if path in OPEN_PATHS:
            continue
        answer = locked.request(method, path, headers={"Accept": "application/json"})
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_opens_and_nothing_else_does(locked: TestClient) -> None:
    assert locked.get("/v1/runs", headers=BEARER).status_code == 200
    assert locked.get("/-/healthz").status_code == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "", "é" * 20):
        value = f"Bearer {wrong}".encode()
        assert locked.get("/v1/runs", headers={"Authorization": value}).status_code == 401  # type: ignore[dict-item]
    assert locked.get("/v1/runs", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
    assert locked.get(f"/v1/runs?token={TOKEN}&access_token={TOKEN}").status_code == 401  # never in a URL


def test_the_form_gives_a_session_that_reads(locked: TestClient) -> None:
    answer = locked.post("/login", data={"token": TOKEN, "next": "/runs/done?order=-w"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/done?order=-w")
    cookie = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Max-Age=43200", "Path=/"):
        assert word in cookie
    assert TOKEN not in cookie
    value = re.search(rf"{COOKIE}=([^;]+)", cookie)[1]  # type: ignore[index]
    locked.cookies.clear()
    assert locked.get("/v1/runs", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 200
    expires, _, signature = value.partition(".")
    for forged in (f"{int(expires) + 1}.{signature}", f"{expires}.", f"{expires}.{signature[:-1]}", "x", ""):
        assert locked.get("/v1/runs", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 401
    out = locked.post("/logout", headers=BEARER)
    assert 'es_service_session=""' in out.headers["set-cookie"]


def test_a_wrong_token_sends_back_to_the_form(locked: TestClient) -> None:
    answer = locked.post("/login", data={"token": "wrong", "next": "/runs/done"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?failed=1&next=/runs/done")
    assert "set-cookie" not in answer.headers


def test_guessing_is_slowed_down(storage: Path, make_client: Callable[..., TestClient]) -> None:
    client = make_client(storage, token=TOKEN, limits=Limits(logins_per_minute=3))
    for _ in range(3):
        assert client.post("/login", data={"token": "wrong"}).status_code == 303
    assert client.post("/login", data={"token": TOKEN}).status_code == 429


def test_another_site_cannot_log_anybody_in(locked: TestClient) -> None:
    answer = locked.post("/login", data={"token": TOKEN}, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 401
    own = locked.post("/login", data={"token": TOKEN}, headers={"Origin": "http://127.0.0.1:8420"})
    assert own.status_code == 303
    locked.cookies.clear()


def test_pages_send_to_the_form_and_remember_where_to_go(locked: TestClient) -> None:
    answer = locked.get("/runs/done?order=-w&x=1", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/runs/done%3Forder%3D-w%26x%3D1")


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil", "javascript:x", "", "/a\nb", None]
)
def test_nobody_is_sent_elsewhere_after_the_login(path: str | None) -> None:
    assert safe_next(path) == "/"
    assert safe_next("/runs/a?b=c") == "/runs/a?b=c"


def test_sessions_end_with_time_and_with_the_token() -> None:
    now = [1000.0]
    auth, other = Auth(TOKEN, lambda: now[0]), Auth(TOKEN + "x", lambda: now[0])
    headers = {"cookie": f"{COOKIE}={auth.new_session()}"}
    assert auth.accepts(headers)
    assert Auth(TOKEN, lambda: now[0]).accepts(headers)  # another process with the same token
    assert not other.accepts(headers)
    now[0] += 12 * 3600
    assert not auth.accepts(headers)


@pytest.mark.parametrize(
    "others",
    ["a=b", 'theme={"dark":true}', "prefs=[1,2]", "_xsrf=2|abc", "json=%7B%7D", "name with spaces=x", "flag", "=", ",",
     "é=ü", f"{COOKIE}=", f"{COOKIE}=of.another", f"{COOKIE}x=1", f"x{COOKIE}=1", '"', "a=b;;;", "$Version=1", "\\"],
)  # fmt: skip
def test_cookies_of_other_applications_are_no_hindrance(others: str) -> None:
    auth = Auth(TOKEN)
    own = f"{COOKIE}={auth.new_session()}"
    for cookies in (f"{others}; {own}", f"{own}; {others}", f"{others};{own};{others}", f"{own} ", f'"a"; {own}'):
        assert auth.accepts({"cookie": cookies}), cookies
    assert not auth.accepts({"cookie": others})
    assert not auth.accepts({"cookie": f'x="{own}'})


def test_the_token_comes_from_a_file_that_only_its_owner_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o644)
    with pytest.raises(errors.ConfigError, match="chmod 600"):
        read_token(str(path))
    path.chmod(0o600)
    assert read_token(str(path)) == TOKEN
    for bad in ("short", "with a space in the middle", "x" * 513, ""):
        path.write_text(bad)
        with pytest.raises(errors.ConfigError, match="16 to 512 printable"):
            read_token(str(path))
    with pytest.raises(errors.ConfigError, match="cannot read"):
        read_token(str(tmp_path / "absent"))
    path.write_bytes(TOKEN.encode() + b" " * 1000)
    with pytest.raises(errors.ConfigError, match="more than 514 bytes"):
        read_token(str(path))
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    monkeypatch.delenv(settings.TOKEN_VARIABLE)
    assert read_token(None) is None


def test_a_token_file_that_is_a_fifo_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    fifo, caught = tmp_path / "token", []
    os.mkfifo(fifo, 0o600)

    def read() -> None:
        try:
            read_token(str(fifo))
        except errors.ConfigError as error:
            caught.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(30)
    assert not reader.is_alive()
    assert "nothing was written to it within 5 s" in caught[0]


# -- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_other_hosts_need_a_token(
    host: str, storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings.TOKEN_VARIABLE, raising=False)
    everywhere = ("::", 0)
    with socket.create_server(everywhere, family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = str(taken.getsockname()[1])  # were it not refused, it would fail to listen rather than serve
        assert main(["serve", "--storage", str(storage), "--host", host, "--port", port]) == 2
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "reaches_only_here"),
    [
        *(("127.0.0.1", True), ("127.0.0.2", True), ("127.8.8.8", True), ("127.1", True), ("::ffff:127.0.0.2", True)),
        *(("::1", True), ("localhost", True), ("LOCALHOST", True), ("localhost.", True)),
        *(("0.0.0.0", False), ("::", False), ("128.1", False), ("::ffff:10.0.0.1", False), ("localhost.org", False)),
    ],
)
def test_what_counts_as_loopback(host: str, reaches_only_here: bool) -> None:
    assert settings.is_loopback(host) == reaches_only_here


def test_serve_says_what_is_wrong_before_it_listens(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--storage", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err
    assert main(["serve", "--storage", str(storage), "--port", "70000"]) == 2
    assert "[0, 65535]" in capsys.readouterr().err


# -- hosts, sizes, rates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "[::2]:8420"])
def test_a_request_to_another_host_is_refused(host: str, client: TestClient) -> None:
    answer = client.get("/v1/runs", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["type"] == "urn:es-service:problem:wrong-host"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:8420"])
def test_its_own_names_are_answered(host: str, client: TestClient) -> None:
    assert client.get("/v1/runs", headers={"Host": host}).status_code == 200


def test_a_large_body_is_refused_whether_it_says_so_or_not(client: TestClient) -> None:
    assert client.post("/login", content=b"x" * 20_000).status_code == 413

    def pieces() -> Any:
        for _ in range(30):
            yield b"x" * 1000

    assert client.post("/login", content=pieces()).status_code == 413
    assert client.request("GET", "/v1/runs", headers={"Content-Length": "-5"}).status_code == 413


def test_a_client_that_asks_too_fast_is_told_when_to_come_back(
    storage: Path, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(storage, limits=Limits(per_second=0.5, burst=3))
    assert [client.get("/v1/session").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert client.get("/v1/session").headers["retry-after"] == "2"
    assert client.get("/-/healthz").status_code == 200


def test_buckets_fill_again() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    assert buckets.is_empty("a")
    now[0] = 0.5
    assert not buckets.is_empty("a")
    assert buckets.take("a") == 0
    now[0] = 100
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]  # never more than it holds


def test_slots_never_wait() -> None:
    slots = Slots(2)
    assert [slots.enter() for _ in range(3)] == [True, True, False]
    slots.leave()
    assert slots.enter()


def test_too_much_at_once_is_unavailable(storage: Path, make_client: Callable[..., TestClient]) -> None:
    client = make_client(storage, limits=Limits(concurrent=1))
    catalogue = client.app.state.catalogue  # type: ignore[attr-defined]
    inside, go = threading.Event(), threading.Event()
    rows = catalogue.rows

    def slow() -> Any:
        inside.set()
        go.wait(20)
        return rows()

    catalogue.rows = slow
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(client.get("/v1/runs").status_code))
    thread.start()
    inside.wait(20)
    answer = client.get("/v1/session")
    go.set()
    thread.join()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert found == [200]
    assert client.get("/v1/session").status_code == 200  # the place is free again


# -- what answers carry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/absent", "/v1/nothing", "/-/healthz", "/metrics"])
def test_every_answer_has_the_security_headers(path: str, client: TestClient) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "cache-control" in headers
    assert "access-control-allow-origin" not in headers
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_a_failure_of_ours_says_nothing_of_how(
    storage: Path, make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(storage)

    def broken() -> Any:
        raise RuntimeError("a secret detail")

    client.app.state.catalogue.rows = broken  # type: ignore[attr-defined]
    answer = client.get("/v1/runs")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "a secret detail" in caplog.text  # the log says it


def test_settings_are_checked() -> None:
    with pytest.raises(errors.ConfigError, match="16 to 512"):
        Settings(storage="x", token="short")
    with pytest.raises(errors.ConfigError, match="per_second"):
        Limits(per_second=0)
    with pytest.raises(errors.ConfigError, match="burst"):
        Limits(burst=0)
    assert os.environ.get(settings.TOKEN_VARIABLE) is None


def test_an_application_made_from_the_environment_needs_a_token(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.TOKEN_VARIABLE, raising=False)
    with pytest.raises(errors.ConfigError, match="set ES_SERVICE_TOKEN"):
        build_app()
    monkeypatch.setenv(settings.TOKEN_VARIABLE, TOKEN)
    monkeypatch.setenv("ES_SERVICE_STORAGE", str(storage))
    monkeypatch.setenv("ES_SERVICE_HOSTS", "scores.example, other.example")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with TestClient(build_app(), base_url="http://scores.example") as client:
        assert client.get("/v1/runs").status_code == 401
        assert client.get("/v1/runs", headers=BEARER).json()["total"] == 4
        assert client.get("/v1/runs", headers={**BEARER, "Host": "evil.example"}).status_code == 421
