"""What a step of selection costs: in-process, and over Ray by the exchanges `sync` and `leased`.

    python -m benchmarks.selector [--json]

Kernel: checks, gather, both averages, draw, scatter, on ids in random order. Ray: an empty actor call, a sync step and
a leased step take turns, back to back and at the pace of a real training; what counts is their ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import es_service as es
from es_service.selection import observations
from es_service.selection.engine import Engine

SIZES = (10**6, 10**7)
BATCHES = (128, 1024, 8192)
RAY_BATCH, RAY_SAMPLES, RAY_STEPS = 1024, 1024 * 600, 500
PACED_STEPS, PACE_HZ = 120, 20
SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=0)


def main() -> int:
    """Run the benchmark and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-ray", action="store_true", help="in-process part only")
    options = parser.parse_args()
    figures: dict[str, Any] = {"kernel": [kernel(n, b) for n in SIZES for b in BATCHES]}
    if not options.no_ray:
        figures["ray"] = over_ray()
    print(json.dumps(figures) if options.json else readable(figures))
    return 0


def kernel(num_samples: int, batch_size: int, num_steps: int = 300) -> dict[str, Any]:
    """Median time of checks + step over distinct ids in random order, cold in the caches."""
    engine = Engine(SELECTION, num_samples)
    rng = np.random.default_rng(0)
    order = rng.permutation(num_samples)
    losses = rng.exponential(size=batch_size).astype(np.float32)
    num = SELECTION.num_selected(batch_size)
    taken = []
    for step in range(min(num_steps, num_samples // batch_size)):
        ids = order[step * batch_size : (step + 1) * batch_size].copy()
        begin = time.perf_counter()
        checked = observations.check_ids(ids, num_samples)
        seen = observations.check_signals(losses, batch_size, SELECTION.signals, non_negative=True)
        engine.step(checked, seen, num, step)
        taken.append(time.perf_counter() - begin)
    median_s = float(np.median(taken[len(taken) // 10 :]))
    return {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "us_per_step": 1e6 * median_s,
        "samples_per_s": batch_size / median_s,
        "bytes_per_sample": engine.table.nbytes / num_samples,
    }


def over_ray() -> dict[str, Any]:
    """p50 and p99 of an empty call, a sync and a leased step, and their ratios to the empty call."""
    import ray

    from es_service.actors import launch

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    shape = {"num_samples": RAY_SAMPLES, "num_epochs": 4, "batch_size": RAY_BATCH}
    with tempfile.TemporaryDirectory() as storage:
        steps = {
            kind: stepper(es.connect(f"benchmark-{kind}", SELECTION, **shape, exchange=kind, storage=storage))
            for kind in ("sync", "leased")
        }
        ping = launch.find("benchmark-sync").ping  # looked up once, as the exchange does with its methods
        actions: dict[str, Callable[[], float]] = {
            "empty": lambda: timed(lambda: ray.get(ping.remote())),
            "sync": lambda: next(steps["sync"]),
            "leased": lambda: next(steps["leased"]),
        }
        figures = {
            "batch_size": RAY_BATCH,
            "back_to_back": measure(actions, RAY_STEPS, None),
            f"paced_{PACE_HZ}_per_s": measure(actions, PACED_STEPS, 1.0 / PACE_HZ),
        }
        for kind in ("sync", "leased"):
            launch.stop(f"benchmark-{kind}")
    ray.shutdown()
    return figures


def stepper(selector: es.Selector) -> Iterator[float]:
    """Yield the seconds that each `select` takes, over as many epochs as it needs."""
    losses = np.random.default_rng(1).exponential(size=RAY_BATCH).astype(np.float32)
    for epoch in itertools.count():
        for ids in selector.epoch(epoch):
            yield timed(lambda ids=ids: selector.select(ids, losses))


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure(actions: dict[str, Callable[[], float]], num_steps: int, pause_s: float | None) -> dict[str, Any]:
    """Take turns by blocks of 20 steps, so that a noisy moment of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(num_steps // 20):
        for name, action in actions.items():
            for _ in range(20):
                if pause_s is not None:
                    time.sleep(pause_s)
                taken[name].append(action())
    figures: dict[str, Any] = {}
    for name, seconds in taken.items():
        p50, p99 = np.percentile(seconds[20:], [50, 99])
        figures[name] = {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99}
    for name in ("sync", "leased"):
        figures[f"{name}_to_empty"] = figures[name]["p50_ms"] / figures["empty"]["p50_ms"]
    return figures


def readable(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = ["in-process kernel (checks + step)", "      rows      B   µs/step   M samples/s   bytes/sample"]
    lines += [
        f"{one['num_samples']:>10,}  {one['batch_size']:>5}  {one['us_per_step']:8.0f}  "
        f"{one['samples_per_s'] / 1e6:12.1f}  {one['bytes_per_sample']:13.0f}"
        for one in figures["kernel"]
    ]
    for pace in [key for key in figures.get("ray", {}) if key != "batch_size"]:
        part = figures["ray"][pace]
        lines += [
            "",
            f"over Ray, B = {RAY_BATCH:,}, {pace.replace('_', ' ')}",
            "            p50 ms   p99 ms   to empty",
        ]
        for name in ("empty", "sync", "leased"):
            ratio = part.get(f"{name}_to_empty", 1.0)
            lines.append(f"  {name:8}  {part[name]['p50_ms']:6.3f}   {part[name]['p99_ms']:6.3f}   {ratio:8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
