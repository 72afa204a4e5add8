"""What it costs that nothing is lost, each figure beside its target, all of them in one run.

    python -m benchmarks.durability [--json] [--rows 1e7] [--quick]

Journal at the server: observations a second that a plain shard applies and brings to disk, the last byte included;
beside it those of a shard whose journal goes nowhere. Journal at the rank: what a leased step's `select` takes beyond
an embedded one's (reporting, and keeping what is not durable yet), in turns, at 20 steps a second, as a share of such
a step. Snapshots: p99 of a sync step, at up to 50 a second, while a table of so many rows is written in the
background, beside the p99 when nothing is; and how long the end of an epoch waits. Recovery: from the SIGKILL of a
server with a table of so many rows, inside an epoch that has shown all of them, until it answers again, less what an
empty actor takes to come back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

import es_service as es
from benchmarks.figures import Figure, Progress, percentiles
from es_service.actors import launch, wire
from es_service.actors.calls import call_patiently
from es_service.actors.cluster import ensure_ray
from es_service.actors.score_server import ScoreServer
from es_service.selection.run import Caller, RunConfig, Share
from es_service.storage import runs
from es_service.storage.journal import Journal

__all__ = ["measure", "measure_recovery", "measure_server"]

GENERATION = "0e" * 16
BATCH = 1024
STEP_S = 0.05
SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=1)


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    """Let journals begun in the block number what they are given, and drop it."""
    append = Journal.append

    def drop(self: Journal, kind: str, payload: bytes) -> int:
        if kind != "reports":
            return append(self, kind, payload)
        self._last += 1
        self._durable = self._last if not self._kinds else self._durable
        return self._last

    Journal.append = drop  # type: ignore[method-assign]
    try:
        yield
    finally:
        Journal.append = append  # type: ignore[method-assign]


def _messages(num_rows: int, num_messages: int, first_seq: int) -> list[bytes]:
    """Messages of one report of 6 × 1,024 observations each, as a send_queue sends them."""
    rng = np.random.default_rng(2)
    messages = []
    for number in range(num_messages):
        parts = []
        for piece in range(6):
            ids = rng.choice(num_rows, BATCH, replace=False)
            losses = {"loss": rng.exponential(size=BATCH).astype(np.float32)}
            seq = first_seq + 6 * number + piece
            parts.append(wire.encode_report(wire.Report(Caller(0, GENERATION), seq, 0, ids, losses, ids[: BATCH // 4])))
        messages.append(b"".join(parts))
    return messages


def measure_server(folder: str, num_rows: int, num_messages: int, rounds: int = 4) -> dict[str, float]:
    """Observations a second that a plain shard applies, journaled (until they are durable) and not."""
    config = RunConfig(selection=SELECTION, num_samples=num_rows, num_epochs=10, batch_size=BATCH)
    server = ScoreServer(folder, "flood", runs.config_to_dict(config))
    server.join(0, GENERATION, 1, runs.config_to_dict(config))
    seq = server.enter(0, GENERATION)
    assert isinstance(server.open_epoch(0, GENERATION, 0), Share)
    seconds: dict[str, list[float]] = {"journaled": [], "not": []}
    for _ in range(rounds):
        for kind in seconds:
            messages = _messages(num_rows, num_messages, seq + 1)
            seq += 6 * num_messages
            with contextlib.nullcontext() if kind == "journaled" else _nowhere():
                begin = time.perf_counter()
                for message in messages:
                    server.report(message)
                if kind == "journaled":
                    server.settle(0, GENERATION, seq)
                seconds[kind].append(time.perf_counter() - begin)
    server.finish()
    num = 6 * BATCH * num_messages
    return {kind: num / float(np.median(taken)) for kind, taken in seconds.items()}


def measure_rank(folder: str, num_rows: int, num_steps: int) -> dict[str, float]:
    """Median seconds of a leased and of an embedded `select`, at 20 steps a second."""
    selector = es.connect(
        "paced", SELECTION, num_samples=num_rows, num_epochs=4, batch_size=BATCH, storage=folder, exchange="leased"
    )
    losses = np.random.default_rng(3).exponential(size=BATCH).astype(np.float32)
    alone = es.Selector(SELECTION, num_samples=num_rows, num_epochs=4, batch_size=BATCH)
    taken: dict[str, list[float]] = {"leased": [], "embedded": []}
    for step, (ids, same) in enumerate(zip(selector.epoch(0), alone.epoch(0), strict=True)):
        for kind, one, batch in (("leased", selector, ids), ("embedded", alone, same)):
            begin = time.perf_counter()
            one.select(batch, losses)
            taken[kind].append(time.perf_counter() - begin)
        time.sleep(STEP_S)
        if step == num_steps:
            break
    channel: Any = selector.exchange
    kept = channel._channels[0]._num_bytes
    selector.close()
    launch.stop("paced")
    return {**{kind: float(np.median(seconds)) for kind, seconds in taken.items()}, "kept_bytes": float(kept)}


class _Empty:
    def pid(self) -> int:
        return os.getpid()


def measure_recovery(folder: str, num_rows: int, num_steps: int) -> dict[str, float]:
    """Seconds from a SIGKILL to the first answer: of a server with a table, and of an actor with nothing."""
    remote: Any = ray.remote
    empty = remote(_Empty).options(max_restarts=-1, num_cpus=0).remote()
    selector = es.connect(
        "killed", SELECTION, num_samples=num_rows, num_epochs=3, batch_size=4096, storage=folder, exchange="leased"
    )
    losses = np.random.default_rng(4).exponential(size=4096).astype(np.float32)
    steps = selector.epoch(0)
    for _, ids in zip(range(num_steps), steps, strict=False):
        selector.select(ids, losses[: ids.size])
    inner: Any = selector.exchange
    for send_queue in inner._send_queues:
        send_queue.flush()
    inner._settle(0)
    server = launch.find("killed")
    seconds = {}
    for name, actor in (("empty", empty), ("server", server)):
        pid = call_patiently(actor.pid.remote, 60.0, "ask for its pid")
        os.kill(pid, signal.SIGKILL)
        begin = time.perf_counter()
        while call_patiently(actor.pid.remote, 120.0, "ask for its pid") == pid:
            pass
        if name == "server":
            call_patiently(server.stats.remote, 120.0, "ask how it is")
        seconds[name] = time.perf_counter() - begin
    selector.close()
    launch.stop("killed")
    ray.kill(empty)
    return seconds


def _batches(num_rows: int, ends: list[bool]) -> Iterator[dict[str, Any]]:
    """Yield batches of any ids until there is something in `ends`."""
    rng = np.random.default_rng(6)
    while not ends:
        yield {"id": rng.choice(num_rows, BATCH, replace=False, shuffle=False)}


def measure_snapshot(folder: str, num_rows: int, num_epochs: int, num_steps: int) -> dict[str, Any]:
    """Seconds of sync steps while a snapshot is written and at rest, of the ends of epochs, and of the writing."""
    selector = es.connect(
        "copied", SELECTION, num_samples=num_rows, num_epochs=num_epochs + 2, batch_size=BATCH, storage=folder,
        exchange="sync",
    )  # fmt: skip
    stored = launch.find("copied").stored_epochs.options(concurrency_group=launch.READ_GROUP)
    losses = np.random.default_rng(5).exponential(size=BATCH).astype(np.float32)
    taken: dict[str, list[float]] = {"at_rest": [], "writing": [], "end_of_epoch_s": [], "written_s": []}

    def step(ids: Any, kind: str) -> None:
        begin = time.perf_counter()
        selector.select(ids, losses)
        taken[kind].append(time.perf_counter() - begin)
        time.sleep(0.02)

    closed_at = 0.0
    for epoch in range(num_epochs + 1):
        ends: list[bool] = []
        steps = selector.stream(epoch, _batches(num_rows, ends))
        selector.select(next(steps)["id"], losses)  # which opens the epoch
        under_way = [stored.remote()] if epoch else []
        while under_way and not ray.wait(under_way, timeout=0)[0]:
            step(next(steps)["id"], "writing")
        if under_way:
            taken["written_s"].append(time.perf_counter() - closed_at)
            time.sleep(1.0)  # the history is made
        for _ in range(num_steps):
            step(next(steps)["id"], "at_rest")
        ends.append(True)
        closed_at = time.perf_counter()
        next(steps, None)
        taken["end_of_epoch_s"].append(time.perf_counter() - closed_at)
    selector.close()
    launch.stop("copied")
    return taken


def measure(num_rows: int, *, quick: bool = False) -> dict[str, Any]:
    """Measure everything; return plain values, figures among them."""
    ensure_ray()
    with tempfile.TemporaryDirectory() as folder:
        with Progress("journal at the server"):
            flood = measure_server(folder, min(num_rows, 10**6), 20 if quick else 200)
        with Progress("journal at the rank"):
            paced = measure_rank(folder, 40 * BATCH if quick else 400 * BATCH, 20 if quick else 200)
        with Progress("snapshots"):
            taken = measure_snapshot(folder, num_rows, 1 if quick else 4, 10 if quick else 200)
        with Progress("recovery"):
            recovery = measure_recovery(folder, num_rows, 20 if quick else num_rows // 4096)
    rest, writing = percentiles(taken["at_rest"]), percentiles(taken["writing"] or taken["at_rest"])
    snapshot = {
        "at_rest": rest,
        "while_writing": {**writing, "steps": len(taken["writing"])},
        "end_of_epoch_s": float(np.median(taken["end_of_epoch_s"])),
        "written_s": float(np.median(taken["written_s"])),
    }
    figures = [
        Figure("durable at the server", flood["journaled"] / 1e6, "M observations/s", 1.0, at_most=False),
        Figure("at the rank, of a step of 50 ms", 100 * (paced["leased"] - paced["embedded"]) / STEP_S, "%", 5.0),
        Figure(
            "p99 of a sync step while a snapshot is written",
            writing["p99_ms"] / rest["p99_ms"],
            "x",
            3.0,
            note=f"{num_rows:,} rows, to p99 at rest",
        ),
        Figure(
            "recovery beyond an empty actor",
            recovery["server"] - recovery["empty"],
            "s",
            5.0,
            note=f"{num_rows:,} rows",
        ),
    ]
    return {
        "server": flood,
        "rank": paced,
        "snapshot": snapshot,
        "recovery": recovery,
        "figures": [figure.to_dict() for figure in figures],
    }


def main() -> int:
    """Measure and say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rows", type=float, default=1e7, help="of the table that is recovered")
    parser.add_argument("--quick", action="store_true", help="small: structure, no figures")
    arguments = parser.parse_args()
    results = measure(10**5 if arguments.quick else int(arguments.rows), quick=arguments.quick)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return 0
    for figure in results["figures"]:
        mark = "reached" if figure["reached"] else "missed"
        print(f"{figure['name']:<47} {figure['value']:8.2f} {figure['unit']:<16} target {figure['target']:g}  {mark}")
    print(json.dumps({key: results[key] for key in ("server", "rank", "snapshot", "recovery")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
