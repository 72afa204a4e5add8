"""Many readers at once, while nothing is worked out yet: everybody gets an answer, and none stands in another's way."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from es_service.api.table import comparison, results
from es_service.api.table.view import TableView

MakeView = Callable[..., TableView]
PATIENCE_S = 60.0


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)  # one that hangs must not hold up the end of the tests
    thread.start()
    return thread


def all_end(threads: list[threading.Thread], patience_s: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def waits_in(thread: threading.Thread, function: str) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> int:
    """Every table counts as large, and the places are new: what hangs here is not in the way of other tests."""
    monkeypatch.setattr(results, "_LARGE", 1)
    monkeypatch.setattr(results, "_large_looks", threading.BoundedSemaphore(4))
    return 4


def test_what_those_with_a_place_need_does_not_wait_for_a_place(few_places: int, make_view: MakeView) -> None:
    view, go = make_view(100), threading.Event()
    entered = threading.Semaphore(0)

    def look() -> int:
        entered.release()
        go.wait(PATIENCE_S)
        return view.once("needed by all", lambda: 5)

    looks = [started(lambda key=key: view.once(key, look)) for key in range(few_places)]  # type: ignore[misc]
    for _ in looks:
        assert entered.acquire(timeout=PATIENCE_S)
    late = started(lambda: view.once("needed by all", lambda: 5))
    deadline = time.monotonic() + PATIENCE_S
    while not waits_in(late, "looking"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    go.set()
    assert all_end([*looks, late], 20.0)


def test_two_tables_can_be_compared_both_ways_at_once(few_places: int, make_view: MakeView) -> None:
    assert few_places == 4
    for seed in range(20):
        small, large = make_view(50, seed=seed), make_view(90, seed=seed)
        ways = [(small, large), (large, small)] * 4
        assert all_end([started(lambda a=a, b=b: comparison.compare(a, b, "w", 5)) for a, b in ways])  # type: ignore[misc]


def test_a_work_that_fails_leaves_the_key_to_the_next(make_view: MakeView) -> None:
    view, go, tries = make_view(10), threading.Event(), []

    def work() -> int:
        tries.append(1)
        go.wait(PATIENCE_S)
        if len(tries) == 1:
            raise ValueError
        return 5

    found: list[object] = []

    def ask() -> None:
        try:
            found.append(view.once("key", work))
        except ValueError:
            found.append("failed")

    threads = [started(ask) for _ in range(8)]
    go.set()
    assert all_end(threads)
    assert sorted(map(str, found)) == ["5"] * 7 + ["failed"]
    assert not view._under_way


ROUTES = [
    *(f"/v1/runs/{{run}}/{name}" for name in ("samples", "samples/3", "samples/3/history", "distribution", "map")),
    *(f"/v1/runs/{{run}}/{name}" for name in ("coverage", "staleness", "effective_sample_size", "ledger", "export")),
    *(f"/v1/runs/{{run}}/{name}" for name in ("distribution/epochs", "samples?where=visits>=1&order=suspicion")),
    *(
        "/v1/runs/{run}/samples?columns=selected&limit=1",
        "/v1/runs/{run}/map?points=1000&where=w>0.5",
        "/v1/runs/{run}",
    ),
    *("/v1/runs/{run}/events", "/v1/compare?a=done&b=other", "/v1/compare?a=other&b=done", "/v1/runs", "/v1/session"),
    *("/v1/runs?q=half&order=accuracy", "/metrics", "/-/readyz", "/-/healthz", "/", "/runs/{run}", "/openapi.json"),
]


def test_fifty_readers_of_everything_with_nothing_worked_out_yet_are_all_answered(
    few_places: int, storage: Path, make_client: Callable[..., TestClient]
) -> None:
    assert few_places == 4
    begin = time.monotonic()
    for seed in range(3):
        client, order = make_client(storage), random.Random(seed)
        together, answers = threading.Barrier(50), list[tuple[str, int]]()

        def read(
            routes: list[str],
            client: TestClient = client,
            together: threading.Barrier = together,
            answers: list[tuple[str, int]] = answers,
        ) -> None:
            together.wait(PATIENCE_S)
            answers.extend((route, client.get(route).status_code) for route in routes)

        ways = [order.sample(ROUTES, len(ROUTES)) for _ in range(50)]
        filled = [[one.replace("{run}", order.choice(["done", "other"])) for one in way] for way in ways]
        assert all_end([started(lambda routes=routes: read(routes)) for routes in filled])  # type: ignore[misc]
        assert [answer for answer in answers if answer[1] != 200] == []
        assert len(answers) == 50 * len(ROUTES)
    assert time.monotonic() - begin < 3 * PATIENCE_S


SLOW = """
import threading
entered, go = threading.Event(), threading.Event()

def build(data):
    entered.set()
    go.wait(60)
    raise TypeError("a task that cannot be built")
"""


def test_previews_that_take_long_do_not_keep_others_waiting(
    storage: Path, tmp_path: Path, make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(storage / "done", tmp_path / "runs" / "done")
    path = tmp_path / "runs" / "done" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": {"task": "own_slow:build"}}))
    client = make_client(tmp_path / "runs", own_tasks=True)
    own = importlib.import_module("own_slow")
    previews = [started(lambda: client.get("/v1/runs/done/samples/3/preview")) for _ in range(60)]
    try:
        assert own.entered.wait(PATIENCE_S)
        in_line = [started(lambda: client.get("/-/healthz")) for _ in range(60)]  # behind all of them
        assert all_end(in_line)
        others = [started(lambda path=path: client.get(path)) for path in ("/v1/runs", "/v1/runs/done/coverage")]  # type: ignore[misc]
        assert all_end(others, 20.0)
    finally:
        own.go.set()
    assert all_end(previews)
