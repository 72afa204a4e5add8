"""All-reduces over the shards of a table: exact totals and order statistics, with no process holding all rows.

Every shard runs the same generator over its own rows. Where it needs a value over all rows it yields its part, and is
sent the merged value:

    shard 0   ── yield Sum(counts) ──►┐                        ┌──► the sum, to every shard
    shard 1   ── yield Sum(counts) ──►┼── merge (any process) ─┤
    …         ── yield Sum(counts) ──►┘                        └──►

The parts are small: `lowest` exchanges histograms of 4,096 bins, whatever the number of rows. The answers do not
depend on how rows are spread, so neither does what follows from them, to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agreed", "Join", "Question", "Sum", "agree", "count", "exact_mean", "lowest", "merge"]

T = TypeVar("T")
Bools: TypeAlias = NDArray[np.bool_]

_DIGIT_BITS = 12
_FEW = 4096  # candidates that are left are compared one by one


@dataclasses.dataclass(frozen=True, slots=True)
class Sum:
    """Integers, of which every shard gets the total, elementwise."""

    values: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Columns, of which every shard gets those of all shards, concatenated."""

    values: NDArray[Any]


Question: TypeAlias = Sum | Join
Agreed: TypeAlias = Generator[Question, NDArray[Any], T]
"""A computation over all rows: yields questions, is sent answers, returns T."""


def merge(parts: Sequence[Question]) -> NDArray[Any]:
    """Return the answer to the shards' parts, in the order of the shards."""
    if isinstance(parts[0], Sum):
        total: NDArray[np.int64] = np.sum([one.values for one in parts], axis=0)
        return total
    return np.concatenate([one.values for one in parts], axis=-1)


def agree(shards: Sequence[Agreed[T]]) -> list[T]:
    """Return what each shard's generator returns, all of them in this process."""
    results: list[T] = []
    answer = None
    while True:
        parts: list[Question] = []
        for shard in shards:
            try:
                parts.append(next(shard) if answer is None else shard.send(answer))
            except StopIteration as stop:
                results.append(stop.value)
        if results:
            return results
        answer = merge(parts)


def count(*flags: Bools) -> Agreed[list[int]]:
    """Return how often each of these is true, over all shards."""
    totals = yield Sum(np.array([np.count_nonzero(one) for one in flags], dtype=np.int64))
    return [int(total) for total in totals]


def exact_mean(values: NDArray[np.float32]) -> Agreed[float]:
    """Return the mean of all shards' values, correctly rounded: the sum is exact, hence the same in any order.

    A float32 is 24 bits times a power of two; per power the bits are summed as integers (exact below 2**29 rows).
    """
    mantissas, exponents = np.frexp(values)
    bins = (exponents + 160).astype(np.int64)  # of a float32: -148 to 128; those of zeros are 0
    sums = np.bincount(bins, weights=np.ldexp(mantissas.astype(np.float64), 24), minlength=300)
    totals = yield Sum(np.append(sums.astype(np.int64), values.size))
    total = sum(int(bits) << place for place, bits in enumerate(totals[:-1]))
    return float(Fraction(total, int(totals[-1]) << (160 + 24)))


def _sortable(keys: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return words that sort as the keys do, -inf first; -0.0 counts as 0.0."""
    words = (keys + 0.0).view(np.int64)
    flips = words >> 63  # all bits of the negative ones
    flips |= np.iinfo(np.int64).min
    words ^= flips
    return words.view(np.uint64)


def _nth(words: NDArray[np.uint64], num: int) -> Agreed[tuple[int, int, int]]:
    """Return the num-th lowest word of all shards (num from 1 on), how many are lower, and how many equal it.

    Round by round the histogram of the next 12 bits shows in which bin it lies, until few are left to compare.
    """
    word = lower = 0
    for shift in (*range(64 - _DIGIT_BITS, 0, -_DIGIT_BITS), 0):
        width = _DIGIT_BITS if shift else 64 % _DIGIT_BITS
        digits = ((words >> np.uint64(shift)) & np.uint64((1 << width) - 1)).view(np.int64)
        histogram = yield Sum(np.bincount(digits, minlength=1 << width))
        ends = np.cumsum(histogram)
        place = int(np.searchsorted(ends, num - lower))
        lower += int(ends[place] - histogram[place])
        word |= place << shift
        words = words[digits == place]
        if shift and histogram[place] <= _FEW:
            candidates = np.sort((yield Join(words)))
            found = candidates[num - lower - 1]
            first, behind = np.searchsorted(candidates, found), np.searchsorted(candidates, found, side="right")
            return int(found), lower + int(first), int(behind - first)
    return word, lower, int(histogram[place])


def lowest(keys: NDArray[np.float64], ids: NDArray[np.int64], num: int, among: Bools | None = None) -> Agreed[Bools]:
    """Return which rows are the `num` with the lowest keys among those flagged, over all shards; ties by lower id.

    Args:
        keys: float64[rows], none NaN.
        ids: int64[rows].
        num: at least 0, at most as many as are flagged on all shards.
        among: bool[rows]; None flags all.
    """
    if num == 0:
        return np.zeros(keys.size, dtype=np.bool_)
    words = _sortable(keys)
    last, lower, equal = yield from _nth(words if among is None else words[among], num)
    every_tie = equal == num - lower
    chosen: Bools = words <= np.uint64(last) if every_tie else words < np.uint64(last)
    if among is not None:
        chosen &= among
    if not every_tie:
        ties = words == np.uint64(last)
        if among is not None:
            ties &= among
        last_id, _, _ = yield from _nth(ids[ties].view(np.uint64), num - lower)
        chosen |= ties & (ids <= last_id)
    return chosen
