"""The work that `benchmarks.peers` gives to everybody: report B values for B ids, get b = B/4 of them drawn by weight.

A peer's module runs under an interpreter of its own, so this one needs nothing but numpy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Step", "do_work"]

Step: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.float32]], Any]
"""Takes ids int64[B] and values float32[B], returns something of length b. May have a `tidy` to call between steps."""

MAX_S = 4.0  # that the warm-up and then the steps of one size may take
WARM_UP, LEAST = 10, 3


def do_work(
    peers: dict[str, Callable[[int, int, int], AbstractContextManager[Step]]], versions: dict[str, str]
) -> None:
    """Measure each peer at each size and print one JSON object.

    Args:
        peers: name -> make(rows, B, b), whose context holds the step.
        versions: package -> version, for the record.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-sizes", type=_numbers, required=True)
    parser.add_argument("--rows", type=_numbers, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    measured = [
        {"peer": name, "rows": rows, "batch_size": batch_size, **_measure(make, rows, batch_size, options.steps)}
        for name, make in peers.items()
        for rows in options.rows
        for batch_size in options.batch_sizes
    ]
    print("\n" + json.dumps({"versions": versions, "measured": measured}))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _measure(
    make: Callable[[int, int, int], AbstractContextManager[Step]], rows: int, batch_size: int, num_steps: int
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    num = batch_size // 4
    taken: list[float] = []
    with ExitStack() as stack:
        try:
            step = stack.enter_context(make(rows, batch_size, num))
            for rounds, kept in ((WARM_UP, 0), (num_steps, LEAST)):
                taken.clear()
                give_up = time.monotonic() + MAX_S
                while len(taken) < rounds and (time.monotonic() < give_up or len(taken) < kept):
                    ids = rng.permutation(np.unique(rng.integers(rows, size=2 * batch_size)))[:batch_size]
                    values = rng.exponential(size=batch_size).astype(np.float32)
                    begin = time.perf_counter()
                    drawn = step(ids, values)
                    taken.append(time.perf_counter() - begin)
                    getattr(step, "tidy", lambda: None)()
                    if len(drawn) != num:
                        return {"error": f"{len(drawn)} of {num} came back"}
        except Exception as error:  # whatever a peer raises is what is to be told of it
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "steps": len(taken)}
