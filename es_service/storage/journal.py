"""The journal of a shard: what it was told, in order, so that it can be told again after a restart.

    <folder>/<number of the first record, 16 digits>-<crc32 of the file, 8 hex digits>.arrow

Records are numbered from 1. They gather in memory, and a thread writes them as one segment every second, sooner where
many have gathered or somebody waits. A segment is written beside and renamed into place, and its name vouches for
its bytes. Each is an Arrow IPC file of the columns `kind` (text) and `payload` (bytes, none of this module's business).

Lifecycle     ok ⇄ failing (a segment cannot be written: tried again, everything kept) → gave up (too much is kept)
              → gave up, keeping what comes behind a `mark` → ok again with `skip_to`, once a snapshot holds what was
              never written
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyarrow import fs

from es_service import errors
from es_service.storage import arrow_files, files

__all__ = [
    "FORMAT",
    "Journal",
    "Record",
    "Segment",
    "drop_segments",
    "list_segments",
    "read_records",
    "read_segment",
    "set_aside",
]

FORMAT = 1
_SCHEMA = pa.schema([("kind", pa.string()), ("payload", pa.binary())])
_NAME = re.compile(r"([0-9]{16})-([0-9a-f]{8})\.arrow")
_MOST_BYTES, _MOST_RECORDS = 256 << 20, 1 << 21  # of a segment: twice what is ever kept for one, as small reports
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One thing a shard was told.

    Attributes:
        number: counts the shard's records from 1.
        kind: says how to read the payload.
        payload: of the record.
    """

    number: int
    kind: str
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A file of the journal: the number of its first record, and its path."""

    first: int
    path: str


class Journal:
    """The writing end. Any thread may call it; one thread of its own writes.

    Args:
        filesystem: to write on.
        folder: of this shard's segments; made with the first one.
        last: number of the last record that is there already, 0 for none.
        every_s: seconds after which what has gathered is written.
        segment_bytes: so much is written at once.
        max_bytes: that may be kept in memory while segments cannot be written.
        allowed: raises StorageError where this writer may not write any more.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        last: int,
        *,
        every_s: float = 1.0,
        segment_bytes: int = 8 << 20,
        max_bytes: int = 128 << 20,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self._filesystem, self._folder = filesystem, folder
        self._every_s, self._segment_bytes, self._max_bytes = every_s, segment_bytes, max_bytes
        self._allowed = allowed
        self._kinds: list[str] = []
        self._payloads: list[bytes] = []
        self._num_bytes = 0
        self._last = self._durable = last
        self._failure: errors.StorageError | None = None
        self._gave_up = self._hurry = self._closed = False
        self._mark: int | None = None  # once it gave up: records behind this one are kept again
        self._num_tries = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="es-service-journal", daemon=True)
        self._thread.start()

    @property
    def last(self) -> int:
        """Number of the newest record."""
        return self._last

    @property
    def durable(self) -> int:
        """Number of the newest record that is on storage, with all before it."""
        return self._durable

    @property
    def failure(self) -> errors.StorageError | None:
        """Why the last segment could not be written; None while all is well."""
        return self._failure

    def append(self, kind: str, payload: bytes) -> int:
        """Add a record; return its number. Never waits; it is durable about a second later."""
        with self._changed:
            self._last += 1
            if not self._gave_up or self._mark is not None:
                self._kinds.append(kind)
                self._payloads.append(payload)
                self._num_bytes += len(payload)
                if self._num_bytes > self._max_bytes:
                    self._give_up()
                elif self._num_bytes >= self._segment_bytes:
                    self._changed.notify_all()
            return self._last

    def flush(self) -> None:
        """Return once every record so far is on storage; StorageError where it cannot be written."""
        with self._changed:
            wanted, tries = self._last, self._num_tries
            while self._durable < wanted:
                if self._gave_up or (self._num_tries > tries and self._failure is not None):
                    assert self._failure is not None
                    raise self._failure
                if self._closed:
                    raise errors.StorageError("the journal was closed before all of it was written")
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(self._every_s)

    def mark(self) -> int:
        """Return the number of the newest record, up to which a snapshot will hold what the records did.

        A journal that gave up keeps what comes from now on, to write it once `skip_to` says that the snapshot is there.
        """
        with self._changed:
            if self._gave_up:
                self._kinds, self._payloads, self._num_bytes, self._mark = [], [], 0, self._last
            return self._last

    def skip_to(self, number: int) -> None:
        """Take all records up to `number` for durable: a snapshot holds what they did."""
        with self._changed:
            num = len(self._kinds) - (self._last - number)  # of those in memory, at the front
            if num > 0:
                self._num_bytes -= sum(map(len, self._payloads[:num]))
                del self._kinds[:num], self._payloads[:num]
            if self._gave_up and number in (self._mark, self._last):
                self._gave_up, self._failure, self._mark = False, None, None
            if not self._gave_up:
                self._durable = max(self._durable, number)
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left, if that works, and end the thread."""
        with contextlib.suppress(errors.StorageError):
            self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _give_up(self) -> None:
        _log.error(
            "the journal in %s cannot be written (%s) and %d MB of it wait: it is dropped, so that after a crash the "
            "run goes back to its last finished epoch", self._folder, self._failure, self._num_bytes >> 20,
        )  # fmt: skip
        self._failure = self._failure or errors.StorageError(f"the journal in {self._folder} is not written in time")
        self._kinds, self._payloads, self._num_bytes, self._gave_up, self._mark = [], [], 0, True, None
        self._changed.notify_all()

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._hurry or self._num_bytes >= self._segment_bytes,
                    max(0.0, due - time.monotonic()),
                )
                if self._closed:
                    return
                self._hurry = False
                num = 0 if self._gave_up else len(self._kinds)  # else there would be a gap before them
                kinds, payloads = self._kinds[:num], self._payloads[:num]
                first = self._last - len(kinds) + 1
            failure = self._written(first, kinds, payloads)
            due = time.monotonic() + self._every_s
            with self._changed:
                self._num_tries += 1
                if failure is None and kinds and not self._gave_up:
                    num = max(
                        0, first + len(kinds) - (self._last - len(self._kinds) + 1)
                    )  # less what `skip_to` dropped
                    self._num_bytes -= sum(map(len, self._payloads[:num]))
                    del self._kinds[:num], self._payloads[:num]
                    self._durable = max(self._durable, first + len(kinds) - 1)
                if not self._gave_up:
                    self._failure = failure
                self._changed.notify_all()
                if failure is not None and not self._closed:
                    self._changed.wait_for(lambda: self._closed, self._every_s)  # a full disk stays full for a while

    def _written(self, first: int, kinds: list[str], payloads: list[bytes]) -> errors.StorageError | None:
        """Write a segment; return what went wrong."""
        try:
            self._allowed()
            if kinds:
                files.make_folder(self._filesystem, self._folder)
                data = _encode(kinds, payloads)
                path = f"{self._folder}/{first:016d}-{zlib.crc32(data):08x}.arrow"
                files.write_atomically(self._filesystem, path, data)
        except errors.StorageError as error:
            if self._failure is None:
                _log.warning("%s; what was reported meanwhile is kept in memory and tried again", error)
            return error
        return None


def _encode(kinds: list[str], payloads: list[bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    table = pa.record_batch([pa.array(kinds, pa.string()), pa.array(payloads, pa.binary())], schema=_SCHEMA)
    with pa.ipc.new_file(sink, _SCHEMA.with_metadata({"format": str(FORMAT)})) as writer:
        writer.write_batch(table)
    return sink.getvalue()


def list_segments(filesystem: fs.FileSystem, folder: str) -> list[Segment]:
    """Return the segments of a journal in order; none where there is no such folder."""
    with files.storage_errors("list", folder):
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(Segment(int(found[1]), info.path) for info in infos if (found := _NAME.fullmatch(info.base_name)))


def read_segment(filesystem: fs.FileSystem, segment: Segment) -> list[Record]:
    """Return the records of one segment.

    Raises:
        StorageError: it is damaged, or of a newer format.
    """
    found = _NAME.fullmatch(segment.path.rpartition("/")[2])
    data = files.read_bytes(filesystem, segment.path, _MOST_BYTES)
    if found is None or zlib.crc32(data) != int(found[2], 16):
        raise errors.StorageError(f"{segment.path} is damaged: its checksum is not the one in its name")

    def check(schema: pa.Schema) -> None:
        version = (schema.metadata or {}).get(b"format", b"").decode(errors="replace")
        if version != str(FORMAT):
            raise errors.StorageError(
                f"{segment.path} has format {version!r}, this version reads {FORMAT}: upgrade es_service"
            )
        if not schema.equals(_SCHEMA):
            raise errors.StorageError(f"{segment.path} is no segment of a journal: {schema.names}")

    table = arrow_files.read_table(data, segment.path, check, most_rows=_MOST_RECORDS, full=True)
    kinds, payloads = table.column("kind").to_pylist(), table.column("payload").to_pylist()
    if None in kinds or None in payloads:
        raise errors.StorageError(f"{segment.path} is damaged: it holds nulls")
    return [
        Record(segment.first + place, kind, payload)
        for place, (kind, payload) in enumerate(zip(kinds, payloads, strict=True))
    ]


def read_records(filesystem: fs.FileSystem, folder: str, after: int) -> Iterator[Record]:
    """Yield the records numbered above `after`, in order.

    A last segment that is damaged is left out, with a warning: it is what a torn write leaves behind.

    Raises:
        StorageError: a segment before the last is damaged, or one is missing.
    """
    segments = list_segments(filesystem, folder)
    covered = sum(behind.first <= after + 1 for behind in segments[1:])
    needed, expected = segments[covered:], after + 1
    for segment in needed:
        try:
            records = read_segment(filesystem, segment)
        except errors.StorageError as error:
            if segment is not needed[-1]:
                raise
            _log.warning("%s; it is the last one, so what it held is left out", error)
            return
        if segment.first > expected:
            raise errors.StorageError(
                f"{folder} lacks the records {expected} to {segment.first - 1}: a segment of the journal is missing"
            )
        for record in records:
            if record.number >= expected:
                yield record
                expected = record.number + 1


def drop_segments(filesystem: fs.FileSystem, folder: str, upto: int) -> None:
    """Delete the segments all of whose records are numbered at most `upto`; the newest one stays in any case."""
    segments = list_segments(filesystem, folder)
    for segment, behind in itertools.pairwise(segments):
        if behind.first <= upto + 1:
            with files.storage_errors("delete", segment.path):
                filesystem.delete_file(segment.path)


def set_aside(filesystem: fs.FileSystem, folder: str, after: int) -> list[str]:
    """Rename the segments that begin behind record `after`, which nobody will read; return what they are called now."""
    aside = []
    for segment in list_segments(filesystem, folder):
        if segment.first > after:
            with files.storage_errors("rename", segment.path):
                filesystem.move(segment.path, f"{segment.path}.damaged")
            aside.append(f"{segment.path}.damaged")
    return aside
