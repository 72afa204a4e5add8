"""What was worked out of one state of a table, once for all who ask: a bounded cache, and who may work at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

__all__ = ["Results"]

T = TypeVar("T")

_MOST_KEPT = 64
_MOST_KEPT_BYTES = 512 << 20  # of one table
_LARGE = 1_000_000  # rows, from which on only a few looks at all of them may be under way
_large_looks, _held = threading.BoundedSemaphore(4), threading.local()


class Results:
    """See the module's text.

    Args:
        num_rows: of the table.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._under_way: dict[Any, threading.Event] = {}  # by key: set when it is worked out

    def once(self, key: Any, work: Callable[[], T], *, beside: Results | None = None) -> T:
        """Return what `work` returns, computed by the first caller; others wait for it meanwhile.

        A place (see `looking`) is taken before the key: a caller with a key has all the places it needs, and one that
        waits for a key gives back the place taken here. So a key that is waited for never waits for a place.

        Args:
            key: names the value.
            work: of it; may ask for other keys, of this table and of `beside`, that do not themselves need this one.
            beside: another table that the work looks at.
        """
        while True:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]  # type: ignore[no-any-return]
            with self.looking(), (beside or self).looking():
                with self._lock:
                    others = self._under_way.get(key)
                    is_mine = others is None and key not in self._kept
                    if is_mine:
                        self._under_way[key] = threading.Event()
                if is_mine:
                    return self._worked_out(key, work)
            if others is not None:
                others.wait()

    def _worked_out(self, key: Any, work: Callable[[], T]) -> T:
        """Work a value out and keep it; whether that goes well or not, those who wait for the key look again."""
        try:
            value = work()
            with self._lock:
                self._kept[key] = value
                self._kept_bytes += _size(value)
                while len(self._kept) > _MOST_KEPT or (self._kept_bytes > _MOST_KEPT_BYTES and len(self._kept) > 1):
                    self._kept_bytes -= _size(self._kept.popitem(last=False)[1])
            return value
        finally:
            with self._lock:
                done = self._under_way.pop(key)
            done.set()

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Hold one of a few places for a look at all rows of a large table: each takes memory in proportion to them."""
        if self.num_rows < _LARGE or getattr(_held, "is_looking", False):
            yield
            return
        with _large_looks:
            _held.is_looking = True
            try:
                yield
            finally:
                _held.is_looking = False


def _size(value: Any) -> int:
    """Return the bytes that keeping a value costs: a view of the mapped file costs none."""
    return int(value.nbytes) if isinstance(value, np.ndarray) and value.flags.owndata else 0
