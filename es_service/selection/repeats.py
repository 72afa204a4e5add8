"""Batches that hold a sample more than once, as a sampler with replacement makes them.

A sample is observed once a step, by the mean of its copies, and counted once as selected. But each copy is a
candidate of its own: with the weight of its sample, and a random number of its own, which depends on how many of its
kind stand before it. So a batch is drawn from as if its copies were different samples that weigh the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from es_service.selection.observations import first_duplicate

__all__ = ["Repeats", "among_distinct", "num_candidates"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
_COPY_BITS = 40  # ids lie below


@dataclasses.dataclass(frozen=True, slots=True)
class Repeats:
    """Positions of a batch's ids among its u distinct ones.

    Attributes:
        ids_B: int64[B], as the batch holds them.
        ids_u: int64[u], each once, ascending.
        of_B: int64[B] into the u.
        copy_B: int64[B], how many of the same id stand before it.
    """

    ids_B: I64
    ids_u: I64
    of_B: I64
    copy_B: I64

    @classmethod
    def of(cls, ids_B: I64) -> Repeats | None:
        """Return where these ids repeat, None where none does."""
        if first_duplicate(ids_B) is None:
            return None
        ids_u, of_B, counts = np.unique(ids_B, return_inverse=True, return_counts=True)
        copy_B = np.empty_like(of_B)
        copy_B[np.argsort(of_B, kind="stable")] = np.arange(of_B.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(ids_B, ids_u, of_B, copy_B)

    @property
    def keys_B(self) -> I64:
        """What the random numbers of the candidates come from, int64[B]: the id, for the first of its kind."""
        return self.ids_B + (self.copy_B << _COPY_BITS)

    def means(self, values_B: F32) -> F32:
        """Return the mean of each distinct id's values, float32[u]."""
        sums = np.bincount(self.of_B, weights=values_B.astype(np.float64))
        return (sums / np.bincount(self.of_B)).astype(np.float32)


def num_candidates(ids_u: I64, repeats: Repeats | None) -> int:
    """Return how many candidates a batch with these distinct ids holds."""
    return ids_u.size if repeats is None else repeats.ids_B.size


def among_distinct(positions_b: I64, repeats: Repeats | None) -> I64:
    """Return which of a batch's distinct ids stand at these positions of it, int64[v] into the u, ascending."""
    return positions_b if repeats is None else np.unique(repeats.of_B[positions_b])
