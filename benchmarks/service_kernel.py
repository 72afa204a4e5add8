"""What the arithmetic costs in one process: a step against bare numpy, a draw from many, the plan of an epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import es_service as es
from benchmarks.figures import Figure, percentiles, timed
from es_service.selection import draws, observations, plans, reductions
from es_service.selection.engine import Engine

__all__ = ["figures_of", "large_draw", "measure_kernel", "plan_epoch"]

SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=0)
PRUNING = es.Selection(es.methods.evolved(), ratio=0.25, prune_ratio=0.2, anneal=(0, 0), seed=0)
FASTEST_BATCH = 8192
ROW_BYTES = 32


def measure_kernel(
    rows: int, batch_sizes: tuple[int, ...], num_steps: int, paced_steps: int, pause_s: float
) -> list[dict[str, Any]]:
    """Time checks + step, and numpy moving the same bytes, taking turns on ids in random order, cold in the caches.

    Args:
        rows: n.
        batch_sizes: B, one after the other.
        num_steps: of each, back to back.
        paced_steps: of each, with a pause before every one; 0 for none.
        pause_s: how long.
    """
    if (missing := 2.5 * rows * ROW_BYTES - available_bytes()) > 0:
        return [{"rows": rows, "skipped": f"{missing / 2**30:.1f} GiB of memory are missing"}]
    engine = Engine(SELECTION, rows)
    bare = np.zeros(rows, dtype=np.dtype((np.void, ROW_BYTES)))
    bare.view(np.uint8).fill(1)  # else all pages are the same one
    measured = []
    for batch_size in batch_sizes:
        for pace, count, pause in (("back to back", num_steps, 0.0), ("paced", paced_steps, pause_s)):
            if count:
                kernel, move = _in_turns(engine, bare, batch_size, count, pause)
                measured.append(
                    {
                        "rows": rows,
                        "batch_size": batch_size,
                        "pace": pace,
                        "kernel": percentiles(kernel),
                        "bare": percentiles(move),
                        "to_bare": float(np.median(kernel) / np.median(move)),
                        "samples_per_s": batch_size / float(np.median(kernel)),
                        "bytes_per_sample": engine.table.nbytes / rows,
                    }
                )
    return measured


def _in_turns(
    engine: Engine, bare: NDArray[np.void], batch_size: int, num_steps: int, pause_s: float
) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=batch_size).astype(np.float32)
    num = SELECTION.num_selected(batch_size)

    def step(ids: NDArray[np.int64], run_step: int) -> None:
        checked = observations.check_ids(ids, bare.size)
        seen = observations.check_signals(losses, batch_size, SELECTION.signals, non_negative=True)
        engine.step(checked, seen, num, run_step)

    def move(ids: NDArray[np.int64]) -> None:
        bare[ids] = bare.take(ids)

    kernel, moves = [], []
    for run_step in range(num_steps + num_steps // 10 + 1):
        ids = _distinct_ids(rng, bare.size, batch_size)
        time.sleep(pause_s)
        kernel.append(timed(lambda ids=ids, run_step=run_step: step(ids, run_step)))
        ids = _distinct_ids(rng, bare.size, batch_size)
        time.sleep(pause_s)
        moves.append(timed(lambda ids=ids: move(ids)))
    return kernel[-num_steps:], moves[-num_steps:]


def _distinct_ids(rng: np.random.Generator, rows: int, num: int) -> NDArray[np.int64]:
    """Return distinct ids in random order, without a permutation of all."""
    if rows < 4 * num:
        return rng.permutation(rows)[:num]
    return rng.permutation(np.unique(rng.integers(rows, size=2 * num)))[:num]


def available_bytes() -> float:
    """Return the memory that a new process could have, as the kernel guesses it; infinite where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(kilobytes)


def large_draw(num: int, size: int, repeats: int) -> float:
    """Median seconds of one race that takes `num` of `size`."""
    rng = np.random.default_rng(1)
    weights = rng.exponential(size=size).astype(np.float32)
    taken = []
    for _ in range(repeats):
        uniforms = rng.random(size)
        taken.append(timed(lambda uniforms=uniforms: draws.race(weights, num, uniforms)))
    return float(np.median(taken))


def plan_epoch(rows: int, world_size: int = 4) -> float:
    """Seconds to prune a fifth of a table that was observed, shuffle the rest and deal it out to the ranks."""
    engine = Engine(PRUNING, rows)
    records = engine.copy_records()
    rng = np.random.default_rng(2)
    records["w"] = records["s"] = records["last_loss"] = rng.exponential(size=rows)
    records["visits"], records["last_step"] = 1, 0
    engine.load_records(records)
    del records

    def plan() -> None:
        [plan] = reductions.agree([engine.plan(1, 3, (0, 1))])
        ids = plans.shuffle(plan.ids, seed=0, epoch=1)
        plans.split(ids, world_size=world_size, num_samples=rows, epoch=1)

    return float(np.median([timed(plan) for _ in range(3)]))


def figures_of(kernel: list[dict[str, Any]], fastest: dict[str, Any], batch_sizes: tuple[int, ...]) -> list[Figure]:
    """Return what the kernel's measurements say of its targets.

    Args:
        kernel: what `measure_kernel` returned, of all table sizes.
        fastest: of them, the one that should make most samples a second.
        batch_sizes: B.
    """
    timings = [one for one in kernel if "skipped" not in one and one["pace"] == "back to back"]
    smallest, largest = min(one["rows"] for one in timings), max(one["rows"] for one in timings)
    wanted = max(one["rows"] for one in kernel)
    found = {(one["rows"], one["batch_size"]): one for one in timings}
    figures = [
        Figure(
            "kernel to bare numpy gather + scatter",
            found[fastest["rows"], size]["to_bare"],
            "x",
            3.0,
            note=f"B = {size:,}, {fastest['rows']:,} rows",
        )
        for size in batch_sizes
    ]
    figures += [
        Figure(
            "kernel to bare numpy gather + scatter, paced",
            one["to_bare"],
            "x",
            3.0,
            note=f"B = {one['batch_size']:,}, {one['rows']:,} rows",
        )
        for one in kernel
        if one.get("pace") == "paced" and one["batch_size"] in batch_sizes
    ]
    at = f"B = {fastest['batch_size']:,}, {fastest['rows']:,} rows"
    figures.append(Figure("kernel", fastest["samples_per_s"] / 1e6, "M samples/s", 20.0, at_most=False, note=at))
    figures.append(Figure("size of a row", max(one["bytes_per_sample"] for one in timings), "bytes", 40.0))
    growth = max(
        found[largest, size]["kernel"]["p50_ms"] / found[smallest, size]["kernel"]["p50_ms"] for size in batch_sizes
    )
    at = f"{largest:,} to {smallest:,} rows, worst B" + ("" if wanted == largest else f"; {wanted:,} did not fit")
    figures.append(Figure("kernel, largest table to smallest", growth, "x", 2.5, note=at))
    return figures
