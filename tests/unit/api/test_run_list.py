"""A storage of many runs: a page reads the runs that it shows; what needs all of them says how many it did not have."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from es_service.storage import files

NUM = 120


@pytest.fixture
def many(storage: Path, tmp_path: Path) -> Path:
    for index in range(NUM):
        shutil.copytree(storage / "done", tmp_path / "runs" / f"run-{index:03d}")
    return tmp_path / "runs"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each run's files were read."""
    found: Counter[str] = Counter()
    original = files.read_bytes

    def counted(filesystem: Any, path: str, most_bytes: int) -> bytes:
        found[path.split("/runs/")[1].partition("/")[0]] += 1
        return original(filesystem, path, most_bytes)

    monkeypatch.setattr(files, "read_bytes", counted)
    return found


def get(client: TestClient, path: str) -> dict[str, Any]:
    """Ask until all runs have been looked at."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found["pending"] == 0:
            return found
        assert time.monotonic() < deadline


@pytest.mark.parametrize("order", ["-updated_at", "updated_at", "run", "-run", "begun_at"])
def test_a_page_reads_the_runs_that_it_shows(
    order: str, many: Path, read: Counter[str], make_client: Callable[..., TestClient]
) -> None:
    client = make_client(many)
    page = get(client, f"/v1/runs?order={order}&limit=10")
    assert page["total"] == NUM
    assert set(read) <= {row["run"] for row in page["runs"]}
    assert sum(read.values()) <= 4 * 10  # run.json, result.json, progress.json, samples.json
    [column] = [order.removeprefix("-")]
    shown = [(row[column], row["run"]) for row in page["runs"]]
    assert shown == sorted(shown, reverse=order.startswith("-"))
    read.clear()
    assert get(client, f"/v1/runs?order={order}&limit=10")["runs"][0]["run"] == page["runs"][0]["run"]
    assert not read  # nothing has changed
    more = get(client, f"/v1/runs?order={order}&limit=10&offset=10")
    assert len({row["run"] for row in [*page["runs"], *more["runs"]]}) == 20
    assert sum(read.values()) <= 4 * 10


def test_what_needs_all_runs_reads_each_file_once(
    many: Path, read: Counter[str], make_client: Callable[..., TestClient]
) -> None:
    client = make_client(many)
    assert get(client, "/v1/runs?q=fashion&order=accuracy&limit=5")["total"] == NUM
    assert get(client, "/v1/runs?status=finished&order=-run")["total"] == NUM
    assert f'es_service_runs{{status="finished"}} {NUM}.0' in client.get("/metrics").text
    assert len(read) == NUM
    assert max(read.values()) <= 4


def test_an_answer_does_not_wait_for_runs_that_take_long(
    many: Path, make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, original = threading.Event(), files.read_bytes

    def slow(filesystem: Any, path: str, most_bytes: int) -> bytes:
        if path.endswith("run-060/run.json"):  # as a disk that is elsewhere may be
            go.wait(60)
        return original(filesystem, path, most_bytes)

    monkeypatch.setattr(files, "read_bytes", slow)
    client = make_client(many)
    try:
        found = client.get("/v1/runs?q=fashion&limit=1000").json()
        assert 0 < found["pending"] <= NUM
        assert found["total"] + found["pending"] == NUM
        assert 'es_service_runs{status="pending"}' in client.get("/metrics").text
    finally:
        go.set()
    assert get(client, "/v1/runs?q=fashion")["total"] == NUM


def test_runs_that_come_go_and_change_are_seen(
    storage: Path, many: Path, make_client: Callable[..., TestClient]
) -> None:
    client = make_client(many)
    assert get(client, "/v1/runs?q=fashion")["total"] == NUM
    shutil.rmtree(many / "run-003")
    shutil.copytree(storage / "half", many / "newest")
    (many / "run-004" / "result.json").write_text('{"accuracy": 0.25}')
    deadline = time.monotonic() + 30
    while True:
        found = {row["run"]: row for row in get(client, "/v1/runs?q=fashion&limit=1000")["runs"]}
        if "newest" in found and "run-003" not in found and found["run-004"]["accuracy"] == 0.25:
            break
        assert time.monotonic() < deadline
    assert len(found) == NUM
