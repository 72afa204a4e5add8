"""Counter-based random numbers: the number for (seed, purpose, counter, id) is a hash, never the state of a generator.

Whoever knows the four gets the same number, in any process, in any order, after any restart. That is what makes a
selection independent of the topology it was made on.

Reference: the finaliser is SplitMix64 (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014).
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "hashes", "uniforms"]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Purpose(enum.IntEnum):
    """What a number is for; two purposes never share a number."""

    DRAW = 1
    PRUNE = 2
    SHUFFLE = 3
    HALVES = 4
    SEARCH = 16


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def _stream(seed: int, purpose: Purpose, counter: int) -> int:
    """Fold the three scalars into the 64 bits that select one stream of per-id numbers."""
    z = _mix_int((int(seed) + _GOLDEN) & _MASK)
    z = _mix_int((z ^ int(purpose)) + _GOLDEN & _MASK)
    return _mix_int((z ^ (int(counter) & _MASK)) + _GOLDEN & _MASK)


def hashes(seed: int, purpose: Purpose, counter: int, ids_B: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return uint64[B], one well-mixed word per id.

    Args:
        seed: of the run, in [0, 2**63).
        purpose: what the numbers are for.
        counter: an epoch, or a step counted over the whole run.
        ids_B: int64[B] sample ids; every int64 is a valid id.
    """
    z = ids_B.astype(np.uint64)  # a copy: the rest works in place
    z *= np.uint64(_GOLDEN)
    z += np.uint64(_stream(seed, purpose, counter))
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(_MIX_1)
    z ^= np.right_shift(z, np.uint64(27), out=shifted)
    z *= np.uint64(_MIX_2)
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return z


def uniforms(seed: int, purpose: Purpose, counter: int, ids_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64[B] in the open interval (0, 1), on a grid of 2**-52; arguments as in `hashes`."""
    top = hashes(seed, purpose, counter, ids_B)
    top >>= np.uint64(12)
    uniforms_B = top.astype(np.float64)
    uniforms_B += 0.5
    uniforms_B *= 2.0**-52  # exact: half a grid step off either end
    return uniforms_B
