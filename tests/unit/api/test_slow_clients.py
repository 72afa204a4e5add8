"""Clients that send slowly or not at all, over real sockets: they hold up nobody, and are cut off in time."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from es_service.api.settings import Limits

PATIENCE_S = 20.0
NUM_FILES = 400
TOKEN = "a-token-of-enough-letters"
HALF_LOGIN = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60\r\n\r\ntoken="
HALF_HEAD = b"GET /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
MakeServer = Callable[..., int]


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.sendall(sent)
    return connection


def ask(port: int, path: str, head: str = "", host: str = "127.0.0.1") -> bytes:
    """Everything that a GET on a connection of its own brings."""
    with connect(port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{head}\r\n".encode()) as asked:
        return asked.makefile("rb").read()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture(scope="module")
def command(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """`es-service serve` with few files to open and a token; its port and what it writes."""
    place = tmp_path_factory.mktemp("command")
    token, log = place / "token", place / "log"
    token.write_text(TOKEN)
    token.chmod(0o600)
    words = [sys.executable, "-m", "es_service.cli", "serve", "--storage", str(storage), "--port", "0", "--no-ray"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*words, "--token-file", str(token)],
            stderr=out,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_FILES, NUM_FILES)),
        )
    try:
        deadline = time.monotonic() + 60
        while b"Ctrl-C" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = int(log.read_text().split("127.0.0.1:")[1].split()[0])
        yield port, log
    finally:
        process.terminate()
        process.wait(20)


def test_half_sent_bodies_take_no_place(command: tuple[int, Path]) -> None:
    port, _ = command
    with contextlib.ExitStack() as held:
        for _ in range(150):
            held.enter_context(connect(port, HALF_LOGIN))
        for path in ("/v1/runs", "/-/readyz", "/-/healthz"):
            assert status(ask(port, path, f"Authorization: Bearer {TOKEN}\r\n")) == 200, path


def test_more_half_sent_heads_than_files_end_nothing(command: tuple[int, Path]) -> None:
    port, log = command
    with contextlib.ExitStack() as held:
        for _ in range(NUM_FILES + 100):
            held.enter_context(connect(port, HALF_HEAD))
        begin = time.monotonic()
        for path in ("/-/healthz", "/v1/runs"):
            assert status(ask(port, path, f"Authorization: Bearer {TOKEN}\r\n")) == 200, path
        assert time.monotonic() - begin < 10
    assert "out of system resource" not in log.read_text()


def test_a_websocket_is_refused_as_any_other_request(command: tuple[int, Path]) -> None:
    port, log = command
    before = log.read_bytes()
    assert status(ask(port, "/v1/runs", UPGRADE)) == 401
    assert status(ask(port, "/v1/runs", UPGRADE, host="evil.example")) == 421
    assert status(ask(port, "/v1/runs/done/events", f"{UPGRADE}Authorization: Bearer wrong\r\n")) == 401
    assert status(ask(port, "/nothing", f"{UPGRADE}Authorization: Bearer {TOKEN}\r\n")) == 404
    assert log.read_bytes() == before


def sends_until_cut(connection: socket.socket, piece: bytes) -> tuple[float, bytes]:
    """Send a byte now and then until the server ends it; return after how many seconds, and what it answered."""
    begin, answer = time.monotonic(), b""
    connection.settimeout(0.1)
    while time.monotonic() - begin < PATIENCE_S:
        try:
            found = connection.recv(65536)
            if not found:
                return time.monotonic() - begin, answer
            answer += found
        except TimeoutError:
            with contextlib.suppress(OSError):
                connection.sendall(piece)
        except ConnectionError:
            return time.monotonic() - begin, answer
    raise AssertionError("the server holds it still")


@pytest.mark.parametrize(
    ("sent", "piece", "answered"),
    [
        (b"", b"", b""),
        (b"", b"G", b""),
        (HALF_HEAD, b"x", b""),
        (HALF_LOGIN, b"x", b"HTTP/1.1 408"),
        (HALF_LOGIN.replace(b"Content-Length: 60", b"Transfer-Encoding: chunked")[:-6], b"1\r\nx\r\n", b"HTTP/1.1 408"),
        (HALF_LOGIN.replace(b"127.0.0.1", b"evil.example"), b"x", b"HTTP/1.1 421"),  # answered before the body is there
        (b"GET /-/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nG", b"x", b"HTTP/1.1 200"),  # the next one is half sent
    ],
)
def test_a_byte_now_and_then_does_not_keep_a_connection(
    sent: bytes, piece: bytes, answered: bytes, storage: Path, make_server: MakeServer
) -> None:
    port = make_server(storage, limits=Limits(request_s=0.5))
    with connect(port, sent) as connection:
        seconds, answer = sends_until_cut(connection, piece)
    assert 0.3 < seconds < 15
    assert answer.startswith(answered)
    assert bool(answer) == bool(answered)
    assert status(ask(port, "/v1/runs")) == 200


def test_whole_requests_on_one_connection_are_answered_for_long(storage: Path, make_server: MakeServer) -> None:
    port = make_server(storage, limits=Limits(request_s=1.5))
    with connect(port) as connection:
        answers = connection.makefile("rb")
        begin = time.monotonic()
        while time.monotonic() - begin < 2.0:
            for piece in (b"GET /-/healthz HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n\r\n"):
                connection.sendall(piece)
                time.sleep(0.02)
            assert answers.readline().startswith(b"HTTP/1.1 200")
            while answers.readline() != b"\r\n":
                pass
            assert answers.read(len(b'{"status": "ok"}')) == b'{"status": "ok"}'


def test_the_list_of_runs_does_not_wait_for_first_previews(command: tuple[int, Path]) -> None:
    port, _ = command
    head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
    first = f"GET /v1/runs/done/samples/3/preview HTTP/1.1\r\nConnection: close\r\n{head}\r\n".encode()
    with contextlib.ExitStack() as held:
        previews = [held.enter_context(connect(port, first)) for _ in range(50)]  # these load torch
        assert status(ask(port, "/v1/runs", f"Authorization: Bearer {TOKEN}\r\n")) == 200
        assert select.select(previews, [], [], 0)[0] == []  # it came before any of them
        for preview in previews:
            preview.settimeout(60)
            assert status(preview.makefile("rb").read()) == 200
