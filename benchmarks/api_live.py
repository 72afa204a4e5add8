"""What readers of the HTTP service cost a live run: the same training, with them and without, in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import numpy as np

import es_service as es

__all__ = ["measure", "read"]

_READERS = 50
_EVERY_S = 2.0  # as often as a page asks
_ROWS = 200_000
_BATCH = 512
_STEP_S = 0.02  # the work of a step besides the exchange
_WINDOW_STEPS = 120
_WINDOWS = 8  # with and without in turns


def _paths(run: str) -> list[str]:
    return [
        f"/v1/runs/{run}",
        f"/v1/runs/{run}/distribution",
        f"/v1/runs/{run}/map",
        f"/v1/runs/{run}/samples?limit=24",
        f"/v1/runs/{run}/coverage",
    ]


def read(port: int, run: str) -> None:
    """Be 50 open pages: each asks for all of its routes every two seconds, from "on" to "off" on stdin.

    When stdin ends, prints how many answers came, and how many were none. Pages are usually open on other machines:
    what they take of this one themselves stands back, as the service does.
    """
    os.nice(19)
    wanted, ended, answers, bad = threading.Event(), threading.Event(), [0] * _READERS, [0] * _READERS

    def page(index: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        time.sleep(index * _EVERY_S / _READERS)  # pages are not opened at one instant
        while not ended.is_set():
            if not wanted.wait(0.2):
                connection.close()  # the service closes one that is idle; the next request opens it again
                continue
            for path in _paths(run):
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                answers[index] += 1
                bad[index] += answer.status != 200
            ended.wait(_EVERY_S)
        connection.close()

    threads = [threading.Thread(target=page, args=(index,)) for index in range(_READERS)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        (wanted.set if line.strip() == "on" else wanted.clear)()
    ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"answers": sum(answers), "bad": sum(bad)}))


class _Readers:
    """The process that runs `read`."""

    def __init__(self, port: int, run: str) -> None:
        words = [sys.executable, "-m", "benchmarks.api_live", str(port), run]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def want(self, *, on: bool) -> None:
        """Let them read, or let them be."""
        assert self._process.stdin is not None
        self._process.stdin.write("on\n" if on else "off\n")
        self._process.stdin.flush()

    def close(self) -> dict[str, int]:
        """End them; return answers and bad ones."""
        told: dict[str, int] = json.loads(self._process.communicate(timeout=120)[0])
        return told


def measure(service_of: Callable[[str], Any], get: Callable[..., Any]) -> dict[str, Any]:
    """Return the exchange's seconds a step with readers and without, for two exchanges.

    Args:
        service_of: starts the service on a storage folder.
        get: asks it.
    """
    import ray

    from es_service.actors.cluster import ensure_ray

    ensure_ray()
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    found = {"readers": _READERS, "rows": _ROWS, "exchanges": {}}
    try:
        for exchange in ("leased", "sync"):
            with tempfile.TemporaryDirectory(prefix="es-bench-") as storage:
                found["exchanges"][exchange] = _with_and_without(exchange, storage, service_of, get)
    finally:
        ray.shutdown()
    return found


def _with_and_without(
    exchange: Any, storage: str, service_of: Callable[[str], Any], get: Callable[..., Any]
) -> dict[str, Any]:
    from es_service.actors import launch

    run = f"live-{exchange}"
    selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0))
    epochs = _WINDOW_STEPS * (_WINDOWS + 2) * _BATCH // _ROWS + 2
    selector = es.connect(
        run, selection, num_samples=_ROWS, num_epochs=epochs, batch_size=_BATCH, exchange=exchange, storage=storage
    )
    service = service_of(storage)
    random = np.random.default_rng(0)
    try:
        steps = (ids for epoch in range(epochs) for ids in selector.epoch(epoch))

        def window() -> list[float]:
            spent = []
            for _ in range(_WINDOW_STEPS):
                ids, before = next(steps), selector.ledger.seconds["exchange"]
                losses = random.exponential(size=len(ids)).astype(np.float32)
                time.sleep(_STEP_S)
                selector.select(ids, losses)
                spent.append(selector.ledger.seconds["exchange"] - before)
            return spent

        window()  # warms up, and gives the service time to find the cluster
        connection = service.connect()
        give_up = time.monotonic() + 60
        while b'"source":"live"' not in get(connection, f"/v1/runs/{run}")[1]:
            assert time.monotonic() < give_up, "the service does not see the live run"
            time.sleep(0.2)
        readers = _Readers(service.port, run)
        spent: dict[bool, list[float]] = {True: [], False: []}
        try:
            for turn in range(_WINDOWS):
                is_read = turn % 2 == 1
                readers.want(on=is_read)
                time.sleep(_EVERY_S)  # until all of them ask, or none does any more
                spent[is_read] += window()
        finally:
            told = readers.close()
        assert told["answers"] > _READERS
        assert not told["bad"]
    finally:
        service.close()
        selector.close()
        launch.stop(run)
    with_s, without_s = (float(np.mean(spent[is_read])) for is_read in (True, False))
    return {
        "with_ms": 1e3 * with_s,
        "without_ms": 1e3 * without_s,
        "with_p50_ms": 1e3 * float(np.median(spent[True])),
        "without_p50_ms": 1e3 * float(np.median(spent[False])),
        "ratio": with_s / without_s,
        "answers": told["answers"],
        "steps": len(spent[True]),
    }


if __name__ == "__main__":
    read(int(sys.argv[1]), sys.argv[2])
