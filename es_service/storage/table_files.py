"""A score table as an Arrow IPC file: of a snapshot, of a checkpoint, or on its way to another process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.selection.shards import Shard
from es_service.selection.table import SCHEMA, is_table_schema, records_to_arrow
from es_service.storage import arrow_files, files

__all__ = ["decode_table", "encode_table", "most_bytes", "write_table"]

_LEAST_ROW_BYTES, _MOST_ROW_BYTES, _HEAD_BYTES = 40, 64, 1 << 16  # of a file: a row, and what is not rows


def encode_table(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC file."""
    data: bytes = arrow_files.encode(table).to_pybytes()
    return data


def decode_table(source: pa.Buffer | bytes, what: str, most_rows: int | None = None) -> pa.Table:
    """Return the table of an Arrow IPC file; what is mapped stays mapped.

    Args:
        source: its bytes.
        what: it is, for errors.
        most_rows: that it can have; None for as many as there are bytes for.

    Raises:
        StorageError: it is damaged, or no file of our schema.
    """

    def check(schema: pa.Schema) -> None:
        if not is_table_schema(schema):
            raise errors.StorageError(f"{what} has columns {schema.names}, expected {SCHEMA.names}")

    most_rows = len(source) // _LEAST_ROW_BYTES if most_rows is None else most_rows
    return arrow_files.read_table(source, what, check, most_rows=most_rows)


def most_bytes(num_rows: int) -> int:
    """Return the most bytes that a file of so many rows of a table can have."""
    return _HEAD_BYTES + num_rows * _MOST_ROW_BYTES


class _Counted:
    """A file that is being written, with the size and the sha256 of what went into it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        num_bytes = memoryview(data).nbytes
        self.digest.update(data)
        self._file.write(data)
        self.size += num_bytes
        return num_bytes

    def flush(self) -> None:
        pass  # the opener closes the file


def write_table(filesystem: fs.FileSystem, path: str, records: NDArray[np.void], shard: Shard) -> dict[str, Any]:
    """Write the rows of a shard, in the bytes of `encode_table`; return their number ("bytes") and "sha256"."""
    table = records_to_arrow(records, shard)
    with files.new_file(filesystem, path) as file:
        counted = _Counted(file)
        with pa.ipc.new_file(pa.PythonFile(counted, mode="w"), table.schema) as writer:
            writer.write_table(table)
    return {"bytes": counted.size, "sha256": counted.digest.hexdigest()}
