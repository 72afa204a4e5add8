"""The files of a shard's journal: what is in them, and which of them count.

    <folder>/<number of the first record, 16 digits>-<stamp>-<crc32 of the file, 8 hex digits>.arrow
    <folder>/base-<stamp>.json     where the journal starts over, see `JournalFolder.write_base`

Records are numbered from 1. A segment's name vouches for its bytes. Each is an Arrow IPC file of the columns `kind`
(text) and `payload` (bytes, opaque here).

A shard may have had several writers one after the other, each with a stamp higher than the one before, see terms.py.
Where a writer begins, what those before it wrote ends: records of theirs with its first number or a higher one were
never acknowledged, and are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import zlib
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import fs

from es_service import errors
from es_service.storage import arrow_files, files, sealed
from es_service.storage.terms import NOBODY, Term

__all__ = ["FORMAT", "JournalFolder", "Record", "Segment", "encode_segment", "read_segment"]

FORMAT = 1
_SCHEMA = pa.schema([("kind", pa.string()), ("payload", pa.binary())])
_STAMP = r"[0-9]{8}-[0-9a-f]{8}"
_NAME = re.compile(rf"([0-9]{{16}})-(?:({_STAMP})-)?([0-9a-f]{{8}})\.arrow")  # no stamp: of the format before
_MOST_BYTES, _MOST_RECORDS = 256 << 20, 1 << 21  # of a segment: twice what is ever kept for one, as small reports
_BASE = re.compile(rf"base(?:-({_STAMP}))?\.json")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One entry of a shard's journal.

    Attributes:
        number: counts the shard's records from 1.
        kind: format of the payload.
        payload: of the record.
    """

    number: int
    kind: str
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A file of the journal: the number of its first record, its writer's stamp, and its path."""

    first: int
    stamp: str
    path: str


def encode_segment(kinds: list[str], payloads: list[bytes]) -> pa.Buffer:
    """Return the bytes of a segment."""
    columns = [pa.array(kinds, pa.string()), pa.array(payloads, pa.binary())]
    return arrow_files.encode(pa.table(columns, schema=_SCHEMA.with_metadata({"format": str(FORMAT)})))


def _segments(infos: list[fs.FileInfo]) -> list[Segment]:
    named = [(info.path, _NAME.fullmatch(info.base_name)) for info in infos]
    return sorted(Segment(int(found[1]), found[2] or "", path) for path, found in named if found)


def _end(stamp: str, segments: list[Segment]) -> float:
    """Return the number before which the records of a writer count: there a later one begins."""
    return min((later.first for later in segments if later.stamp > stamp), default=float("inf"))


def _that_count(segments: list[Segment]) -> list[list[Segment]]:
    """Return the segments that hold a record that counts, in order; those with the same first record together."""
    ends = {stamp: _end(stamp, segments) for stamp in {segment.stamp for segment in segments}}
    counting = [segment for segment in segments if segment.first < ends[segment.stamp]]
    return [list(same) for _, same in itertools.groupby(counting, lambda segment: segment.first)]


def read_segment(filesystem: fs.FileSystem, segment: Segment) -> list[Record]:
    """Return the records of one segment.

    Raises:
        StorageError: it is damaged, or of a newer format.
    """
    found = _NAME.fullmatch(segment.path.rpartition("/")[2])
    data = files.read_bytes(filesystem, segment.path, _MOST_BYTES)
    if found is None or zlib.crc32(data) != int(found[3], 16):
        raise errors.StorageError(f"{segment.path} is damaged: its checksum is not the one in its name")

    def check(schema: pa.Schema) -> None:
        version = (schema.metadata or {}).get(b"format", b"").decode(errors="replace")
        sealed.check_format(version, segment.path, (str(FORMAT),))
        if not schema.equals(_SCHEMA):
            raise errors.StorageError(f"{segment.path} is not a segment of a journal: {schema.names}")

    table = arrow_files.read_table(data, segment.path, check, most_rows=_MOST_RECORDS, full=True)
    kinds, payloads = table.column("kind").to_pylist(), table.column("payload").to_pylist()
    if None in kinds or None in payloads:
        raise errors.StorageError(f"{segment.path} is damaged: it holds nulls")
    return [
        Record(segment.first + place, kind, payload)
        for place, (kind, payload) in enumerate(zip(kinds, payloads, strict=True))
    ]


def _read_longest(filesystem: fs.FileSystem, same: list[Segment]) -> list[Record]:
    """Return the records of the longest of some segments that begin alike; raise where none of them can be read."""
    found: list[list[Record]] = []
    failures: list[errors.StorageError] = []
    for segment in same:
        try:
            found.append(read_segment(filesystem, segment))
        except errors.StorageError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return max(found, key=len)


class JournalFolder:
    """The files of one shard's journal.

    Args:
        filesystem: that the run is on.
        path: of the folder, which need not be there.
        term: this writer's claim, with which it may write.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, term: Term | None = None) -> None:
        self.filesystem, self.path, self.term = filesystem, path, term

    @property
    def _stamp(self) -> str:
        return NOBODY if self.term is None else self.term.stamp

    def segments(self) -> list[Segment]:
        """Return all segments, those that do not count too, in order."""
        return _segments(files.list_folder(self.filesystem, self.path))

    def first_records(self) -> list[int]:
        """Return the numbers of the first records of all segments, ascending."""
        return [segment.first for segment in self.segments()]

    def records(self, after: int) -> Iterator[Record]:
        """Yield the records numbered above `after`, in order.

        A last segment that is damaged is left out, with a warning: it is what a torn write leaves behind.

        Raises:
            StorageError: a segment before the last is damaged, or one is missing.
        """
        segments = self.segments()
        groups = _that_count(segments)
        covered = sum(behind[0].first <= after + 1 for behind in groups[1:])
        needed, expected = groups[covered:], after + 1
        for same in needed:
            try:
                records = _read_longest(self.filesystem, same)
            except errors.StorageError as error:
                if same is not needed[-1]:
                    raise
                _log.warning("%s; it is the last one, so what it held is left out", error)
                return
            if same[0].first > expected:
                raise errors.StorageError(
                    f"{self.path} lacks the records {expected} to {same[0].first - 1}: a segment of the journal is "
                    "missing"
                )
            end = _end(same[0].stamp, segments)
            for record in records:
                if expected <= record.number < end:
                    yield record
                    expected = record.number + 1

    def write(self, first: int, data: pa.Buffer) -> None:
        """Write a segment that begins with record number `first`.

        Raises:
            StorageError: it cannot be written.
            RunExistsError: another writer has claimed the folder, so that the segment does not count.
        """
        files.make_folder(self.filesystem, self.path)
        path = f"{self.path}/{first:016d}-{self._stamp}-{zlib.crc32(data):08x}.arrow"
        files.write_atomically(self.filesystem, path, data)
        if self.term is not None:
            self.term.check()

    def drop(self, upto: int) -> None:
        """Delete the segments all of whose records are numbered at most `upto`, or do not count; the newest stays."""
        segments = self.segments()
        groups = _that_count(segments)
        kept = {
            segment
            for same, behind in itertools.zip_longest(groups, groups[1:])
            if behind is None or behind[0].first > upto + 1
            for segment in same
        }
        for segment in segments:
            if segment not in kept:
                with files.storage_errors("delete", segment.path):
                    self.filesystem.delete_file(segment.path)

    def set_aside(self, after: int) -> list[str]:
        """Rename the segments that begin behind record `after`, which cannot be used; return their new names."""
        aside = []
        for segment in self.segments():
            if segment.first > after:
                with files.storage_errors("rename", segment.path):
                    self.filesystem.move(segment.path, f"{segment.path}.damaged")
                aside.append(f"{segment.path}.damaged")
        return aside

    def write_base(self, finished_epochs: int, number: int) -> None:
        """Note that the journal starts over behind record `number`, from a snapshot or, for 0, an empty table."""
        files.make_folder(self.filesystem, self.path)
        base = {"format": FORMAT, "finished_epochs": finished_epochs, "journal": number}
        files.write_json(self.filesystem, f"{self.path}/base-{self._stamp}.json", sealed.seal(base))

    def base(self, finished_epochs: int) -> int | None:
        """Return the number of `write_base`, None where the journal did not start over at this snapshot.

        As a segment, a base does not count where a later writer started before its number.
        """
        infos = files.list_folder(self.filesystem, self.path)
        segments = _segments(infos)
        bases = sorted((found[1] or "", info.path) for info in infos if (found := _BASE.fullmatch(info.base_name)))
        for stamp, path in reversed(bases):
            base = sealed.check(files.read_json(self.filesystem, path), path)
            number = base.get("journal")
            if isinstance(number, int) and number < _end(stamp, segments):
                return number if base.get("finished_epochs") == finished_epochs else None
        return None
