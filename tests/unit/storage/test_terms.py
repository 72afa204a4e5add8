"""A writer that is frozen anywhere between its looks and its writes cannot mix with its successor."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from es_service import errors
from es_service.selection.run import RunState
from es_service.selection.table import ScoreTable
from es_service.storage import journal, ownership, segments, terms
from es_service.storage.files import register_filesystem
from es_service.storage.runs import RunStorage

LOCAL = fs.LocalFileSystem()


class Freezing(fs.FileSystemHandler):
    """A local filesystem that freezes whoever comes with the `at`-th operation, until it is let go."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.frozen, self.let_go = threading.Event(), threading.Event()

    def _step(self) -> None:
        if self.at is not None:
            self.at -= 1
            if self.at < 0:
                self.at = None
                self.frozen.set()
                assert self.let_go.wait(60)

    def get_type_name(self) -> str:
        return "freezing"

    def normalize_path(self, path: str) -> str:
        return LOCAL.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> Any:
        self._step()
        return LOCAL.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        self._step()
        return LOCAL.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._step()
        LOCAL.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._step()
        LOCAL.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._step()
        LOCAL.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._step()
        LOCAL.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        self._step()
        return LOCAL.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self._step()
        return LOCAL.open_input_file(path)

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> Any:
        self._step()
        return LOCAL.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: dict[str, str]) -> Any:
        raise NotImplementedError


def frozen_at_each_operation(act: Callable[[fs.FileSystem, Freezing, Path], Iterator[None]], folder: Path) -> int:
    """Run `act` with a freeze at one operation after the other, until none is left; return how many there were.

    `act` sets the operation that its folder is named after, yields once that is frozen in a thread of its own, or is
    done, and goes on.
    """
    for at in itertools.count():
        handler, place = Freezing(), folder / str(at)
        place.mkdir()
        steps = act(fs.PyFileSystem(handler), handler, place)
        next(steps)
        was_frozen = handler.frozen.is_set()
        next(steps, None)
        if not was_frozen:
            return at
    raise AssertionError


def begun(handler: Freezing, work: Callable[[], None]) -> tuple[threading.Thread, list[Exception]]:
    """Start something in a thread; return once it is frozen or has ended."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not handler.frozen.wait(0.005):
        pass
    return thread, failures


def payloads(filesystem: fs.FileSystem, folder: str) -> list[bytes]:
    return [record.payload for record in segments.JournalFolder(filesystem, folder).records(0)]


def test_a_frozen_writer_of_a_journal(tmp_path: Path) -> None:
    acknowledged = set()

    def act(slow: fs.FileSystem, handler: Freezing, place: Path) -> Iterator[None]:
        run, folder = str(place), f"{place}/journal/0-of-1"
        term = ownership.claim_journal(slow, run, "0-of-1")
        old = journal.Journal(segments.JournalFolder(slow, folder, term), 0, every_s=0.01)
        old.append("reports", b"1 of the first")
        old.flush()

        def write() -> None:
            old.append("reports", b"2 of the first")
            old.append("reports", b"3 of the first")
            old.flush()

        handler.at = int(place.name)
        thread, failures = begun(handler, write)
        yield
        claim = ownership.claim_journal(LOCAL, run, "0-of-1")
        found = payloads(LOCAL, folder)
        was_acknowledged = not thread.is_alive() and not failures
        assert found[:1] == [b"1 of the first"]
        if was_acknowledged:
            assert found == [b"1 of the first", b"2 of the first", b"3 of the first"]
        acknowledged.add(was_acknowledged)
        new = journal.Journal(segments.JournalFolder(LOCAL, folder, claim), len(found), every_s=0.01)
        for number in range(3):
            new.append("reports", b"%d of the second" % number)
            new.flush()
        new.close()
        handler.let_go.set()
        thread.join()
        if not was_acknowledged:
            assert isinstance(failures[0], errors.StorageError)
            assert "taken over" in str(failures[0])
        old.close()
        ownership.claim_journal(LOCAL, run, "0-of-1")
        expected = [*found, *(b"%d of the second" % number for number in range(3))]
        assert payloads(LOCAL, folder) == expected
        segments.JournalFolder(LOCAL, folder).drop(0)  # what does not count goes, and all that does stays
        assert payloads(LOCAL, folder) == expected

    assert frozen_at_each_operation(act, tmp_path) >= 3
    assert acknowledged == {False, True}


def state(finished: int, value: float) -> RunState:
    records = ScoreTable(4).copy_records()
    records["w"] = value
    return RunState(records, finished, tuple(range(finished + 1)))


def test_a_frozen_writer_of_snapshots(tmp_path: Path) -> None:
    """It writes the end of epoch 2 while another takes over, and goes another way from the end of epoch 1."""

    def act(slow: fs.FileSystem, handler: Freezing, place: Path) -> Iterator[None]:
        register_filesystem("freezing", lambda: slow)
        old, new = RunStorage(f"freezing://{place}", "mine"), RunStorage(str(place), "mine")
        os.mkdir(place / "mine")
        old.claim("one")
        old.write_snapshot(state(1, 1.0))
        handler.at = int(place.name)
        thread, failures = begun(handler, lambda: old.write_snapshot(state(2, 2.0)))
        yield
        new.claim("one")
        found = new.snapshots.epochs()
        if not thread.is_alive():
            assert failures == []
            assert found == [1, 2]
        assert found in ([1], [1, 2])
        if found == [1]:
            handler.let_go.set()  # it goes on at once, before the other has written any
            thread.join()
            assert isinstance(failures[0], errors.StorageError)
            assert new.snapshots.epochs() == RunStorage(str(place), "mine").snapshots.epochs() == [1]
            new.write_snapshot(state(2, 7.0))
            assert set(new.snapshots.read(2).records["w"]) == {7.0}
        new.write_snapshot(state(3, 8.0))
        handler.let_go.set()
        thread.join()
        assert new.snapshots.epochs() == [1, 2, 3]
        assert set(new.snapshots.read(2).records["w"]) == {7.0 if found == [1] else 2.0}
        assert set(new.snapshots.read(3).records["w"]) == {8.0}

    assert frozen_at_each_operation(act, tmp_path) >= 8


def test_claims_of_the_same_moment_have_one_winner(tmp_path: Path) -> None:
    """All of them saw the same highest claim before they wrote their own."""
    together, own, outcomes = threading.Barrier(8), threading.local(), []
    terms.Term(LOCAL, str(tmp_path), {})

    class Both(Freezing):
        def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
            infos = LOCAL.get_file_info(selector)
            if not hasattr(own, "has_looked"):
                own.has_looked = True
                together.wait(10)
            return infos

    filesystem = fs.PyFileSystem(Both())

    def claim() -> None:
        try:
            outcomes.append(terms.Term(filesystem, str(tmp_path), {}))
        except errors.RunExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own.has_looked, held = True, []  # this thread, too, looks without waiting for others
    for one in outcomes:
        if one is not None:
            try:
                one.check()
                held.append(one)
            except errors.RunExistsError:
                pass
    assert len(outcomes) == 8
    assert [one.stamp for one in held] == [terms.list_claims(LOCAL, str(tmp_path))[-1]]


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    term = terms.Term(LOCAL, str(tmp_path / "mine" / "owners" / "run"), {})
    term.check()
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(errors.StorageError, match="mine is gone, or files in it are"):
        term.check()


def test_a_snapshot_of_the_format_before_stamps_is_read(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.write_snapshot(state(1, 1.0))
    [folder] = (tmp_path / "mine" / "snapshots").iterdir()
    folder.rename(folder.with_name("00000001"))
    (tmp_path / "mine" / "owners").rename(tmp_path / "elsewhere")
    again = RunStorage(str(tmp_path), "mine")
    assert set(again.snapshots.read(1).records["w"]) == {1.0}
    again.claim("one")
    assert again.snapshots.epochs() == [1]
    again.write_snapshot(state(2, 2.0))
    assert again.snapshots.epochs() == [1, 2]
    assert np.array_equal(again.snapshots.read(1).records["w"], np.full(4, 1.0, dtype=np.float32))


def test_a_run_whose_claims_are_lost_is_taken_over_all_the_same(tmp_path: Path) -> None:
    """As somebody may copy it: what is written from then on is newer than what is there."""
    for generation in range(6):  # tokens are random
        storage = RunStorage(str(tmp_path), f"mine-{generation}")
        storage.claim("one")
        for finished in (1, 2, 3):
            storage.write_snapshot(state(finished, 1.0))
        shutil.rmtree(tmp_path / storage.run / "owners")
        again = RunStorage(str(tmp_path), storage.run)
        again.claim("two")
        assert again.snapshots.epochs() == [1, 2, 3]
        again.write_snapshot(state(2, 7.0))  # the run went back
        assert again.snapshots.epochs() == [1, 2]
        assert set(again.snapshots.read(2).records["w"]) == {7.0}
        assert len(list((tmp_path / storage.run / "snapshots").iterdir())) == 2
