"""How far the model can be trusted: clients of `sync` on a real score server, against what it says from one client.

One client alone gives the times of a call; a simulation of the queue and of this machine's cores then predicts what
2, 4 and 8 clients see, paced as a training (a step about every 50 ms) and back to back.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import es_service as es
from benchmarks.exchange_services import SELECTION

__all__ = ["closed", "compare", "measure_clients", "one_call", "readable"]

BATCH = 1024
THINK_S = (0.04, 0.06)  # uniform between


def closed(
    num_clients: int,
    think: Callable[[np.random.Generator], float],
    client_s: float,
    server_s: float,
    rest_s: float,
    cores: int | None,
    num_steps: int = 300,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate clients that think, call and wait: p50 and p99 of a call, and calls per second of all.

    A call takes `client_s` of processor time, then `server_s` at the server, one call at a time, and `rest_s` when
    nobody computes. `cores` are shared by all, first come first served; None: everybody has one.
    """
    rng = np.random.default_rng(seed)
    free = cores if cores is not None else 2 * num_clients + 2
    ready: collections.deque[tuple[int, str]] = collections.deque()  # wait for a core
    queue: collections.deque[int] = collections.deque()  # wait for the server
    serving = False
    events: list[tuple[float, int, int, str]] = []
    begun, taken = [0.0] * num_clients, []
    count, now = 0, 0.0

    def after(seconds: float, client: int, what: str) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (now + seconds, count, client, what))

    for client in range(num_clients):
        after(think(rng), client, "call")
    while len(taken) < num_steps * num_clients:
        now, _, client, what = heapq.heappop(events)
        if what == "call":
            begun[client] = now
            ready.append((client, "sent"))
        elif what == "sent":
            free += 1
            after(rest_s, client, "arrived")
        elif what == "arrived":
            queue.append(client)
        elif what == "served":
            free += 1
            serving = False
            taken.append(now - begun[client])
            after(think(rng), client, "call")
        if queue and not serving:
            serving = True
            ready.append((queue.popleft(), "served"))
        while ready and free:
            free -= 1
            client, what = ready.popleft()
            after(client_s if what == "sent" else server_s, client, what)
    steady = taken[len(taken) // 5 :]
    return {**percentiles(steady), "calls_per_s": len(taken) / now}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 in ms."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


def processor_seconds(pid: int) -> dict[str, float]:
    """Return the processor time of each thread of a process, by its id."""
    taken = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended while we looked
            taken[task.name] = 1e-9 * int((task / "schedstat").read_text().split()[0])
    return taken


class Client:
    """A worker that only selects; an actor."""

    def run(
        self, run: str, rank: int, world_size: int, num_steps: int, paced: bool, storage: str, pid: int
    ) -> dict[str, Any]:
        """Make the steps of an epoch; return the seconds of each call, and what a call took of processors.

        `pid` is the server's: what it computes for opening and closing the epoch does not count.
        """
        selector = es.connect(
            run,
            SELECTION,
            num_samples=BATCH * num_steps * world_size,
            num_epochs=1,
            batch_size=BATCH,
            exchange="sync",
            storage=storage,
            rank=rank,
            world_size=world_size,
            generation=run,
        )
        rng = np.random.default_rng(rank)
        losses = rng.exponential(size=BATCH).astype(np.float32)
        taken: list[float] = []
        used_s = 0.0
        began, server_before = time.perf_counter(), processor_seconds(pid)
        for ids in selector.epoch(0):
            if not taken:
                began, server_before = time.perf_counter(), processor_seconds(pid)
            if paced:
                time.sleep(rng.uniform(*THINK_S))
            used, begin = time.process_time(), time.perf_counter()
            selector.select(ids, losses)
            taken.append(time.perf_counter() - begin)
            used_s += time.process_time() - used
            if len(taken) == num_steps:
                elapsed_s, server_after = time.perf_counter() - began, processor_seconds(pid)
        return {
            "seconds": taken,
            "elapsed_s": elapsed_s,
            "client_s": used_s / num_steps,
            "server_s": [seconds - server_before.get(thread, 0.0) for thread, seconds in server_after.items()],
        }


def measure_clients(numbers: Sequence[int], steps: dict[str, int]) -> list[dict[str, Any]]:
    """Return p50 and p99 of a call, calls per second and processor time per call, for these numbers of clients."""
    import ray

    from es_service.actors import launch
    from es_service.actors.cluster import ensure_ray
    from es_service.selection.run import RunConfig

    ensure_ray()
    remote: Any = ray.remote
    clients = [remote(Client).options(num_cpus=0).remote() for _ in range(max(numbers))]
    found = []
    with tempfile.TemporaryDirectory() as storage:
        for pace, num_steps in steps.items():
            for num in numbers:
                run = f"clients-{pace}-{num}"
                config = RunConfig(
                    selection=SELECTION, num_samples=BATCH * num_steps * num, num_epochs=1, batch_size=BATCH
                )
                server = launch.start(run, config, storage)[0]
                pid = ray.get(server.pid.remote())
                asked = [
                    one.run.remote(run, rank, num, num_steps, pace == "paced", storage, pid)
                    for rank, one in enumerate(clients[:num])
                ]
                answers = ray.get(asked)
                threads_s = answers[0]["server_s"]
                launch.stop(run)
                seconds = [s for answer in answers for s in answer["seconds"][num_steps // 5 :]]
                found.append(
                    {
                        "pace": pace,
                        "clients": num,
                        **percentiles(seconds),
                        "calls_per_s": sum(num_steps / answer["elapsed_s"] for answer in answers),
                        "server_s": sum(threads_s) / (num * num_steps),
                        "server_thread_s": max(threads_s) / (num * num_steps),
                        "client_s": sum(answer["client_s"] for answer in answers) / num,
                    }
                )
    for one in clients:
        ray.kill(one)
    return found


def one_call(measured: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of a call from one client alone.

    Processor time of the server's busiest thread and of the caller, back to back; and what a call takes beside these,
    paced where that was measured: then processes have to wake up first.
    """
    alone = {one["pace"]: one for one in measured if one["clients"] == 1}
    busy = alone["back_to_back"]
    server_s, client_s = busy["server_thread_s"], busy["client_s"]
    p50_s = 1e-3 * alone.get("paced", busy)["p50_ms"]
    return {"server_s": server_s, "client_s": client_s, "idle_s": max(0.0, p50_s - server_s - client_s)}


def compare(measured: list[dict[str, Any]], cores: int | None) -> list[dict[str, Any]]:
    """Return what each number of clients saw, what the simulation says from one client alone, and how far it is off."""
    rows = []
    for pace in dict.fromkeys(one["pace"] for one in measured):
        alone = next(one for one in measured if one["pace"] == pace and one["clients"] == 1)
        server_s = alone["server_thread_s"]
        client_s = alone["client_s"] + alone["server_s"] - server_s  # with the server's other threads
        rest_s = max(0.0, 1e-3 * alone["p50_ms"] - server_s - client_s)
        for one in measured:
            if one["pace"] != pace or one["clients"] == 1:
                continue
            said = closed(
                one["clients"],
                (lambda rng: rng.uniform(*THINK_S)) if pace == "paced" else (lambda _: 0.0),
                client_s,
                server_s,
                rest_s,
                cores,
            )
            rows.append(
                {
                    "pace": pace,
                    "clients": one["clients"],
                    **{f"measured_{key}": one[key] for key in said},
                    **{f"predicted_{key}": value for key, value in said.items()},
                    **{f"error_{key}": value / one[key] - 1.0 for key, value in said.items()},
                }
            )
    return rows


def readable(rows: list[dict[str, Any]]) -> str:
    """Return the comparison as text."""
    lines = [
        f"sync clients on one server, B = {BATCH:,}: measured, and predicted from one client",
        "pace          clients    p50 ms  predicted  error     p99 ms  predicted    calls/s  predicted  error",
    ]
    lines += [
        f"{row['pace'].replace('_', ' '):12}  {row['clients']:>7}  {row['measured_p50_ms']:8.2f}   "
        f"{row['predicted_p50_ms']:8.2f}  {100 * row['error_p50_ms']:+4.0f} %   {row['measured_p99_ms']:8.2f}   "
        f"{row['predicted_p99_ms']:8.2f}   {row['measured_calls_per_s']:8.0f}   {row['predicted_calls_per_s']:8.0f}  "
        f"{100 * row['error_calls_per_s']:+4.0f} %"
        for row in rows
    ]
    return "\n".join(lines)
