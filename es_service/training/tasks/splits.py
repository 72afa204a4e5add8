"""Randomness for data sets: which samples are held out, kept or changed, equal for all versions of all libraries.

Reference: SplitMix64 (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014), spelled out here so
that ids, and all scores and figures that speak of them, can never shift.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from es_service.selection.settings import exact_share

__all__ = ["shuffled", "stratified_split", "stream_of", "words"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def words(ids_m: NDArray[np.integer], stream: int = 0) -> NDArray[np.uint64]:
    """Return uint64[m], one well-mixed word for each id; another `stream`, other words."""
    mixed = ids_m.astype(np.uint64) + np.uint64(1)
    mixed *= _GOLDEN
    mixed += np.uint64(stream)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def stream_of(*parts: int) -> int:
    """Return the stream that belongs to some numbers, e.g. a seed and a purpose."""
    state = 0
    for part in parts:
        state = int(words(np.array([part % 2**64], dtype=np.uint64), state)[0])
    return state


def shuffled(ids_m: NDArray[np.int64], stream: int = 0) -> NDArray[np.int64]:
    """Return the ids in a random order that depends on nothing but `stream`; more ids leave the order of these."""
    return ids_m[np.argsort(words(ids_m, stream), kind="stable")]


def stratified_split(labels_n: NDArray[np.integer], share: float = 0.2) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those to hold out, a share of each class (rounded down), both shuffled."""
    order = shuffled(np.arange(labels_n.size))
    is_held_out = np.zeros(labels_n.size, dtype=bool)
    for label in np.unique(labels_n):
        of_class = order[labels_n[order] == label]
        is_held_out[of_class[: math.floor(exact_share(share, of_class.size))]] = True
    return order[~is_held_out[order]], order[is_held_out[order]]
