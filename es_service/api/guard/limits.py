"""Rate limits of a client: a token bucket of requests, and a count of those under way."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Buckets", "Slots"]

_MOST_CLIENTS = 4096


class Buckets:
    """A token bucket for each client.

    Args:
        per_second: at which it fills.
        size: what it holds.
        clock: in seconds.
    """

    def __init__(self, per_second: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._size, self._clock = per_second, size, clock
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by client: what is in it, since when
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """Take one; return 0, or in how many seconds there is one again."""
        with self._lock:
            now = self._clock()
            left, since = self._filled.get(client, (float(self._size), now))
            left = min(float(self._size), left + (now - since) * self._per_second)
            if left < 1:
                return (1 - left) / self._per_second
            self._filled[client] = (left - 1, now)
            self._filled.move_to_end(client)
            while len(self._filled) > _MOST_CLIENTS:  # those that were quiet longest: their buckets are full by now
                self._filled.popitem(last=False)
            return 0.0

    def is_empty(self, client: str) -> bool:
        """Return whether there is none to take; takes none."""
        with self._lock:
            left, since = self._filled.get(client, (float(self._size), self._clock()))
            return left + (self._clock() - since) * self._per_second < 1


class Slots:
    """Places for what is under way; never waits."""

    def __init__(self, num: int) -> None:
        self._free, self._lock = num, threading.Lock()

    def enter(self) -> bool:
        """Take a place; return False where none is free."""
        with self._lock:
            if self._free == 0:
                return False
            self._free -= 1
            return True

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._free += 1
