"""Runs on storage as training runs leave them, and a client of the real application over them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from fastapi.testclient import TestClient

import es_service as es
from es_service.api.app import create_app
from es_service.api.guard.connections import server_options
from es_service.api.settings import Settings
from es_service.api.table.view import Labels, TableView
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.selection.table import RECORD, records_to_arrow
from es_service.storage.labels import write_notes
from es_service.storage.runs import RunStorage

NUM = 60
NAMES = ("hat", "shoe, left", "sock")
RESULT: dict[str, Any] = {
    "accuracy": 0.9,
    "samples": {"scored": 90, "trained": 120, "full": 240},
    "seconds": {"total": 2.0, "score": 0.5, "train": 1.2, "exchange": 0.1, "data": 0.1, "wall": 3.0},
    "saving": {"samples": 0.5, "cost": 0.25, "seconds": None},
    "history": [{"epoch": 0, "accuracy": 0.5, "scored": 0, "trained": 60, "seconds": 0.5, "saving": {"samples": 0.0}}],
}


def train(storage: Path, run: str, epochs: int, method: es.methods.Method | None = None, seed: int = 1) -> None:
    """Begin a run of 4 epochs and finish some."""
    selection = es.Selection(method or es.methods.evolved(), ratio=0.5, anneal=(0.0, 0.0), seed=seed)
    config = RunConfig(selection=selection, num_samples=NUM, num_epochs=4, batch_size=10)
    place = RunStorage(str(storage), run)
    place.begin(config, {"task": "fashion", "method": "es", "workers": 1, "exchange": "embedded"})
    exchange = Embedded(LocalRun(config), Position(0, 1), place)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=4, batch_size=10, exchange=exchange)
    for epoch in range(epochs):
        for ids in selector.epoch(epoch):
            losses = (1 + (ids * (7 + seed)) % 13 + epoch * (ids % 3)).astype(np.float32)
            draw = selector.select(ids, losses if selector.wants_scores else None)
            selector.observe(losses[draw.positions])


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `done` (4 epochs, labels), `other` (like it, another seed), `half` (2 epochs, most never seen), `fresh`."""
    place = tmp_path_factory.mktemp("storage")
    train(place, "done", 4)
    write_notes(RunStorage(str(place), "done"), np.arange(NUM) % 3, NAMES, "text/plain")
    RunStorage(str(place), "done").write_result(RESULT)
    train(place, "other", 4, seed=2)
    train(place, "half", 1, es.methods.random())
    train(place, "fresh", 0)
    return place


@pytest.fixture(scope="session")
def make_client() -> Iterator[Callable[..., TestClient]]:
    """Makes a client of the application; keywords are those of Settings."""
    clients = []

    def make(storage: Path, **settings: Any) -> TestClient:
        app = create_app(Settings(storage=str(storage), ray=False, **settings))
        client = TestClient(app, base_url="http://127.0.0.1:8420", follow_redirects=False)
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def one_client(storage: Path, make_client: Callable[..., TestClient]) -> TestClient:
    """A client that may read everything."""
    return make_client(storage)


@pytest.fixture
def client(storage: Path, one_client: TestClient) -> TestClient:
    """The same, of runs that live: however long the tests before took, `half` and `fresh` changed a moment ago."""
    for run in ("half", "fresh"):
        if time.time() - (storage / run / "run.json").stat().st_mtime > 60:
            os.utime(storage / run / "run.json")
    return one_client


@pytest.fixture
def make_server() -> Iterator[Callable[..., int]]:
    """Starts a real server as `es-service serve` does and returns its port; keywords are those of Settings."""
    with contextlib.ExitStack() as at_end:

        def make(storage: Path, **settings: Any) -> int:
            given = Settings(storage=str(storage), ray=False, **settings)
            listener = at_end.enter_context(socket.create_server(("127.0.0.1", 0)))
            config = uvicorn.Config(
                create_app(given), log_level="warning", timeout_graceful_shutdown=1, **server_options(given.limits)
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(timeout=20)

            at_end.callback(stop)
            return int(listener.getsockname()[1])

        yield make


@pytest.fixture
def make_view() -> Callable[..., TableView]:
    """Makes a view of random rows; a third was never observed, values repeat."""

    def make(num: int, *, seed: int = 0, shards: int = 1, labels: bool = True) -> TableView:
        random = np.random.default_rng(seed)
        records = np.zeros(num, dtype=RECORD)
        records["w"] = random.integers(0, 7, num) / 4
        records["s"] = random.normal(size=num)
        records["visits"] = np.where(random.random(num) < 0.3, 0, random.integers(1, 9, num))
        seen = records["visits"] > 0
        records["selected"] = np.where(seen, random.integers(0, 5, num), 0)
        records["last_loss"] = np.where(seen, random.integers(0, 9, num) / 2, np.nan)
        records["loss_mean"] = np.where(seen, random.exponential(size=num), 0)
        records["loss_var"] = np.where(seen, random.exponential(size=num), 0)
        records["last_step"] = np.where(seen, random.integers(0, 50, num), -1)
        whole = records_to_arrow(records)
        parts = [whole.take(pa.array(np.arange(index, num, shards))) for index in range(shards)]
        known = Labels(random.integers(0, 3, num).astype(np.uint8), NAMES) if labels else None
        starts = (0, 10, 20, 30)
        return TableView(parts, version="v", source="storage", epoch=3, as_of=0.0, epoch_starts=starts, labels=known)

    return make
