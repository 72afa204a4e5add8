"""The times that the model starts from, measured here: server, planning, all-gather, Ray's part of a call.

Processor time where the work is computation, so that what else the machine does counts little.
"""

from __future__ import annotations

import dataclasses
import datetime
import multiprocessing
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import es_service as es
from benchmarks.exchange_model import Services, epoch_costs, report_bytes
from es_service.actors import wire
from es_service.actors.score_server import ScoreServer
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import plans
from es_service.selection.local_run import LocalRun
from es_service.selection.run import Caller, RunConfig, Share
from es_service.storage import runs

__all__ = ["BATCHES", "SELECTION", "check_planning", "measure", "readable"]

SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=0)
PRUNING = es.Selection(es.methods.evolved(), ratio=0.25, prune_ratio=0.2, anneal=(0, 0), max_age=None, seed=0)
BATCHES = (128, 1024, 4096)
GENERATION = "0a" * 16


def measure(call: dict[str, float], *, quick: bool = False) -> tuple[Services, dict[str, Any]]:
    """Return the services, and what they were made from; `call` is what `exchange_check` found one caller to cost."""
    rows = 200_000 if quick else 10_000_000
    work = {batch: messages(batch, 10**6, 60 if quick else 200) for batch in BATCHES}
    plan = planning(rows)
    gathers = all_gathers(20 if quick else 100, (2,) if quick else (2, 4))
    a, b, error = fit_gather(gathers)
    fits = {name: np.polyfit(BATCHES, [work[batch][name] for batch in BATCHES], 1)[::-1] for name in work[BATCHES[0]]}
    services = Services(
        call_s=max(0.0, call["server_s"] - work[1024]["observe_s"]),
        client_s=call["client_s"],
        idle_s=call["idle_s"],
        **{name: (max(0.0, float(fit[0])), float(fit[1])) for name, fit in fits.items()},
        **plan,
        gather_s=(a, b),
    )
    return services, {
        "work": {str(key): value for key, value in work.items()},
        "call": call,
        "gathers": gathers,
        "gather_fit_error": error,
    }


def messages(batch: int, num_samples: int, num: int) -> dict[str, float]:
    """Return the median processor seconds of a message of so many ids, at the server and on a replica."""
    config = RunConfig(selection=SELECTION, num_samples=num_samples, num_epochs=2, batch_size=batch)
    losses = {"loss": np.random.default_rng(1).exponential(size=batch).astype(np.float32)}
    taken: dict[str, list[float]] = {"observe_s": [], "report_s": [], "apply_s": []}
    num = min(num, num_samples // batch)
    with tempfile.TemporaryDirectory() as storage:
        server = ScoreServer(storage, "services", runs.config_to_dict(config))
        server.join(0, GENERATION, 1, runs.config_to_dict(config))
        share = server.open_epoch(0, GENERATION, 0)
        seq = server.enter(0, GENERATION)
    assert isinstance(share, Share), "one rank waits for nobody"
    replica = Embedded(LocalRun(config), Position(0, 1))
    replica.open_epoch(0)
    places = np.arange(SELECTION.num_selected(batch))
    for step in range(num):
        ids = share.ids[step * batch : (step + 1) * batch]
        name = "observe_s" if step % 2 else "report_s"
        report = wire.Report(Caller(0, GENERATION), seq + 1 + step, step, ids, losses, ids[places])
        message = wire.encode_report(report)
        begin = time.thread_time()
        (server.observe if step % 2 else server.report)(message)
        taken[name].append(time.thread_time() - begin)
        begin = time.thread_time()
        [one] = wire.decode_reports(message)
        replica.record(step, one.ids, one.seen, places)
        taken["apply_s"].append(time.thread_time() - begin)
    return {name: float(np.median(times[len(times) // 10 :])) for name, times in taken.items()}


def planning(num_samples: int) -> dict[str, float]:
    """Return processor seconds per row of a plan that prunes, at a shard and at the server, and the memory it takes."""
    config = RunConfig(selection=PRUNING, num_samples=num_samples, num_epochs=2, batch_size=1024)
    with tempfile.TemporaryDirectory() as storage:
        server = ScoreServer(storage, "planning", runs.config_to_dict(config))
        server.join(0, GENERATION, 8, runs.config_to_dict(config))
        plan_s = 0.0
        for _ in range(2):  # the first one touches memory that nobody touched before
            begin = time.thread_time()
            plan = server._shards.plan(0, (0,))  # what `open_epoch` asks of the shards
            plan_s = time.thread_time() - begin
        begin = time.thread_time()
        server.open_epoch(0, GENERATION, 0)
        whole_s = time.thread_time() - begin
        server.join(0, "0b" * 16, 8, runs.config_to_dict(config))
        tracemalloc.start()
        server.open_epoch(0, "0b" * 16, 0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    parts = [dataclasses.replace(plan, ids=plan.ids[shard::2].copy()) for shard in range(2)]
    tracemalloc.start()
    whole = plans.shuffle(plans.joined(parts).ids, seed=0, epoch=0)
    plans.split(whole, world_size=8, num_samples=num_samples, epoch=0)
    most_dealing = tracemalloc.get_traced_memory()[1] + sum(part.ids.nbytes for part in parts)
    tracemalloc.stop()
    return {
        "plan_row_s": plan_s / num_samples,
        "deal_row_s": max(0.0, whole_s - plan_s) / num_samples,
        "plan_row_bytes": most / num_samples,
        "deal_row_bytes": most_dealing / num_samples,
    }


def check_planning(services: Services, num_samples: int) -> dict[str, float]:
    """Return the seconds that planning so many rows takes with one shard, measured and by the model, and its error."""
    found = planning(num_samples)
    measured_s = num_samples * (found["plan_row_s"] + found["deal_row_s"])
    predicted_s = epoch_costs(services, num_samples, 1)["plan_s"]
    return {
        "samples": num_samples,
        "measured_s": measured_s,
        "predicted_s": predicted_s,
        "error": predicted_s / measured_s - 1.0,
    }


def all_gathers(num: int, worlds: tuple[int, ...]) -> list[dict[str, float]]:
    """Return the median seconds of gloo's all-gather, for some numbers of ranks on this machine and sizes."""
    context = multiprocessing.get_context("spawn")
    found: list[dict[str, float]] = []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder, context.Pool(world) as pool:
            args = [(rank, world, str(Path(folder) / "meeting"), num) for rank in range(world)]
            by_size = pool.starmap(_gather_rank, args)[0]
        found += [{"ranks": world, "bytes": size, "seconds": seconds} for size, seconds in by_size.items()]
    return found


def _gather_rank(rank: int, world: int, meeting: str, num: int) -> dict[int, float]:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timeout
    )
    medians = {}
    for size in (int(report_bytes(1024)), 64 * int(report_bytes(1024))):
        mine = torch.zeros(size, dtype=torch.uint8)
        theirs = [torch.empty_like(mine) for _ in range(world)]
        taken = []
        for _ in range(num):
            begin = time.perf_counter()
            distributed.all_gather(theirs, mine)
            taken.append(time.perf_counter() - begin)
        medians[size] = float(np.median(taken[len(taken) // 5 :]))
    distributed.destroy_process_group()
    return medians


def fit_gather(gathers: list[dict[str, float]]) -> tuple[float, float, float]:
    """Return a, b of (W - 1)·(a + b·bytes), least squares of relative errors, and the largest of those."""
    times = np.array([one["seconds"] for one in gathers])
    terms = np.array([[one["ranks"] - 1, (one["ranks"] - 1) * one["bytes"]] for one in gathers])
    a, b = np.maximum(np.linalg.lstsq(terms / times[:, None], np.ones(times.size), rcond=None)[0], 0.0)
    return float(a), float(b), float(np.abs(terms @ [a, b] / times - 1.0).max())


def readable(services: Services, made_from: dict[str, Any], planned: dict[str, float]) -> str:
    """Return the services as text."""
    lines = ["measured: processor time, µs of a message", "     B   observe    report   on a replica"]
    lines += [
        f"{int(batch):>6,}  {1e6 * one['observe_s']:8.0f}  {1e6 * one['report_s']:8.0f}   {1e6 * one['apply_s']:12.0f}"
        for batch, one in made_from["work"].items()
    ]
    a, b = services.gather_s
    lines += [
        f"Ray's part of a call: {1e3 * services.call_s:.2f} ms at the server, "
        f"{1e3 * services.client_s:.2f} ms at the caller",
        f"planning 10^6 rows: {1e6 * services.plan_row_s:.2f} s at the shards together, "
        f"{1e6 * services.deal_row_s:.2f} s at the server; {services.plan_row_bytes:.0f} bytes a row while it plans "
        f"with one shard, {services.deal_row_bytes:.0f} to deal out what many planned",
        f"  {planned['samples']:,} rows took {planned['measured_s']:.1f} s, {planned['predicted_s']:.1f} s predicted "
        f"({100 * planned['error']:+.0f} %)",
        f"all-gather: (W - 1)·({1e3 * a:.2f} ms + {1e9 * b:.2f} ms per MB), "
        f"off by {100 * made_from['gather_fit_error']:.0f} % at most",
    ]
    return "\n".join(lines)
