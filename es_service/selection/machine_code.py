"""The hot loops, compiled by numba: what `keys`, `draws.keyed` and `Engine` do in numpy, bit for bit.

numpy goes through the samples once for every operation, at a microsecond a call; these go through them once. Logarithms
stay with numpy: those of another library differ in their last bit. Nothing here may be contracted or reordered, so no
`fastmath`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from es_service.selection.table import RECORD, Words

__all__ = [
    "add_selected",
    "all_distinct",
    "all_within",
    "arrivals",
    "observe_and_hash",
    "observe_averages",
    "positions_below",
    "uniforms",
]

_S, _W, _LAST_LOSS, _LOSS_MEAN, _LOSS_VAR, _VISITS, _SELECTED, _LAST_STEP = range(len(RECORD.names or ()))
_ONE_VISIT, _ONE = np.uint32(1), np.float32(1)
_MOST = np.finfo(np.float32).max
_HASH, _WORD_BITS = np.uint64(0x9E3779B97F4A7C15), np.uint64(64)
F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    try:
        return cast(F, numba.njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # no folder for the cache: every process compiles its own
        return cast(F, numba.njit(error_model="numpy")(function))


@_compiled
def all_distinct(ids_B: NDArray[np.int64], end: int, slots: NDArray[np.uint16], slot_bits: np.uint64) -> bool:
    """Return whether each id lies in [0, end) and none is repeated.

    Args:
        ids_B: fewer than 2**16.
        end: above every id.
        slots: uint16[2**slot_bits] zeros, more than B, overwritten: a hash table with linear probing, of positions + 1.
        slot_bits: at least 1.
    """
    last, shift = slots.size - 1, _WORD_BITS - slot_bits
    for i in range(ids_B.size):
        one = ids_B[i]
        if one < 0 or one >= end:
            return False
        slot = np.int64((np.uint64(one) * _HASH) >> shift)
        while slots[slot] != 0:
            if ids_B[slots[slot] - 1] == one:
                return False
            slot = (slot + 1) & last
        slots[slot] = i + 1
    return True


@_compiled
def all_within(values_B: NDArray[np.floating], least: np.floating, most: np.floating) -> bool:
    """Return whether every value lies between the two, NaN never does."""
    within = True
    for i in range(values_B.size):
        within &= least <= values_B[i] <= most  # no early way out: so it goes many at a time
    return within


@_compiled
def uniforms(
    ids_B: NDArray[np.int64],
    stream: np.uint64,
    factors: tuple[np.uint64, np.uint64, np.uint64],
    out_B: NDArray[np.float64],
) -> None:
    """Write the numbers of `keys.uniforms` for one stream; the factors are those of its hash."""
    golden, mix_1, mix_2 = factors
    for i in range(ids_B.size):
        z = np.uint64(ids_B[i]) * golden + stream
        z = (z ^ (z >> np.uint64(30))) * mix_1
        z = (z ^ (z >> np.uint64(27))) * mix_2
        z ^= z >> np.uint64(31)
        out_B[i] = (np.float64(z >> np.uint64(12)) + 0.5) * 2.0**-52


@_compiled
def arrivals(weights_B: NDArray[np.floating], least: float, logarithms_B: NDArray[np.float64]) -> bool:
    """Turn logarithms of uniforms into the arrival times of `draws.keyed.race_keys`, in place.

    Returns whether every weight is at least 0 and no larger than a float32 can be.
    """
    fine = True
    for i in range(weights_B.size):
        fine &= np.float32(0) <= weights_B[i] <= _MOST
        logarithms_B[i] = -(logarithms_B[i] / max(np.float64(weights_B[i]), least))
    return fine


@_compiled
def positions_below(keys_B: NDArray[np.float64], threshold: float, out_b: NDArray[np.int64]) -> int:
    """Write the positions of the keys below the threshold, ascending, as many as fit; return how many there are."""
    found = 0
    for i in range(keys_B.size):
        if keys_B[i] < threshold:
            if found < out_b.size:
                out_b[found] = i
            found += 1
    return found


@_compiled
def observe_averages(
    words_n: Words,
    rows_B: NDArray[np.int64],
    values_B: NDArray[np.float32],
    losses_B: NDArray[np.float32],
    betas: tuple[np.float32, np.float32, np.float32, np.float32],
    run_step: np.int32,
    weights_B: NDArray[np.float32],
) -> None:
    """Observe in place what `Engine` observes of a method with two averages; write the new weights to weights_B.

    Args:
        words_n: the table's records as [n, words], three views of the same memory.
        rows_B: distinct, and there.
        values_B: what the method goes by.
        losses_B: of the same samples.
        betas: β1, 1-β1, β2, 1-β2.
        run_step: int32.
        weights_B: w of each.
    """
    floats, counts, steps = words_n
    beta1, rest1, beta2, rest2 = betas
    for i in range(rows_B.size):  # by itself: the rows come in side by side
        weights_B[i] = beta1 * floats[np.uint64(rows_B[i]), _S] + rest1 * values_B[i]
    for i in range(rows_B.size):
        row, loss = np.uint64(rows_B[i]), losses_B[i]  # unsigned, or every access asks whether it counts from the end
        floats[row, _S] = beta2 * floats[row, _S] + rest2 * values_B[i]
        floats[row, _W] = weights_B[i]
        floats[row, _LAST_LOSS] = loss
        visits = counts[row, _VISITS] + _ONE_VISIT
        counts[row, _VISITS] = visits
        share = _ONE / np.float32(visits)
        surprise = loss - floats[row, _LOSS_MEAN]
        mean = floats[row, _LOSS_MEAN] + surprise * share
        floats[row, _LOSS_MEAN] = mean
        variance = floats[row, _LOSS_VAR]
        floats[row, _LOSS_VAR] = variance + (surprise * (loss - mean) - variance) * share
        steps[row, _LAST_STEP] = run_step


@_compiled
def observe_and_hash(
    words_n: Words,
    rows_B: NDArray[np.int64],
    values_B: NDArray[np.float32],
    losses_B: NDArray[np.float32],
    betas: tuple[np.float32, np.float32, np.float32, np.float32],
    run_step: np.int32,
    weights_B: NDArray[np.float32],
    ids_B: NDArray[np.int64],
    stream: np.uint64,
    factors: tuple[np.uint64, np.uint64, np.uint64],
    uniforms_B: NDArray[np.float64],
) -> None:
    """Do what `observe_averages` and `uniforms` do, at one call."""
    observe_averages(words_n, rows_B, values_B, losses_B, betas, run_step, weights_B)
    uniforms(ids_B, stream, factors, uniforms_B)


@_compiled
def add_selected(words_n: Words, rows_b: NDArray[np.int64]) -> None:
    """Count these rows as back-propagated once more."""
    _, counts, _ = words_n
    for i in range(rows_b.size):
        counts[np.uint64(rows_b[i]), _SELECTED] += _ONE_VISIT
