"""Arrow IPC data from untrusted writers: what it claims is checked before any of it takes memory.

A file of a few KB can claim gigabytes: by buffers that are compressed, or by one batch that is listed a million times.
So the footer and the head of every batch are read first; a batch may be compressed only where we write such, and then
only to as many bytes as its rows can need. What is not compressed stays where it lies: it costs what the file costs.

    Footer       2 dictionaries, 3 recordBatches: [Block]        Block   offset int64 | metadata int32 | body int64
    Message      1 header_type (3 for a batch), 2 header
    RecordBatch  0 length, 1 nodes, 2 buffers: [Buffer], 3 compression       Buffer   offset int64 | length int64

These are FlatBuffers: a table begins with the distance to its list of fields, which has the offset of each field.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from es_service import errors

__all__ = ["encode", "open_checked", "open_table", "read_stream", "read_table"]

_MAGIC = b"ARROW1"
_BATCH = 3
_MOST_BATCHES = 10_000
_SLACK = 256  # bytes that a buffer may be longer than its rows need: it is padded
_UNCOMPRESSED = -1


class _Flat:
    """A table of FlatBuffers: its fields by number. IndexError or struct.error where the bytes are none."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - struct.unpack_from("<i", data, place)[0]
        self._num_fields = (struct.unpack_from("<H", data, self._fields)[0] - 4) // 2
        if not 0 <= self._fields < len(data):
            raise IndexError("a table of fields outside the data")

    @classmethod
    def root(cls, data: memoryview) -> _Flat:
        """Return the outermost table."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _at(self, field: int) -> int | None:
        offset = (
            0 if field >= self._num_fields else struct.unpack_from("<H", self._data, self._fields + 4 + 2 * field)[0]
        )
        return self._place + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """Return a number, 0 where it is left out."""
        at = self._at(field)
        return 0 if at is None else int(struct.unpack_from("<" + kind, self._data, at)[0])

    def table(self, field: int) -> _Flat | None:
        """Return a table nested in this one."""
        at = self._at(field)
        return None if at is None else _Flat(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def structs(self, field: int, layout: str) -> list[tuple[int, ...]]:
        """Return a list of numbers side by side."""
        at = self._at(field)
        if at is None:
            return []
        begin = at + struct.unpack_from("<I", self._data, at)[0]
        num, size = struct.unpack_from("<I", self._data, begin)[0], struct.calcsize("<" + layout)
        if begin + 4 + num * size > len(self._data):
            raise IndexError(f"a list of {num:,} entries in {len(self._data):,} bytes")
        return [struct.unpack_from("<" + layout, self._data, begin + 4 + k * size) for k in range(num)]


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, IndexError, OSError, ValueError, struct.error) as error:
        raise errors.StorageError(f"{what} is damaged: {error}") from error


def _check_batch(head: memoryview, body: memoryview, what: str, row_bytes: int | None) -> int:
    """Return the rows of a batch; StorageError where it may not be compressed, or to more bytes than those need.

    Args:
        head: its message, without the body.
        body: the message's body.
        what: for the error.
        row_bytes: that a row takes at most, where batches may be compressed; else None.
    """
    message = _Flat.root(head)
    batch = message.table(2)
    if message.number(1, "B") != _BATCH or batch is None:
        raise errors.StorageError(f"{what} is damaged: it holds something else than rows where they should be")
    num_rows = batch.number(0, "q")
    if num_rows < 0:
        raise errors.StorageError(f"{what} is damaged: it claims {num_rows:,} rows")
    if batch.table(3) is None:
        return num_rows
    if row_bytes is None:
        raise errors.StorageError(f"{what} is compressed, which es_service never writes there")
    needed = 0
    for offset, length in batch.structs(2, "qq"):
        if length:
            claimed = struct.unpack_from("<q", body, offset)[0]
            needed += max(0, length if claimed == _UNCOMPRESSED else claimed - _SLACK)
    if needed > num_rows * row_bytes:
        raise errors.StorageError(f"{what} is damaged: {num_rows:,} rows cannot take {needed:,} bytes")
    return num_rows


def _checked(data: memoryview, what: str, most_rows: int, row_bytes: int | None) -> None:
    """Raise StorageError where reading a whole file could take more memory than its rows need."""
    if len(data) < 20 or bytes(data[:6]) != _MAGIC or bytes(data[-6:]) != _MAGIC:
        raise errors.StorageError(f"{what} is damaged: it is not an Arrow IPC file, or not the whole of one")
    num = struct.unpack_from("<i", data, len(data) - 10)[0]
    if not 0 < num <= len(data) - 18:
        raise errors.StorageError(f"{what} is damaged: its footer of {num:,} bytes is longer than the file")
    footer = _Flat.root(data[len(data) - 10 - num : len(data) - 10])
    if footer.structs(2, "qi4xq"):
        raise errors.StorageError(f"{what} holds dictionaries, which es_service never writes: write texts as they are")
    blocks, end, num_rows = footer.structs(3, "qi4xq"), 0, 0
    if len(blocks) > _MOST_BATCHES:
        raise errors.StorageError(f"{what} is damaged: it lists {len(blocks):,} batches of rows")
    for begin, head_size, body_size in blocks:
        if begin < end or head_size < 8 or body_size < 0 or begin + head_size + body_size > len(data):
            raise errors.StorageError(f"{what} is damaged: its batches overlap, or end behind its end")
        end = begin + head_size + body_size
        prefix = 8 if bytes(data[begin : begin + 4]) == b"\xff\xff\xff\xff" else 4
        head, body = data[begin + prefix : begin + head_size], data[begin + head_size : end]
        num_rows += _check_batch(head, body, what, row_bytes)
    if num_rows > most_rows:
        raise errors.StorageError(f"{what} claims {num_rows:,} rows, where at most {most_rows:,} can be")


@contextlib.contextmanager
def open_table(
    source: pa.Buffer | bytes,
    what: str,
    check_schema: Callable[[pa.Schema], None],
    *,
    most_rows: int,
    row_bytes: int | None = None,
) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """Open an Arrow IPC file within bounds; whatever goes wrong in the block is that file's damage.

    Args:
        source: its bytes, in memory or mapped.
        what: it is, for errors.
        check_schema: raises StorageError where its columns are not those that were asked for.
        most_rows: that it can have.
        row_bytes: that a row takes at most, where it may be compressed; None where it may not.

    Raises:
        StorageError: it is damaged, something else, or claims more than it can hold.
    """
    with _damage(what):
        buffer = pa.py_buffer(source)
        _checked(memoryview(buffer), what, most_rows, row_bytes)
        with pa.ipc.open_file(pa.BufferReader(buffer)) as reader:
            check_schema(reader.schema)
            yield reader


@contextlib.contextmanager
def open_checked(path: str) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """Open a local file that `open_table` found to be right; what is asked for is read then, by itself."""
    with _damage(path), pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        yield reader


def read_table(
    source: pa.Buffer | bytes,
    what: str,
    check_schema: Callable[[pa.Schema], None],
    *,
    most_rows: int,
    row_bytes: int | None = None,
    full: bool = False,
) -> pa.Table:
    """Return the table of an Arrow IPC file, see `open_table`; what is mapped stays mapped.

    `full`: look at every offset of its texts, which reads all of it. Without, each buffer is as long as its rows need.
    """
    with open_table(source, what, check_schema, most_rows=most_rows, row_bytes=row_bytes) as reader:
        table = reader.read_all()
        table.validate(full=full)
        return table


def read_stream(data: bytes, what: str, check_schema: Callable[[pa.Schema], None]) -> pa.Table:
    """Return the table of an Arrow IPC stream that is not compressed, looked at in full; see `open_table`."""
    with _damage(what):
        messages: Any = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
        for message in messages:
            if message.type == "dictionary":
                raise errors.StorageError(f"{what} is damaged: it holds a dictionary, which es_service never writes")
            if message.type == "record batch":
                _check_batch(memoryview(message.metadata), memoryview(message.body), what, None)
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            check_schema(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
        return table


def encode(table: pa.Table, max_rows: int | None = None, compression: str | None = None) -> pa.Buffer:
    """Return a table, and its schema's metadata, as an Arrow IPC file, in batches of so many rows at most."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_rows)
    return sink.getvalue()
