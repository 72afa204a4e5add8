"""Queries of a table that may be sharded: exact, and no shard sends more than its share of the answer.

Each is a generator that runs on every shard, see `reductions`; the parts it returns there are put together afterwards.
Where a table is being written meanwhile, a shard ranks and counts by its values as of when it was asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import reductions
from es_service.selection.engine import Engine
from es_service.selection.reductions import Agreed, Join, Sum
from es_service.selection.settings import as_integer, suggest
from es_service.selection.table import records_to_arrow

__all__ = ["Distribution", "distribution", "ranked", "top"]

_MAX_BINS = 4096
_ALWAYS = ("id", "visits", "selected", "last_step")  # have a meaning for samples that were never observed, too


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """How the values of a column spread over all samples.

    Attributes:
        edges: float64[bins + 1], ascending, from the lowest to the highest value; the last bin holds its right edge.
            Where all values are equal, from half below to half above.
        counts: int64[bins].
        num_missing: samples that have no value, because they were never observed.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    num_missing: int


def _finite(engine: Engine, column: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a column's values float64[rows], 0 for those that have none, and which ones have."""
    names = ["id", *(engine.table.dtype.names or ())]
    if column not in names:
        raise errors.ConfigError(f"no column {column!r}; {suggest(column, names)}")
    values = (engine.ids() if column == "id" else engine.column(column)).astype(np.float64)
    finite = np.isfinite(values)
    if column not in _ALWAYS:
        finite &= engine.column("visits") > 0
    values[~finite] = 0.0
    return values, finite


def top(engine: Engine, column: str, num: int, lowest: bool) -> Agreed[pa.Table]:
    """Return this shard's part of the `num` rows with the highest values, or the lowest; ties by lower id.

    Raises:
        ConfigError: no such column, or `num` below 1.
    """
    num = as_integer("num", num, least=1)
    all_ids = engine.ids()  # before the table may grow
    values, finite = _finite(engine, column)
    [available] = yield from reductions.count(finite)
    keys = values if lowest else -values
    chosen = yield from reductions.lowest(keys, all_ids, min(num, available), finite)
    ids = all_ids[chosen]
    rows = records_to_arrow(engine.table.gather(engine.shard.rows(ids)))
    return rows.set_column(0, "id", pa.array(ids))


def ranked(parts: Sequence[pa.Table], column: str, *, lowest: bool) -> pa.Table:
    """Return the rows that all shards found, in their order."""
    order = [(column, "ascending" if lowest else "descending"), ("id", "ascending")]
    return pa.concat_tables(parts).sort_by(order)


def distribution(engine: Engine, column: str, bins: int) -> Agreed[Distribution]:
    """Return the histogram of a column over all shards, in bins of equal width; every shard returns the whole.

    Raises:
        ConfigError: no such column, or `bins` outside [1, 4096].
    """
    bins = as_integer("bins", bins, least=1, end=_MAX_BINS + 1)
    values, finite = _finite(engine, column)
    values = values[finite]
    ends = np.array([[values.min(initial=np.inf)], [values.max(initial=-np.inf)]])
    lows, highs = yield Join(ends)
    low, high = (float(lows.min()), float(highs.max())) if np.isfinite(lows).any() else (0.0, 0.0)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    totals = yield Sum(np.append(counts, np.count_nonzero(~finite)).astype(np.int64))
    return Distribution(edges, totals[:-1], int(totals[-1]))
