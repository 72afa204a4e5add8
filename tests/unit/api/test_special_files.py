"""FIFOs among a run's files, or as its data: what reads them says that it cannot, and no thread waits for a writer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

PATIENCE_S = 60.0
ROUTES = (
    *("/v1/runs", "/v1/runs/done", "/metrics", "/-/readyz", "/v1/runs/done/samples/3/preview"),
    *(f"/v1/runs/done/{name}" for name in ("samples", "samples/3", "samples/3/history", "distribution", "ledger")),
    *(f"/v1/runs/done/{name}" for name in ("distribution/epochs", "map", "coverage", "staleness", "export")),
    *("/v1/runs/done/effective_sample_size", "/v1/compare?a=done&b=other"),
)


def answers(client: TestClient, routes: tuple[str, ...], *fifos: Path) -> dict[str, int]:
    """The statuses; what is still waited for is left out, and let go on then."""
    found: dict[str, int] = {}

    def read() -> None:
        for route in routes:
            found[route] = client.get(route).status_code

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE_S)
    in_time = dict(found)
    for fifo in fifos:
        with contextlib.suppress(OSError):  # nobody reads it
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    reader.join(PATIENCE_S)
    return in_time


def replaced(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_no_file_of_a_run_is_waited_for(storage: Path, tmp_path: Path, make_client: Callable[..., TestClient]) -> None:
    names = sorted(str(path.relative_to(storage)) for path in (storage / "done").rglob("*") if path.is_file())
    assert {name.split("/")[1] for name in names} >= {"run.json", "snapshots", "history", "spreads", "labels.arrow"}
    for number, name in enumerate(names):
        place = tmp_path / str(number)
        for run in ("done", "other"):
            shutil.copytree(storage / run, place / run)
        replaced(place / name)
        found = answers(make_client(place), ROUTES, place / name)
        assert list(found) == list(ROUTES), name
        assert set(found.values()) <= {200, 404, 409, 503}, (name, found)
        assert found["/v1/runs"] == 200


@pytest.mark.parametrize("task", ["fashion", "flights", "reviews"])
@pytest.mark.parametrize("is_within", [False, True])
def test_no_data_are_waited_for(
    task: str, is_within: bool, storage: Path, tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    data = tmp_path / "data"
    if is_within:
        data.mkdir()
        for name in ("train-images-idx3-ubyte", "flights.csv", "movie_reviews.zip", "reviews.csv"):
            os.mkfifo(data / name)
    else:
        os.mkfifo(data)
    shutil.copytree(storage / "done", tmp_path / "runs" / "done")
    path = tmp_path / "runs" / "done" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": {"task": task, "data": str(data)}}))
    route = "/v1/runs/done/samples/3/preview"
    fifos = list(data.iterdir()) if is_within else [data]
    assert answers(make_client(tmp_path / "runs"), (route,), *fifos) == {route: 404}
