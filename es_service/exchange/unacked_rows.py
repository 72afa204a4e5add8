"""Rows of a rank's unacknowledged reports to a shard: newer than any row that the shard may send meanwhile."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.exchange.base import I64
from es_service.selection.methods.base import Columns

__all__ = ["UnackedRows"]

_SLOTS = 1 << 18


class UnackedRows:
    """Rows by the seq of the report that made them; a small hash filter shows quickly whether an id is among them."""

    def __init__(self) -> None:
        self._reports: collections.deque[tuple[int, I64, Columns]] = collections.deque()
        self._newest = np.zeros(_SLOTS, dtype=np.int64)  # seq of the last report of any id in this slot

    def add(self, seq: int, ids_m: I64, columns: Columns) -> None:
        """Keep the columns [m] of these ids as a report with this seq leaves them."""
        order = np.argsort(ids_m)
        self._reports.append((seq, ids_m[order], {name: values[order] for name, values in columns.items()}))
        self._newest[ids_m % _SLOTS] = seq

    def put_on(self, seq: int, ids_m: I64, columns: dict[str, NDArray[Any]]) -> None:
        """Bring columns [m] up to date that a shard read when it had applied the reports up to `seq`."""
        while self._reports and self._reports[0][0] <= seq:
            self._reports.popleft()
        suspects = np.flatnonzero(self._newest[ids_m % _SLOTS] > seq)
        if not suspects.size:
            return
        for _, ids, newer in self._reports:  # the later ones last
            found = np.minimum(np.searchsorted(ids, ids_m[suspects]), ids.size - 1)
            same = ids[found] == ids_m[suspects]
            for name, values in columns.items():
                values[suspects[same]] = newer[name][found[same]]
