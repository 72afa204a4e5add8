"""What the exchanges should cost with more workers, shards and samples than fit this machine: a model, no measurement.

Everything follows from `Services`, times measured on one machine. A shard is a server with one queue, first come first
served. Workers make a step every `1/rate` seconds, either independently of each other (M/D/1), or in lockstep, as data-
parallel training does: all of them ask at about the same time, and a step lasts until the last one has its answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Services", "capacity", "collective", "epoch_costs", "grid", "leased", "lindley", "lockstep"]
__all__ += ["md1_mean_wait", "md1_p99_wait", "readable", "sync"]

F64 = NDArray[np.float64]

ROW_BYTES = 32  # of the table
_MESSAGE_BYTES = 96 << 10  # fullest message of `leased`
_LINGER_S = 0.1  # what a smaller one waits for company
_SEND_QUEUE_BYTES = 64 << 20
_JITTER = 0.05  # standard deviation of a forward pass as a share of the step: assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """Measured times; see `exchange_services`.

    Attributes:
        call_s: a shard's processor time for taking in and answering a call, without the work itself.
        observe_s, report_s: (fixed, per id) processor time of that work.
        apply_s: (fixed, per id) of a replica's for an observation of another rank.
        client_s: processor time of the caller for one call.
        idle_s: what a call takes beside the processor times: the way there and back, processes that wake up.
        plan_row_s: of a shard, for a row of the table when an epoch is planned.
        deal_row_s: of the score server alone, for a row: joining, shuffling and dealing out what the shards planned.
        plan_row_bytes, deal_row_bytes: most memory beside the table, of a row, for planning with one shard; and for
            dealing out alone.
        gather_s: (a, b) of an all-gather among W ranks: (W - 1)·(a + b·bytes), as in a ring.
    """

    call_s: float
    observe_s: tuple[float, float]
    report_s: tuple[float, float]
    apply_s: tuple[float, float]
    client_s: float
    idle_s: float
    plan_row_s: float
    deal_row_s: float
    plan_row_bytes: float
    deal_row_bytes: float
    gather_s: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` makes an equal one."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Services:
        """Make one from `to_dict`'s values."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def md1_mean_wait(rate: float, service_s: float) -> float:
    """Return the mean time in the queue of M/D/1, ρ·s/(2·(1-ρ)); infinite where ρ >= 1."""
    busy = rate * service_s
    return busy * service_s / (2.0 * (1.0 - busy)) if busy < 1.0 else np.inf


def md1_p99_wait(rate: float, service_s: float, num: int = 200_000, seed: int = 0) -> float:
    """Return the 99th percentile of the same, from a simulation; infinite where ρ >= 1."""
    if rate * service_s >= 1.0:
        return np.inf
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, num))
    return float(np.percentile(lindley(arrivals, service_s)[num // 10 :], 99))


def lindley(arrivals: F64, service_s: float) -> F64:
    """Return how long each of these arrivals, ascending along the last axis, waits before it is served."""
    served_before = service_s * np.arange(arrivals.shape[-1])
    starts = np.maximum.accumulate(arrivals - served_before, axis=-1) + served_before
    return np.maximum(starts - arrivals, 0.0)  # no rounding below 0


def lockstep(
    num_workers: int, service_s: float, step_s: float, num_steps: int = 400, seed: int = 0
) -> dict[str, float]:
    """Return mean and p99 over steps of what the slowest worker waits for its answer, its service included."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.normal(0.0, _JITTER * step_s, (num_steps, num_workers)), axis=1)
    answered = arrivals + lindley(arrivals, service_s) + service_s
    longer = answered.max(axis=1) - arrivals.max(axis=1)  # than if nobody had to ask
    return {"mean_s": float(longer.mean()), "p99_s": float(np.percentile(longer, 99))}


def line(fit: tuple[float, float], num_ids: float) -> float:
    """Return the time of so many ids by a fit (fixed, per id)."""
    return fit[0] + fit[1] * num_ids


def report_bytes(num_ids: float, share_selected: float = 0.25) -> float:
    """Return the bytes of a report: header, id and loss of each, id of each that was drawn."""
    return 44 + 12 * num_ids + 8 * share_selected * num_ids


def sync(services: Services, workers: int, shards: int, batch: int, rate: float) -> dict[str, float]:
    """Return what `sync` costs: every worker calls every shard at every step."""
    ids = batch / shards
    service_s = services.call_s + line(services.observe_s, ids)
    calls = workers * rate
    step = lockstep(workers, service_s, 1.0 / rate)
    sending_s = services.client_s * shards + services.idle_s  # calls follow each other on the worker's own processor
    return {
        "utilisation": calls * service_s,
        "wait_mean_ms": 1e3 * md1_mean_wait(calls, service_s),
        "wait_p99_ms": 1e3 * md1_p99_wait(calls, service_s),
        "step_mean_ms": 1e3 * (step["mean_s"] + sending_s),
        "step_p99_ms": 1e3 * (step["p99_s"] + sending_s),
        "shard_bytes_per_s": calls * (report_bytes(ids) + 4 * ids),
    }


def leased(services: Services, workers: int, shards: int, batch: int, rate: float) -> dict[str, float]:
    """Return what `leased` asks of the shards; a worker's step waits for none of it unless its send_queue is full.

    A worker sends a message every 0.1 s, or when one is full; a shard that is late gets fuller ones, and fewer.
    """
    ids = batch / shards
    size = report_bytes(ids)
    fullest = max(1.0, _MESSAGE_BYTES // size)  # reports in a message
    usual = min(fullest, max(1.0, rate * _LINGER_S))
    work_s = line(services.report_s, ids)
    utilisation, at_least = (workers * rate * (work_s + services.call_s / num) for num in (usual, fullest))
    falls_behind = max(0.0, 1.0 - 1.0 / at_least) * rate * size if at_least else 0.0  # bytes/s of each worker
    return {
        "utilisation": utilisation,
        "utilisation_full_messages": at_least,
        "keeps_up": float(at_least < 1.0),
        "caller_utilisation": shards * services.client_s * rate / usual,
        "send_queue_bytes_per_s": falls_behind,
        "send_queue_full_after_s": _SEND_QUEUE_BYTES / falls_behind if falls_behind else np.inf,
        "step_mean_ms": 1e3 * max(0.0, at_least - 1.0) / rate,  # once send_queues are full
        "shard_bytes_per_s": workers * rate * size,
    }


def collective(services: Services, workers: int, every: int, batch: int) -> dict[str, float]:
    """Return what `collective` costs each rank, per step: its share of an all-gather, and everybody's observations."""
    a, b = services.gather_s
    gather_s = (workers - 1) * (a + b * every * report_bytes(batch)) / every
    apply_s = (workers if workers > 1 else 0) * line(services.apply_s, batch)
    return {"gather_ms": 1e3 * gather_s, "apply_ms": 1e3 * apply_s, "step_mean_ms": 1e3 * (gather_s + apply_s)}


def epoch_costs(services: Services, num_samples: int, shards: int) -> dict[str, float]:
    """Return memory, and seconds to plan an epoch, for a table of so many rows."""
    planning = services.plan_row_bytes - services.deal_row_bytes
    return {
        "shard_table_bytes": ROW_BYTES * num_samples / shards,
        "server_planning_bytes": (services.deal_row_bytes + planning / shards) * num_samples,
        "plan_s": services.plan_row_s * num_samples / shards + services.deal_row_s * num_samples,
        "plan_server_s": services.deal_row_s * num_samples,
    }


def grid(
    services: Services, rate: float = 20.0, batches: tuple[int, ...] = (1024, 4096)
) -> dict[str, list[dict[str, Any]]]:
    """Return the model's figures for 1 to 512 workers, 1 to 16 shards and 10^6 to 10^9 samples."""
    workers, shards = [2**i for i in range(10)], [2**i for i in range(5)]
    served = [
        {
            "workers": w,
            "shards": s,
            "batch": b,
            "sync": _plain(sync(services, w, s, b, rate)),
            "leased": _plain(leased(services, w, s, b, rate)),
        }
        for b in batches
        for s in shards
        for w in workers
    ]
    gathered = [
        {"workers": w, "every": k, "batch": b, **collective(services, w, k, b)}
        for b in batches
        for k in (1, 8, 64)
        for w in workers
    ]
    epochs = [
        {"samples": n, "shards": s, **epoch_costs(services, n, s)} for n in (10**6, 10**7, 10**8, 10**9) for s in shards
    ]
    return {"served": served, "collective": gathered, "epochs": epochs}


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """Return values that JSON can say: None for what has no end."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def capacity(model: dict[str, list[dict[str, Any]]], name: str, shards: int, batch: int) -> float:
    """Return how many workers take all the time of a shard; `leased` with full messages."""
    one = next(one for one in model["served"] if (one["shards"], one["batch"]) == (shards, batch))
    return float(one["workers"] / one[name].get("utilisation_full_messages", one[name]["utilisation"]))


def readable(model: dict[str, list[dict[str, Any]]], rate: float, batch: int = 1024) -> str:
    """Return some of the model's figures as text."""
    served = {(one["workers"], one["shards"]): one for one in model["served"] if one["batch"] == batch}
    gathered = {(one["workers"], one["every"]): one for one in model["collective"] if one["batch"] == batch}
    lines = [
        f"model, B = {batch:,}, {rate:g} steps/s a worker: "
        "ms that a step in lockstep takes longer (utilisation of a shard)",
        "workers    sync, S=1        S=4       S=16     leased, S=1        S=4       S=16   collective k=1   k=64",
    ]
    for workers in (1, 4, 16, 64, 256, 512):
        cells = [f"{workers:>7}"]
        for name in ("sync", "leased"):
            for shards in (1, 4, 16):
                one = served[workers, shards][name]
                cells.append(
                    f"{one['step_mean_ms']:6.0f} ({one.get('utilisation_full_messages', one['utilisation']):4.2f})"
                )
        cells += [f"{gathered[workers, every]['step_mean_ms']:8.1f}" for every in (1, 64)]
        lines.append("  ".join(cells))
    lines += ["", "workers at which a shard has no time left, by S = 1, 4, 16"]
    for size in sorted({one["batch"] for one in model["served"]}):
        cells = [f"  B = {size:>5,}"]
        for name in ("sync", "leased"):
            cells.append(f"{name} " + ", ".join(f"{capacity(model, name, shards, size):,.0f}" for shards in (1, 4, 16)))
        lines.append("   ".join(cells))
    lines += ["", "     samples   shards   table MB a shard   planning MB at the server   s to plan"]
    lines += [
        f"{one['samples']:>12,}  {one['shards']:>7}  {one['shard_table_bytes'] / 1e6:17,.0f}  "
        f"{one['server_planning_bytes'] / 1e6:26,.0f}  {one['plan_s']:10.1f}"
        for one in model["epochs"]
        if one["shards"] in (1, 16)
    ]
    return "\n".join(lines)
