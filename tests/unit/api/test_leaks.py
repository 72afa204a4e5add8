"""Readers who leave in the middle: what they had open, threads, files and places, is free again."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import es_service as es
from es_service.api.guard import connections
from es_service.api.settings import Limits
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage

STREAMS = 20
PATIENCE_S = 30.0
NUM = 300_000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A run whose exports do not fit what sockets hold: one epoch has ended, another is to come."""
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0.0, 0.0))
    config = RunConfig(selection=selection, num_samples=NUM, num_epochs=2, batch_size=NUM // 3)
    place = RunStorage(str(tmp_path), "large")
    place.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), place)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=2, batch_size=NUM // 3, exchange=exchange)
    for ids in selector.epoch(0):
        losses = np.sqrt(1 + ids).astype(np.float32)
        draw = selector.select(ids, losses if selector.wants_scores else None)
        selector.observe(losses[draw.positions])
    return tmp_path


def ask(port: int, path: str, read: int) -> socket.socket:
    """Ask and read some of the answer, at least its status."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    if read:
        connection.recv(read)
    return connection


def break_off(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    connection.close()


def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def settles_to(most: tuple[int, int]) -> bool:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if all(now <= before for now, before in zip(held(), most, strict=True)):
            return True
        time.sleep(0.05)
    return False


def places_are_free(port: int, path: str, num: int = STREAMS) -> bool:
    """Whether as many streams as may be can be open at once."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        with ExitStack() as opened:
            asked = [opened.enter_context(ask(port, path, 0)) for _ in range(num)]
            if {one.recv(12) for one in asked} == {b"HTTP/1.1 200"}:
                return True
        time.sleep(0.1)  # the server has not noticed all of them yet
    return False


def ways(port: int) -> Iterator[Callable[[], None]]:
    events = "/v1/runs/large/events"
    yield lambda: break_off(ask(port, events, 0))
    yield lambda: ask(port, events, 100).close()
    for kind in ("csv", "arrow", "parquet"):
        for read in (0, 1, 20_000):
            yield lambda kind=kind, read=read: break_off(ask(port, f"/v1/runs/large/export?format={kind}", read))  # type: ignore[misc]


def test_readers_who_leave_hold_nothing(large: Path, make_server: Callable[..., int]) -> None:
    port = make_server(large, limits=Limits(streams=STREAMS), refresh_s=0.1)
    path = "/v1/runs/large/events"
    for way in ways(port):  # the threads that there are at most, and what is opened once
        way()
    assert places_are_free(port, path)
    files, threads = held()
    for _ in range(15):
        for way in ways(port):
            way()
    assert places_are_free(port, path)
    assert settles_to((files + 5, threads + 45)), (held(), files, threads)  # 40 threads are kept for what comes next


def test_who_takes_no_more_of_an_answer_loses_their_place(
    large: Path, make_server: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_ANSWER_S", 0.5)
    port = make_server(large, limits=Limits(streams=1), refresh_s=0.1)
    with ask(port, "/v1/runs/large/export?format=csv", 100):  # and no more
        assert places_are_free(port, "/v1/runs/large/events", 1)


def test_an_answer_that_nobody_takes_does_not_keep_its_connection(
    large: Path, make_server: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_ANSWER_S", 0.5)
    port = make_server(large, refresh_s=0.1)
    files, _ = held()
    path = "/v1/runs/large/samples?limit=1000"
    with ExitStack() as opened:
        for _ in range(10):
            asked = opened.enter_context(ask(port, path, 100))
            asked.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() * 50)
        assert settles_to((files + 10 + 5, 1000))  # ours are open, the server's are not
