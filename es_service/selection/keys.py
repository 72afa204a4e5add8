"""Counter-based random numbers: the number for (seed, purpose, counter, id) is a hash, never the state of a generator.

The same four give the same number, in any process, in any order, after any restart. That is what makes a selection
independent of the topology it was made on.

Reference: the finaliser is SplitMix64 (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014).
"""

from __future__ import annotations

import enum
import functools

import numpy as np
from numpy.typing import NDArray

from es_service.selection import compiled

__all__ = ["FACTORS", "Purpose", "hashes", "ids_of", "stream", "uniforms"]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNMIX_1, _UNMIX_2, _UNGOLDEN = (pow(factor, -1, 2**64) for factor in (_MIX_1, _MIX_2, _GOLDEN))
FACTORS = (np.uint64(_GOLDEN), np.uint64(_MIX_1), np.uint64(_MIX_2))
"""What the hash multiplies by."""
_BLOCK = 1 << 15  # words that are worked on at a time: they and what is shifted out of them stay in the caches


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


@functools.lru_cache(maxsize=256)
def _family(seed: int, purpose: Purpose) -> int:
    return _mix_int((_mix_int((int(seed) + _GOLDEN) & _MASK) ^ int(purpose)) + _GOLDEN & _MASK)


def stream(seed: int, purpose: Purpose, counter: int) -> np.uint64:
    """Fold the three scalars into the 64 bits that select one stream of per-id numbers."""
    return np.uint64(_mix_int((_family(seed, purpose) ^ (int(counter) & _MASK)) + _GOLDEN & _MASK))


def hashes(seed: int, purpose: Purpose, counter: int, ids_B: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return uint64[B], one well-mixed word per id.

    Args:
        seed: of the run, in [0, 2**63).
        purpose: what the numbers are for.
        counter: an epoch, or a step counted over the whole run.
        ids_B: int64[B] sample ids; every int64 is a valid id.
    """
    hashes_B = ids_B.astype(np.uint64)  # a copy: the rest works in place
    offset = stream(seed, purpose, counter)
    for start in range(0, hashes_B.size, _BLOCK):
        z = hashes_B[start : start + _BLOCK]
        z *= np.uint64(_GOLDEN)
        z += offset
        shifted = z >> np.uint64(30)
        z ^= shifted
        z *= np.uint64(_MIX_1)
        z ^= np.right_shift(z, np.uint64(27), out=shifted)
        z *= np.uint64(_MIX_2)
        z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return hashes_B


def ids_of(hashes_B: NDArray[np.uint64], seed: int, purpose: Purpose, counter: int) -> NDArray[np.int64]:
    """Return the ids whose `hashes` these are, int64[B]: distinct ids have distinct hashes, so there is a way back.

    Args:
        hashes_B: uint64[B], overwritten.
        seed: as it was for `hashes`; so are the others.
        purpose: likewise.
        counter: likewise.
    """
    offset = stream(seed, purpose, counter)
    for start in range(0, hashes_B.size, _BLOCK):
        z = hashes_B[start : start + _BLOCK]
        _unshift(z, 31)
        z *= np.uint64(_UNMIX_2)
        _unshift(z, 27)
        z *= np.uint64(_UNMIX_1)
        _unshift(z, 30)
        z -= offset
        z *= np.uint64(_UNGOLDEN)
    return hashes_B.view(np.int64)


def _unshift(z: NDArray[np.uint64], shift: int) -> None:
    """Undo `z ^= z >> shift` in place, for a shift of 22 to 31: z = y ^ (y >> shift) ^ (y >> 2·shift), then zeros."""
    y = z >> np.uint64(shift)
    z ^= y
    y >>= np.uint64(shift)
    z ^= y


def uniforms(seed: int, purpose: Purpose, counter: int, ids_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64[B] in the open interval (0, 1), on a grid of 2**-52; arguments as in `hashes`."""
    if (code := compiled.loops()) is not None:
        uniforms_B = np.empty(ids_B.size)
        code.uniforms(ids_B, stream(seed, purpose, counter), FACTORS, uniforms_B)
        return uniforms_B
    top = hashes(seed, purpose, counter, ids_B)
    top >>= np.uint64(12)
    uniforms_B = top.astype(np.float64)
    uniforms_B += 0.5
    uniforms_B *= 2.0**-52  # exact: half a grid step off either end
    return uniforms_B
