"""What a step costs over Ray: each exchange against an empty actor call, taking turns on the same machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import ray

import es_service as es
from benchmarks.figures import Figure, percentiles, timed
from benchmarks.service_kernel import SELECTION
from es_service.actors import launch

__all__ = ["KINDS", "figures_of", "measure_calls", "steps_of"]

KINDS = ("sync", "leased", "prefetch")
BLOCK = 20  # steps before the next one takes its turn
PAUSE_S, FORWARD_S = 0.05, 0.02  # 20 steps a second, of which the forward pass is 20 ms
SETTLE_S = 0.05  # for what a block has left in the background
COUNTED_BATCH = 1024  # which the targets are for
NUM_EPOCHS = 10_000


def measure_calls(
    storage: str, batch_sizes: tuple[int, ...], num_samples: int, num_steps: int, paced_steps: int
) -> list[dict[str, Any]]:
    """p50 and p99 of an empty call and of a step by each exchange, back to back and paced, with ratios to the empty."""
    measured = []
    for batch_size in batch_sizes:
        runs = {kind: f"bench-{kind}-{batch_size}" for kind in KINDS}
        shape = {"num_samples": num_samples, "num_epochs": NUM_EPOCHS, "batch_size": batch_size}
        selectors = {
            kind: es.connect(run, SELECTION, **shape, exchange=kind, storage=storage) for kind, run in runs.items()
        }
        ping = launch.find(runs["sync"]).ping  # looked up once, as the exchanges do with their methods
        for pace, count, forward_s in (("back to back", num_steps, 0.0), ("paced", paced_steps, FORWARD_S)):
            pause_s = PAUSE_S - forward_s if forward_s else 0.0
            actions: dict[str, Callable[[], float]] = {"empty": partial(_after, forward_s, ping)}
            for kind, selector in selectors.items():
                selector.reset()
                actions[kind] = steps_of(selector, forward_s).__next__
            taken = _in_turns(actions, count, pause_s)
            empty = float(np.median(taken["empty"]))
            for kind, seconds in taken.items():
                ratio = float(np.median(seconds)) / empty
                measured.append(
                    {"batch_size": batch_size, "pace": pace, "kind": kind, **percentiles(seconds), "to_empty": ratio}
                )
        for kind, selector in selectors.items():
            selector.close()
            launch.stop(runs[kind])
    return measured


def _after(forward_s: float, ping: Any) -> float:
    time.sleep(forward_s)
    return timed(lambda: ray.get(ping.remote()))


def steps_of(selector: es.Selector, forward_s: float = 0.0, pause_s: float = 0.0) -> Iterator[float]:
    """Yield the seconds that selection takes of each step: the loop's asking for ids, and `select`.

    Between them stands the forward pass, which is not counted; nor is the first step of an epoch, which opens it.
    """
    losses = np.random.default_rng(1).exponential(size=selector.config.batch_size).astype(np.float32)
    for epoch in itertools.count():
        batches = selector.epoch(epoch)
        selector.select(next(batches), losses)
        while True:
            time.sleep(pause_s)
            begin = time.perf_counter()
            ids = next(batches, None)
            if ids is None:
                break
            asked_s = time.perf_counter() - begin
            time.sleep(forward_s)
            yield asked_s + timed(lambda ids=ids: selector.select(ids, losses))


def _in_turns(actions: dict[str, Callable[[], float]], num_steps: int, pause_s: float) -> dict[str, list[float]]:
    """Take turns by blocks, so that a noisy moment of the machine hits all alike; the first block warms up."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    block = min(BLOCK, num_steps)
    for turn in range(1 + num_steps // block):
        for name, action in actions.items():
            time.sleep(SETTLE_S)
            for _ in range(block):
                if pause_s:
                    time.sleep(pause_s)
                seconds = action()
                if turn:
                    taken[name].append(seconds)
    return taken


def figures_of(calls: list[dict[str, Any]]) -> list[Figure]:
    """Return what the calls say of their targets, at the B that these are for, or the largest there is."""
    sizes = {one["batch_size"] for one in calls}
    size = COUNTED_BATCH if COUNTED_BATCH in sizes else max(sizes)
    ratios = {(one["kind"], one["pace"]): one["to_empty"] for one in calls if one["batch_size"] == size}
    return [
        Figure(f"{kind} step to an empty call, {pace}", ratios[kind, pace], "x", target, note=f"B = {size:,}")
        for kind, pace, target in (
            ("sync", "back to back", 1.4),
            ("sync", "paced", 1.4),
            ("leased", "paced", 0.2),
            ("prefetch", "paced", 0.5),
        )
    ]
