"""The score table: one 32-byte record per sample in an Arrow buffer, written in place, read as copies.

An observation touches every field of a few thousand samples scattered over the table. Stored as one array per field
that is eight cache misses a sample; stored as records it is one (4 to 5 times faster at 10⁷ rows). So the live buffer
is a FixedSizeBinary(32) array, and `records_to_arrow` turns a copy of it into ordinary columns for all other uses.

    s          float32   score, the slow average of the loss
    w          float32   weight of the last observation, what draws and pruning go by
    last_loss  float32   NaN before the first observation
    loss_mean  float32   running mean of the observed losses
    loss_var   float32   running population variance of them
    visits     uint32    observations so far
    selected   uint32    times back-propagated
    last_step  int32     step of the last observation, counted over the whole run; -1 before the first

A method may ask for further columns, 4 bytes each:

    correct     float32   1 where the last prediction was right, 0 where it was wrong; NaN before the first
    confidence  float32   the largest class probability of the last prediction; NaN before the first
    variance    float32   moving variance of the loss, 0 before the first observation
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.shards import WHOLE, Shard

__all__ = [
    "FURTHER_COLUMNS",
    "RECORD",
    "SCHEMA",
    "ScoreTable",
    "Words",
    "arrow_to_records",
    "is_table_schema",
    "records_to_arrow",
]

RECORD = np.dtype(
    [
        ("s", "<f4"),
        ("w", "<f4"),
        ("last_loss", "<f4"),
        ("loss_mean", "<f4"),
        ("loss_var", "<f4"),
        ("visits", "<u4"),
        ("selected", "<u4"),
        ("last_step", "<i4"),
    ]
)

Words: TypeAlias = tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.int32]]

FURTHER_COLUMNS: Mapping[str, float] = MappingProxyType({"correct": np.nan, "confidence": np.nan, "variance": 0.0})
"""Columns that a method may ask for, float32 each, and its value before the first observation."""


def _record(further: Iterable[str]) -> np.dtype[np.void]:
    return np.dtype([*RECORD.descr, *((name, "<f4") for name in FURTHER_COLUMNS if name in set(further))])


def _schema(record: np.dtype[np.void]) -> pa.Schema:
    names = record.names or ()
    return pa.schema([("id", pa.int64())] + [(name, pa.from_numpy_dtype(record[name])) for name in names])


SCHEMA = _schema(RECORD)


def is_table_schema(schema: pa.Schema) -> bool:
    """Return whether a file's columns are those of a score table, with any of the further ones."""
    return bool(schema.equals(_schema(_record(schema.names))))


def _allocate(num_rows: int, record: np.dtype[np.void]) -> NDArray[np.void]:
    """Return records[n] over a fresh Arrow buffer (which the array keeps alive), not yet initialised."""
    try:
        buffer = pa.allocate_buffer(max(1, num_rows * record.itemsize))
    except (MemoryError, pa.ArrowMemoryError) as error:
        raise errors.ConfigError(
            f"a table of {num_rows:,} rows needs {num_rows * record.itemsize:,} bytes, more than there are"
        ) from error
    return np.frombuffer(buffer, dtype=record, count=num_rows)


class ScoreTable:
    """Per-sample scores; row i belongs to sample id i. One owner, no locking of its own.

    Args:
        num_rows: number of samples, at least 1.
        initial_score: s and w of a sample never observed.
        further: names from `FURTHER_COLUMNS` that the method asks for.
    """

    def __init__(self, num_rows: int, initial_score: float = 0.0, further: Iterable[str] = ()) -> None:
        if num_rows < 1:
            raise errors.ConfigError(f"num_samples must be at least 1, got {num_rows}")
        self._initial_score = float(initial_score)
        self.dtype = _record(further)
        self._blob = np.dtype((np.void, self.dtype.itemsize))  # numpy moves opaque records faster than structured ones
        self._records = _allocate(num_rows, self.dtype)
        self._words: Words | None = None
        self._blank(0)

    def __len__(self) -> int:
        return self._records.size

    @property
    def nbytes(self) -> int:
        """Bytes that the table holds: 32 a row, and 4 for each further column."""
        return int(self._records.nbytes)

    def _blank(self, start: int) -> None:
        record = np.zeros(1, dtype=self.dtype)
        for name in self.dtype.names[len(RECORD.names or ()) :] if self.dtype.names else ():
            record[name] = FURTHER_COLUMNS[name]
        record["s"] = record["w"] = self._initial_score
        record["last_loss"] = np.nan
        record["last_step"] = -1
        self._records.view(self._blob)[start:] = record.view(self._blob)

    def clear(self) -> None:
        """Forget every observation."""
        self._blank(0)

    def grow(self, num_rows: int) -> None:
        """Make room for ids up to `num_rows` - 1, at least doubling; new rows are blank. Never shrinks."""
        old = self._records
        if num_rows <= old.size:
            return
        self._records = _allocate(max(num_rows, 2 * old.size), self.dtype)
        self._words = None
        self._records[: old.size] = old
        self._blank(old.size)

    def column(self, name: str) -> NDArray[Any]:
        """Return a copy of one column, [n], of the dtype named in the module's table."""
        return np.ascontiguousarray(self._records[name])

    def values(self, name: str, rows_m: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of one column at these rows, [m]."""
        values: NDArray[Any] = self._records[name][rows_m]
        return values

    def gather(self, rows_B: NDArray[np.int64]) -> NDArray[np.void]:
        """Return a copy of these rows as records[B]; the caller has checked that they exist."""
        return self._records.view(self._blob).take(rows_B).view(self.dtype)

    def scatter(self, rows_B: NDArray[np.int64], records_B: NDArray[np.void]) -> None:
        """Write records[B] back to these rows; the caller has checked that no row is repeated."""
        self._records.view(self._blob)[rows_B] = records_B.view(self._blob)

    @property
    def words(self) -> Words:
        """The live records as [rows, words] thrice, read as float32, uint32 and int32: for machine code."""
        if self._words is None:
            floats, counts, steps = (self._records.view(word).reshape(len(self), -1) for word in ("f4", "u4", "i4"))
            self._words = floats, counts, steps
        return self._words

    def add_selected(self, rows_b: NDArray[np.int64]) -> None:
        """Count these rows as back-propagated once more."""
        self._records["selected"][rows_b] += np.uint32(1)

    def copy_records(self, num_rows: int | None = None) -> NDArray[np.void]:
        """Return a copy of the first records, by default of all: quick, so that an owner can do it under a lock."""
        return self._records[:num_rows].copy()

    def copy_rows(self, out_n: NDArray[np.void], start: int, stop: int) -> None:
        """Copy the rows from `start` to `stop` into the same place of out_n, records of this table's kind."""
        out_n.view(self._blob)[start:stop] = self._records.view(self._blob)[start:stop]

    def load_records(self, records_n: NDArray[np.void]) -> None:
        """Replace the content by records[n], at most as many as there are rows; those behind them are blank."""
        self._records[: records_n.size] = records_n
        self._blank(records_n.size)


def records_to_arrow(records_n: NDArray[np.void], shard: Shard = WHOLE) -> pa.Table:
    """Turn a shard's records[n] into a pyarrow.Table: `SCHEMA`, and the further columns there are; all are copies."""
    columns = [pa.array(_ids(records_n.size, shard))]
    columns += [pa.array(np.ascontiguousarray(records_n[name])) for name in records_n.dtype.names or ()]
    return pa.Table.from_arrays(columns, schema=_schema(records_n.dtype))


def _ids(num_rows: int, shard: Shard) -> NDArray[np.int64]:
    return np.arange(num_rows, dtype=np.int64) * shard.count + shard.index


def arrow_to_records(table: pa.Table, num_rows: int, shard: Shard = WHOLE) -> NDArray[np.void]:
    """Turn a table of `records_to_arrow`, of this shard, into records[n]; StorageError where it is something else."""
    if not is_table_schema(table.schema):
        raise errors.StorageError(f"the table has columns {table.schema.names}, expected {SCHEMA.names}")
    if table.num_rows != num_rows:
        raise errors.StorageError(f"the table has {table.num_rows:,} rows, expected {num_rows:,}")
    if not np.array_equal(table.column("id").to_numpy(), _ids(num_rows, shard)):
        raise errors.StorageError(
            f"the table's ids are not {shard.index}, {shard.index + shard.count}, {shard.index + 2 * shard.count}, …"
        )
    records = np.empty(num_rows, dtype=_record(table.schema.names))
    for name in records.dtype.names or ():
        column = table.column(name)
        if column.null_count:
            raise errors.StorageError(f"column {name!r} of the table holds nulls")
        records[name] = column.to_numpy()
    return records
