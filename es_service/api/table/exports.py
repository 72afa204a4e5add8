"""A table as a stream of bytes, a block of rows at a time: memory holds one block, whatever the table's size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, parquet

from es_service.api.table.view import TableView, present

__all__ = ["MEDIA_TYPES", "array", "stream"]

MEDIA_TYPES = {
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
}
_BLOCK = 1 << 17  # rows
_PIECE = 1 << 20  # bytes, about


class _Sink:
    """A file that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self.size += len(piece)
        return len(piece)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        data, self._pieces, self.size = b"".join(self._pieces), [], 0
        return data


def stream(view: TableView, file_format: str, names: Sequence[str], mask: NDArray[np.bool_] | None) -> Iterator[bytes]:
    """Yield the samples of a table, in order of id, in one of `MEDIA_TYPES`.

    Args:
        view: to be exported.
        file_format: "arrow" (IPC stream), "parquet" or "csv".
        names: of the columns.
        mask: bool[n], which samples; None for all.
    """
    sink = _Sink()
    schema = pa.schema([_field(view, name) for name in names])
    with contextlib.closing(_writer(sink, schema, file_format)) as writer:
        for start in range(0, view.num_rows, _BLOCK):
            stop = min(start + _BLOCK, view.num_rows)
            kept = None if mask is None else np.flatnonzero(mask[start:stop])
            if kept is not None and not kept.size:
                continue
            arrays = [array(view, name, start, stop, kept) for name in names]
            writer.write(pa.record_batch(arrays, schema=schema))
            if sink.size:
                yield sink.take()
    if sink.size:
        yield sink.take()


def _writer(sink: _Sink, schema: pa.Schema, file_format: str) -> Any:
    place = pa.PythonFile(sink, mode="w")
    if file_format == "arrow":
        return pa.ipc.new_stream(place, schema)
    if file_format == "csv":
        return csv.CSVWriter(place, schema)
    return parquet.ParquetWriter(place, schema, use_dictionary=["label"] if "label" in schema.names else False)


def _field(view: TableView, name: str) -> pa.Field:
    if name == "label":
        return pa.field(name, pa.string())
    return pa.field(name, pa.from_numpy_dtype(view.block(name, 0, 0).dtype))


def array(view: TableView, name: str, start: int, stop: int, kept: NDArray[np.int64] | None = None) -> pa.Array:
    """Return the rows from `start` to `stop` of a column, of them those at `kept`; labels are named."""
    values = view.block(name, start, stop)
    if kept is not None:
        values = values[kept]
    if name == "label":
        assert view.labels is not None
        codes, places = np.unique(values, return_inverse=True)
        return pa.array([view.labels.name(int(code)) for code in codes], pa.string()).take(pa.array(places))
    there = present(name, values)
    return pa.array(values, mask=None if there is None else ~there)
