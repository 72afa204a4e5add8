"""Server-sent events: what is told and what is not, and that a reader who leaves frees their place."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from es_service import errors
from es_service.api.app import create_app
from es_service.api.routes import events
from es_service.api.settings import Limits, Settings


def told(looks: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events that a row of looks gives: what each found, or the error it raised."""
    left = iter(looks)

    def look() -> dict[str, Any]:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return dict(found)

    async def collect() -> list[tuple[str, dict[str, Any]]]:
        return [(one.event, json.loads(one.raw_data)) async for one in events.stream(look, 0.0)]

    return asyncio.run(collect())


def row(epoch: int, status: str = "live", age: float = 0.0) -> dict[str, Any]:
    table = {"version": f"v{epoch}", "age_s": age, "as_of": str(age)}
    return {"run": "r", "status": status, "epoch": epoch, "age_s": age, "updated_at": str(age), "table": table}


def test_only_changes_are_told_and_the_end() -> None:
    found = told([row(0), row(0, age=1.0), row(0, age=2.0), row(1), row(1), row(2, "finished")])
    assert [(name, one["epoch"]) for name, one in found] == [("run", 0), ("run", 1), ("finished", 2)]


def test_going_away_is_told_once_and_coming_back_too() -> None:
    gone = errors.StorageError("the folder is gone")
    found = told([row(0), gone, gone, row(0), gone, row(0), row(1, "finished")])
    assert [name for name, _ in found] == ["run", "away", "run", "away", "run", "finished"]
    assert found[1][1] == {"detail": "the folder is gone"}


@pytest.fixture
def address(storage: Path) -> Iterator[str]:
    """A real server that lets one stream at a time."""
    app = create_app(Settings(storage=str(storage), ray=False, limits=Limits(streams=1), refresh_s=0.1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


def test_a_reader_who_leaves_frees_their_place(address: str) -> None:
    url = f"{address}/v1/runs/half/events"
    first = urllib.request.urlopen(url, timeout=10)
    assert first.readline() == b"event: run\n"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=10)
    assert caught.value.code == 503
    caught.value.close()
    first.close()
    give_up = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as again:
                assert again.readline() == b"event: run\n"
            return
        except urllib.error.HTTPError as error:  # the server has not noticed yet
            error.close()
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_a_quiet_stream_is_kept_open_by_comments(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI sends them every 15 s; here sooner."""
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with urllib.request.urlopen(f"{address}/v1/runs/half/events", timeout=10) as stream:
        assert stream.readline() == b"event: run\n"
        assert any(line.startswith(b":") for line in stream)
