"""A measured figure and what it was to be; what all benchmarks of the service share."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Figure", "Progress", "percentiles", "timed"]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One value beside its target.

    Attributes:
        name: what was measured.
        value: in `unit`; None where it could not be measured, and `note` says why.
        unit: of the value; "x" for a ratio of two measured in turns.
        target: the bound.
        at_most: whether the target bounds from above.
        note: at which size, say.
    """

    name: str
    value: float | None
    unit: str
    target: float
    at_most: bool = True
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target was met; None where nothing was measured."""
        if self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, `reached` among them."""
        return {**dataclasses.asdict(self), "reached": self.reached}


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


class Progress:
    """Says on stderr what is under way, and how long it took."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        print(f"{self._name}: {time.monotonic() - self._began:.0f} s", file=sys.stderr)
