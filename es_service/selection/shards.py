"""Shards: a sample is in table id % S of S, in its row id // S."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["WHOLE", "Shard", "pieces"]

I64 = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Which of the tables of a run one is.

    Attributes:
        index: in [0, count).
        count: S, the number of shards.
    """

    index: int
    count: int

    def num_rows(self, num_samples: int) -> int:
        """Return how many of the samples it holds; 0 where there are fewer samples than shards."""
        return max(0, -(-(num_samples - self.index) // self.count))

    def ids(self, num_samples: int) -> I64:
        """Return the ids it holds, int64[rows], ascending."""
        return np.arange(self.index, num_samples, self.count, dtype=np.int64)

    def rows(self, ids_B: I64) -> I64:
        """Return the rows int64[B] of ids that it holds."""
        return ids_B if self.count == 1 else ids_B // self.count


WHOLE = Shard(0, 1)
"""The one table of a run that is not sharded."""


def pieces(ids_B: I64, num_shards: int, limit: int) -> list[list[I64 | slice]]:
    """Return, for each shard, the positions of its ids in ids_B, ascending, in pieces of at most `limit`.

    A piece is a slice where it is a stretch of ids_B.
    """
    if num_shards == 1:
        return [[slice(start, min(start + limit, ids_B.size)) for start in range(0, ids_B.size, limit)]]
    shards = ids_B % num_shards
    cut: list[list[I64 | slice]] = []
    for index in range(num_shards):
        positions = np.flatnonzero(shards == index)
        cut.append([positions[start : start + limit] for start in range(0, positions.size, limit)])
    return cut
