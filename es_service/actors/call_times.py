"""How long a shard's calls take: a histogram for each, cheap enough to keep always."""

from __future__ import annotations

import bisect
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

__all__ = ["EDGES_S", "CallTimes", "merged", "timed"]

P = ParamSpec("P")
R = TypeVar("R")

EDGES_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
"""Upper edges of the bins, in seconds; a last bin takes what is above."""


class CallTimes:
    """Counts calls by how long they took; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._total_s: dict[str, float] = {}

    def add(self, call: str, seconds: float) -> None:
        """Count one call."""
        place = bisect.bisect_left(EDGES_S, seconds)
        with self._lock:
            counts = self._counts.setdefault(call, [0] * (len(EDGES_S) + 1))
            counts[place] += 1
            self._total_s[call] = self._total_s.get(call, 0.0) + seconds

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return by call: edges_s, counts (one more than edges, those in each bin), total_s."""
        with self._lock:
            return {
                call: {"edges_s": list(EDGES_S), "counts": list(counts), "total_s": self._total_s[call]}
                for call, counts in self._counts.items()
            }


def merged(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the calls of several shards together, as `CallTimes.to_dict` gives those of one."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for call, one in part.items():
            other = found.get(call)
            if other is None:
                found[call] = {**one, "counts": list(one["counts"])}
            else:
                other["counts"] = [a + b for a, b in zip(other["counts"], one["counts"], strict=True)]
                other["total_s"] += one["total_s"]
    return found


class _HasTimes(Protocol):
    @property
    def _times(self) -> CallTimes: ...


S = TypeVar("S", bound=_HasTimes)


def timed(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Count each call of a method under its name, one that raises too."""
    name = method.__name__

    @functools.wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        begin = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            self._times.add(name, time.perf_counter() - begin)

    return cast("Callable[Concatenate[S, P], R]", run)
