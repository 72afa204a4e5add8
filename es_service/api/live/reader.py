"""The process that asks score servers on behalf of the HTTP service: one JSON request a line in, one answer a line out.

A separate process, because Ray ends a process whose cluster goes away, and because a service that shows finished
runs should not have to load Ray.

    {"id": 1, "op": "runs"}                                -> {"id": 1, "runs": {run: stats or {"error": …}}}
    {"id": 2, "op": "table", "run": "demo", "path": "…"}   -> {"id": 2, "rows": 8000, "stats": {…}}; an Arrow IPC file
    whatever went wrong                                    -> {"id": 2, "error": "…"}

The first line it writes is {"ready": address} or {"failed": why}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

__all__ = ["main"]

_STATS_DEADLINE_S = 3.0
_TABLE_DEADLINE_S = 60.0
_THREADS = 6


def main() -> None:
    """Connect to the Ray cluster of RAY_ADDRESS and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray prints must not end up between our lines
    lock = threading.Lock()
    try:
        from es_service.actors.cluster import ensure_ray

        ensure_ray()
    except Exception as error:  # of any kind: the service reports it and continues without Ray
        _say(answers, lock, {"failed": f"{type(error).__name__}: {error}"[:500]})
        return
    _say(answers, lock, {"ready": os.environ.get("RAY_ADDRESS", "")})
    with ThreadPoolExecutor(_THREADS, "ask") as pool:
        for line in sys.stdin:
            pool.submit(_handle, json.loads(line), answers, lock)


def _say(answers: TextIO, lock: threading.Lock, value: dict[str, Any]) -> None:
    with lock:
        answers.write(json.dumps(value) + "\n")
        answers.flush()


def _handle(request: dict[str, Any], answers: TextIO, lock: threading.Lock) -> None:
    try:
        answer = _runs() if request["op"] == "runs" else _table(request["run"], request["path"])
    except Exception as error:  # reported to the caller, which retries
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    _say(answers, lock, {"id": request["id"], **answer})


def _runs() -> dict[str, Any]:
    """Return the stats of every score server of the cluster."""
    import ray

    from es_service import errors
    from es_service.actors import launch
    from es_service.actors.calls import call

    prefix = launch.actor_name("x")[:-1]
    listed = ray.util.list_named_actors(all_namespaces=True)
    servers = [one["name"] for one in listed if one["namespace"] == launch.NAMESPACE and one["name"].startswith(prefix)]
    names = {name.removeprefix(prefix) for name in servers}
    found: dict[str, Any] = {}
    asked = {}
    for run in sorted(name for name in names if ":" not in name):
        try:
            asked[run] = launch.find(run).stats.options(concurrency_group=launch.READ_GROUP).remote()
        except errors.EsServiceError:  # it ended meanwhile
            continue
    give_up = time.monotonic() + _STATS_DEADLINE_S  # for all together: one that hangs must not hold up the others
    for run, reference in asked.items():
        try:
            found[run] = call(reference, max(0.1, give_up - time.monotonic()), "ask where the run stands")
        except errors.EsServiceError as error:
            found[run] = {"error": str(error)}
    return {"runs": found}


def _table(run: str, path: str) -> dict[str, Any]:
    """Write a copy of a run's table to a file."""
    import pyarrow as pa

    from es_service.actors import launch
    from es_service.actors.calls import call

    server = launch.find(run)
    reads = {"concurrency_group": launch.READ_GROUP}
    stats = call(server.stats.options(**reads).remote(), _STATS_DEADLINE_S, "ask where the run stands")
    table = call(server.snapshot.options(**reads).remote(), _TABLE_DEADLINE_S, "copy the table")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"rows": table.num_rows, "stats": stats}


if __name__ == "__main__":
    main()
