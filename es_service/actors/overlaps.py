"""Which rank has asked for a row and not reported it yet: two ranks at once draw by what neither will find again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Overlaps"]

I64 = NDArray[np.int64]
_NOBODY = -1


class Overlaps:
    """4 bytes a row, from the first request on. No locking."""

    def __init__(self) -> None:
        self.total = 0
        self._holders = np.empty(0, dtype=np.int32)

    def asked(self, rows_B: I64, rank: int, num_rows: int) -> int:
        """Note that the rank will report these rows; return how many of them another one is still to report.

        Args:
            rows_B: int64[B].
            rank: who asked.
            num_rows: of the table.
        """
        if num_rows > self._holders.size:
            more = np.full(num_rows - self._holders.size, _NOBODY, dtype=np.int32)
            self._holders = np.concatenate([self._holders, more])
        holders = self._holders[rows_B]
        num = int(np.count_nonzero((holders != _NOBODY) & (holders != rank)))
        self._holders[rows_B] = rank
        self.total += num
        return num

    def reported(self, rows_B: I64, rank: int) -> None:
        """Note that the rank has reported these rows."""
        known = rows_B[rows_B < self._holders.size]
        self._holders[known[self._holders[known] == rank]] = _NOBODY

    def clear(self) -> None:
        """Forget who asked for what: a new attempt begins."""
        self._holders.fill(_NOBODY)
