"""Rows that a rank has asked for and not reported yet: two ranks at once would both draw by stale scores."""

from __future__ import annotations

import collections

import numpy as np
from numpy.typing import NDArray

__all__ = ["Overlaps"]

I64 = NDArray[np.int64]
_NOBODY = -1
_MAX_STEPS = 1000


class Overlaps:
    """A rank holds the rows of a step from its request until its first report of that step, or of a later one.

    4 bytes a row, from the first request on. No locking.
    """

    def __init__(self) -> None:
        self.total = 0
        self._holders = np.empty(0, dtype=np.int32)
        self._asked: dict[int, collections.deque[tuple[int, I64]]] = collections.defaultdict(collections.deque)

    def asked(self, rows_B: I64, rank: int, run_step: int, num_rows: int) -> int:
        """Note a rank's request; return how many of the rows another one holds.

        Args:
            rows_B: int64[B].
            rank: who asks.
            run_step: that it asks for.
            num_rows: of the table.
        """
        if num_rows > self._holders.size:
            more = np.full(num_rows - self._holders.size, _NOBODY, dtype=np.int32)
            self._holders = np.concatenate([self._holders, more])
        holders = self._holders[rows_B]
        num = int(np.count_nonzero((holders != _NOBODY) & (holders != rank)))
        self._holders[rows_B] = rank
        self._asked[rank].append((run_step, rows_B))
        if len(self._asked[rank]) > _MAX_STEPS:  # it reads on and reports nothing
            self._free(rank)
        self.total += num
        return num

    def reported(self, rank: int, run_step: int) -> None:
        """Note that the rank has reported this step, and so is done with all before it."""
        asked = self._asked[rank]
        while asked and asked[0][0] <= run_step:
            self._free(rank)

    def _free(self, rank: int) -> None:
        """Drop the oldest request."""
        rows = self._asked[rank].popleft()[1]
        self._holders[rows[self._holders[rows] == rank]] = _NOBODY

    def clear(self) -> None:
        """Forget who asked for what: a new generation begins, or an epoch."""
        self._holders.fill(_NOBODY)
        self._asked.clear()
