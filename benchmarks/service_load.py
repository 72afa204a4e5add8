"""The score server under load: many clients, one that floods it, readers of a large table, memory over time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

import es_service as es
from benchmarks.figures import percentiles
from benchmarks.service_kernel import SELECTION
from benchmarks.service_ray import NUM_EPOCHS, steps_of
from es_service.actors import launch
from es_service.actors.calls import call

__all__ = ["concurrent_clients", "flood", "memory_growth", "reading_beside_training"]


class Client:
    """A rank of a group, in a process of its own."""

    def __init__(self, run: str, storage: str, rank: int, world_size: int, num_samples: int, batch_size: int) -> None:
        self._selector = es.connect(
            run,
            SELECTION,
            num_samples=num_samples,
            num_epochs=NUM_EPOCHS,
            batch_size=batch_size,
            exchange="sync",
            storage=storage,
            rank=rank,
            world_size=world_size,
            generation="benchmark",
        )
        self._losses = np.random.default_rng(rank).exponential(size=batch_size).astype(np.float32)

    def run_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Make an epoch's steps; return when the first began, when the last ended, and how many samples they saw."""
        begin, num = None, 0
        end = 0.0
        for ids in self._selector.epoch(epoch):
            begin = begin or time.time()
            self._selector.select(ids, self._losses)
            num += ids.size
            end = time.time()
        return begin or end, end, num

    def read(self, seconds: float, every_s: float) -> list[float]:
        """Take the table again and again; return how long each took."""
        taken = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begin = time.monotonic()
            self._selector.table()
            taken.append(time.monotonic() - begin)
            time.sleep(max(0.0, every_s - taken[-1]))
        return taken


def concurrent_clients(storage: str, batch_size: int, num_steps: int, num_clients: int = 4) -> dict[str, Any]:
    """Samples per second that so many processes get through one server in `sync`, all of them together."""
    run = "bench-clients"
    num_samples = num_clients * batch_size * num_steps
    actor = ray.remote(num_cpus=0)(Client)
    clients = [actor.remote(run, storage, rank, num_clients, num_samples, batch_size) for rank in range(num_clients)]
    try:
        rates = []
        for epoch in range(3):  # the first warms up
            spans = ray.get([client.run_epoch.remote(epoch) for client in clients])
            elapsed = max(end for _, end, _ in spans) - min(begin for begin, _, _ in spans)
            rates.append(sum(num for *_, num in spans) / elapsed)
    finally:
        for client in clients:
            ray.kill(client)
        launch.stop(run)
    return {"num_clients": num_clients, "batch_size": batch_size, "samples_per_s": max(rates[1:]), "epochs": rates[1:]}


def flood(storage: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Samples per second of one leased client that trains nothing, until the server has everything it reported.

    Every epoch begins when the server has written what the one before left: a training's epochs are longer than that.
    """
    run, num_samples = "bench-flood", batch_size * num_steps
    shape = {"num_samples": num_samples, "num_epochs": NUM_EPOCHS, "batch_size": batch_size}
    selector = es.connect(run, SELECTION, **shape, exchange="leased", storage=storage)
    losses = np.random.default_rng(3).exponential(size=batch_size).astype(np.float32)
    epochs = []
    for epoch in range(3):
        batches = selector.epoch(epoch)
        ids = next(batches)  # what opening the epoch costs is another matter
        begin = time.perf_counter()
        while ids is not None:
            selector.select(ids, losses)
            last_selected = time.perf_counter()
            ids = next(batches, None)
        epochs.append({"stepping_s": last_selected - begin, "closing_s": time.perf_counter() - last_selected})
        call(launch.find(run).stored_epochs.remote(), 60.0, "wait for the snapshot")
    selector.close()
    launch.stop(run)
    best = min(epochs[1:], key=lambda one: one["stepping_s"] + one["closing_s"])
    return {"batch_size": batch_size, "samples_per_s": num_samples / sum(best.values()), **best}


def reading_beside_training(
    storage: str, rows: int, batch_size: int, num_steps: int, pause_s: float, every_s: float
) -> dict[str, Any]:
    """p99 of sync steps while another process takes the whole table now and again, against their p99 at rest."""
    run = "bench-reading"
    shape = {"num_samples": rows, "num_epochs": NUM_EPOCHS, "batch_size": batch_size}
    selector = es.connect(run, SELECTION, **shape, exchange="sync", storage=storage)
    reader = ray.remote(num_cpus=0)(Client).remote(run, storage, 0, 1, rows, batch_size)
    steps = steps_of(selector, pause_s=pause_s)
    for _ in range(20):
        next(steps)
    at_rest = [next(steps) for _ in range(num_steps)]
    ray.get(reader.read.remote(0.0, 0.0))
    first_read = ray.get(reader.read.remote(0.01, 0.0))
    under_way = reader.read.remote(num_steps * pause_s, every_s)
    beside = [next(steps) for _ in range(num_steps)]
    reads = ray.get(under_way)
    selector.close()
    ray.kill(reader)
    launch.stop(run)
    rest, busy = percentiles(at_rest), percentiles(beside)
    return {
        "rows": rows,
        "batch_size": batch_size,
        "at_rest": rest,
        "while_reading": busy,
        "p99_ratio": busy["p99_ms"] / rest["p99_ms"],
        "read_alone_s": first_read[0],
        "reads": len(reads),
        "read_s": float(np.median(reads)),
    }


def memory_growth(storage: str, num_clients: int, batch_size: int, num_steps: int, num_epochs: int) -> dict[str, Any]:
    """Resident memory of the server after each epoch in which so many leased clients report."""
    run = "bench-memory"
    shape = {"num_samples": num_clients * batch_size * num_steps, "num_epochs": NUM_EPOCHS, "batch_size": batch_size}
    group = {"world_size": num_clients, "generation": "benchmark"}
    selectors = [
        es.connect(run, SELECTION, **shape, **group, rank=rank, exchange="leased", storage=storage)
        for rank in range(num_clients)
    ]
    losses = np.random.default_rng(4).exponential(size=batch_size).astype(np.float32)
    server = launch.find(run)
    pid = ray.get(server.pid.remote())
    megabytes = []
    for epoch in range(num_epochs):
        under_way = [selector.epoch(epoch) for selector in selectors]
        for _ in range(num_steps):
            for selector, batches in zip(selectors, under_way, strict=True):
                selector.select(next(batches), losses)
        closing = [threading.Thread(target=next, args=(batches, None)) for batches in under_way]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        megabytes.append(resident_megabytes(pid))
    counts = ray.get(server.counts.remote())
    for selector in selectors:
        selector.close()
    launch.stop(run)
    settled = megabytes[len(megabytes) // 3 :]  # caches and allocators fill up first
    return {
        "num_clients": num_clients,
        "num_reports": counts["num_reports"],
        "num_observed": counts["num_observed"],
        "resident_mb": megabytes,
        "growth_mb": settled[-1] - settled[0],
        "growth": settled[-1] / settled[0] - 1.0,
    }


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process on this machine."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kilobytes) / 1024
