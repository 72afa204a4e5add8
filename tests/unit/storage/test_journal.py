"""The journal: what is appended comes back in order, or an error says which file is why not."""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from es_service import errors
from es_service.storage import files, segments
from es_service.storage.journal import Journal
from es_service.storage.segments import Record

LOCAL = fs.LocalFileSystem()
LONG_S = 3600.0  # between two writes: nothing is written unless a test asks for it


class Journals:
    """Makes journals that end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = segments.JournalFolder(LOCAL, str(folder / "journal"))
        self._made: list[Journal] = []

    def begin(self, last: int = 0, **options: object) -> Journal:
        made = Journal(self.folder, last, **{"every_s": LONG_S, **options})  # type: ignore[arg-type]
        self._made.append(made)
        return made

    def read(self, after: int = 0) -> list[Record]:
        return list(self.folder.records(after))

    def segments(self) -> list[Path]:
        return [Path(segment.path) for segment in self.folder.segments()]

    def write(self, *sizes: int) -> list[Record]:
        """Write a segment of so many records each; return all records."""
        writer, records = self.begin(), []
        for size in sizes:
            for _ in range(size):
                number = writer.append("reports", os.urandom(20))
                records.append(number)
            writer.flush()
        writer.close()
        assert len(self.segments()) == len(sizes)
        return self.read()

    def close(self) -> None:
        for one in self._made:
            one._every_s = 0.01
            one.close()


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[Journals]:
    made = Journals(tmp_path)
    yield made
    made.close()


def test_what_is_appended_comes_back_in_order(journals: Journals) -> None:
    writer = journals.begin()
    expected = []
    for number in range(1, 8):
        payload = bytes([number]) * number
        assert writer.append("ab"[number % 2], payload) == number
        expected.append(Record(number, "ab"[number % 2], payload))
        if number in (2, 3, 7):
            writer.flush()
            assert writer.durable == writer.last == number
    assert journals.read() == expected
    assert journals.read(after=4) == expected[4:]
    assert journals.read(after=7) == []
    assert [path.name.partition("-")[0] for path in journals.segments()] == [f"{n:016d}" for n in (1, 3, 4)]


def test_nothing_is_durable_before_it_is_written(journals: Journals) -> None:
    writer = journals.begin()
    writer.append("a", b"x")
    assert (writer.last, writer.durable) == (1, 0)
    assert journals.read() == []
    writer.flush()
    assert (writer.last, writer.durable) == (1, 1)


def test_it_is_written_by_itself_within_the_interval_and_when_much_has_gathered(journals: Journals) -> None:
    for options in ({"every_s": 0.01}, {"segment_bytes": 100}):
        writer = journals.begin(last=journals.read()[-1].number if journals.segments() else 0, **options)
        number = writer.append("a", b"x" * 200)
        written = threading.Event()

        def look(writer: Journal = writer, number: int = number, written: threading.Event = written) -> None:
            with writer._changed:
                assert writer._changed.wait_for(lambda: writer.durable >= number, 30.0)
            written.set()

        look()
        assert written.is_set()
        writer.close()
    assert [record.number for record in journals.read()] == [1, 2]


def test_a_journal_goes_on_behind_what_is_there(journals: Journals) -> None:
    records = journals.write(2, 3)
    writer = journals.begin(last=5)
    assert writer.append("state", b"{}") == 6
    writer.flush()
    assert journals.read() == [*records, Record(6, "state", b"{}")]


def test_a_last_segment_cut_at_any_byte_is_left_out(journals: Journals, caplog: pytest.LogCaptureFixture) -> None:
    records = journals.write(2, 2)
    last = journals.segments()[-1]
    whole = last.read_bytes()
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        caplog.clear()
        assert journals.read() == records[:2]
        assert "is damaged" in caplog.text
    last.write_bytes(whole)
    assert journals.read() == records


def test_every_flipped_bit_is_noticed(journals: Journals) -> None:
    journals.write(2, 2)
    first = journals.segments()[0]
    whole = first.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        first.write_bytes(damaged)
        with pytest.raises(errors.StorageError, match=r"is damaged: its checksum is not the one in its name"):
            journals.read()


def test_a_missing_segment_is_noticed(journals: Journals) -> None:
    journals.write(2, 3, 1)
    journals.segments()[1].unlink()
    with pytest.raises(errors.StorageError, match="lacks the records 3 to 5"):
        journals.read()
    assert [record.number for record in journals.read(after=5)] == [6]


@pytest.mark.parametrize("change", ["newer format", "no format", "other columns", "nulls", "not arrow"])
def test_a_file_with_a_good_checksum_and_bad_content_is_refused(journals: Journals, change: str) -> None:
    journals.write(1, 1)
    schema = pa.schema([("kind", pa.string()), ("payload", pa.binary())], metadata={"format": "1"})
    table = pa.table({"kind": ["a"], "payload": [b"x"]}, schema=schema)
    if change == "newer format":
        table = table.replace_schema_metadata({"format": "2"})
    elif change == "no format":
        table = table.replace_schema_metadata(None)
    elif change == "other columns":
        table = table.append_column("more", pa.array([1]))
    elif change == "nulls":
        table = pa.table({"kind": ["a"], "payload": [None]}, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = b"not arrow" if change == "not arrow" else sink.getvalue().to_pybytes()
    journals.segments()[0].unlink()
    path = Path(journals.folder.path) / f"{1:016d}-{zlib.crc32(data):08x}.arrow"
    path.write_bytes(data)
    expected = {"newer format": r"has format '2', this version reads 1: upgrade", "no format": r"has format ''"}
    with pytest.raises(errors.StorageError, match=expected.get(change, r"damaged|not a segment of a journal")):
        journals.read()


def test_segments_that_are_not_needed_are_dropped_and_the_newest_stays(journals: Journals) -> None:
    records = journals.write(2, 2, 2)
    journals.folder.drop(3)
    assert journals.read(after=2) == records[2:]
    journals.folder.drop(99)
    assert [path.name[:16] for path in journals.segments()] == [f"{5:016d}"]


def test_segments_set_aside_are_read_no_more_and_nothing_is_deleted(journals: Journals) -> None:
    records = journals.write(2, 2, 2)
    aside = journals.folder.set_aside(2)
    assert [Path(path).exists() for path in aside] == [True, True]
    assert journals.read() == records[:2]


def test_a_disk_that_is_full_is_tried_again_and_said(journals: Journals, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the folder should be stands for a disk that cannot be written."""
    Path(journals.folder.path).write_text("in the way")
    writer = journals.begin(every_s=0.01)
    with caplog.at_level(logging.WARNING):
        writer.append("a", b"1")
        with pytest.raises(errors.StorageError, match="cannot"):
            writer.flush()
    assert isinstance(writer.failure, errors.StorageError)
    assert writer.durable == 0
    assert caplog.text.count("kept in memory and tried again") == 1
    Path(journals.folder.path).unlink()
    writer.append("a", b"2")
    with writer._changed:
        assert writer._changed.wait_for(lambda: writer.durable == 2, 30.0)
    assert writer.failure is None
    assert [record.payload for record in journals.read()] == [b"1", b"2"]


@pytest.mark.parametrize("fails", [1, 2, 5])
def test_a_segment_that_is_there_though_its_writing_failed_is_not_written_longer(
    journals: Journals, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """The folder cannot be brought to the disk, so nobody knows if the file is there; meanwhile more comes in."""
    sync, left = files.sync_folder, [fails]

    def broken(filesystem: fs.FileSystem, path: str) -> None:
        if path == journals.folder.path and left[0]:
            left[0] -= 1
            raise OSError(24, "Too many open files")
        sync(filesystem, path)

    monkeypatch.setattr(files, "sync_folder", broken)
    writer = journals.begin(every_s=0.01)
    writer.append("a", b"1")
    with pytest.raises(errors.StorageError, match="Too many open files"):
        writer.flush()
    writer.append("a", b"2")
    with writer._changed:
        assert writer._changed.wait_for(lambda: writer.durable == 2, 30.0)
    writer.append("a", b"3")
    writer.flush()
    assert [record.payload for record in journals.read()] == [b"1", b"2", b"3"]
    firsts = [path.name[:16] for path in journals.segments()]
    assert len(firsts) == len(set(firsts))


def test_of_segments_that_begin_alike_the_longest_that_can_be_read_counts(journals: Journals) -> None:
    """As writers of before left them, which wrote a longer one behind an error."""
    short = segments.encode_segment(["a"], [b"1"])
    long = segments.encode_segment(["a", "a", "a"], [b"1", b"2", b"3"])
    behind = segments.encode_segment(["a"], [b"4"])
    Path(journals.folder.path).mkdir()
    for first, data in ((1, short), (1, long), (4, behind)):
        Path(journals.folder.path, f"{first:016d}-{zlib.crc32(data):08x}.arrow").write_bytes(data)
    assert [record.payload for record in journals.read()] == [b"1", b"2", b"3", b"4"]
    assert [record.payload for record in journals.read(after=2)] == [b"3", b"4"]
    Path(journals.folder.path, f"{1:016d}-{zlib.crc32(short):08x}.arrow").write_bytes(b"torn")
    assert [record.payload for record in journals.read()] == [b"1", b"2", b"3", b"4"]


def test_what_is_kept_is_bounded_and_a_snapshot_puts_it_right(journals: Journals) -> None:
    Path(journals.folder.path).write_text("in the way")
    writer = journals.begin(every_s=0.01, max_bytes=100)
    writer.append("a", b"x" * 60)
    with pytest.raises(errors.StorageError):
        writer.flush()
    for _ in range(5):
        writer.append("a", b"x" * 60)
    assert sum(map(len, writer._payloads)) <= 100
    Path(journals.folder.path).unlink()
    with pytest.raises(errors.StorageError):
        writer.flush()  # there is a hole now
    writer.skip_to(6)  # but a snapshot holds what was to be in it
    assert (writer.durable, writer.failure) == (6, None)
    writer.append("a", b"y")
    writer.flush()
    assert [record.number for record in journals.read(after=6)] == [7]


def test_what_comes_while_a_snapshot_is_written_is_kept_once_it_gave_up(journals: Journals) -> None:
    """Not written before the snapshot is there: what is in between would be missing."""
    Path(journals.folder.path).write_text("in the way")
    writer = journals.begin(every_s=0.01, max_bytes=100)
    for _ in range(5):
        writer.append("a", b"x" * 60)
    with pytest.raises(errors.StorageError):
        writer.flush()
    Path(journals.folder.path).unlink()
    assert writer.mark() == 5
    writer.append("a", b"y")
    with pytest.raises(errors.StorageError):
        writer.flush()
    assert (writer.durable, journals.read(after=5)) == (0, [])
    writer.skip_to(5)
    writer.flush()
    assert (writer.durable, writer.failure) == (6, None)
    assert [(record.number, record.payload) for record in journals.read(after=5)] == [(6, b"y")]


def test_skipping_drops_what_waits_up_to_there_only(journals: Journals) -> None:
    writer = journals.begin()
    for number in range(5):
        writer.append("a", bytes([number]))
    writer.skip_to(3)
    assert writer.durable == 3
    writer.flush()
    assert [(record.number, record.payload) for record in journals.read(after=3)] == [(4, b"\3"), (5, b"\4")]


def test_a_writer_that_is_not_allowed_writes_nothing(journals: Journals) -> None:
    def refuse() -> None:
        raise errors.StorageError("another server writes here")

    writer = journals.begin(allowed=refuse, every_s=0.01)
    writer.append("a", b"x")
    with pytest.raises(errors.StorageError, match="another server"):
        writer.flush()
    assert journals.segments() == []


def test_closing_writes_what_is_left_and_ends_the_thread(journals: Journals) -> None:
    before = threading.active_count()
    writer = journals.begin()
    assert threading.active_count() == before + 1
    writer.append("a", b"x")
    writer.close()
    assert threading.active_count() == before
    assert len(journals.read()) == 1
