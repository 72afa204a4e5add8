"""A snapshot is written in the background: what goes on meanwhile, what waits, and what comes of an end in the middle.

No Ray here: servers are objects on a filesystem whose operations can be held.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty_files
import numpy as np
import pytest
from test_files import GENERATION, Rank, serve, table_of
from test_files import _ended_servers as _ended_servers
from test_files import undisturbed as undisturbed

from es_service import errors
from es_service.actors.score_server import ScoreServer
from es_service.selection.table import records_to_arrow
from es_service.storage import runs
from es_service.storage.table_files import encode_table

PART = r"/snapshots/.*/shard-"
PLACE = r"/snapshots/.*/manifest\.json$"


@pytest.fixture
def held(folder: Path) -> Iterator[Callable[[str, str], ScoreServer]]:
    """Make a server whose next matching operation waits, at the latest until the test ends."""
    faulty_files.register()

    def make(operation: str, path: str) -> ScoreServer:
        faulty_files.break_at(folder, operation, path, do="hold")
        return serve(f"faulty://{folder}")

    yield make
    faulty_files.let_go(folder)


def on_storage(folder: Path) -> runs.RunStorage:
    return runs.RunStorage(str(folder), "mine")


def begun(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.usefixtures("held")
def test_an_epoch_goes_on_while_the_snapshot_before_it_is_written(folder: Path, undisturbed: bytes) -> None:
    """All of it but its end, which waits; the snapshot has what the table was at the epoch's end."""
    rank = Rank(serve(f"faulty://{folder}"))
    faulty_files.break_at(folder, "list", r"/snapshots$", do="hold")  # as the first thing of all
    server = rank.server
    rank.train(0)
    before = table_of(server)
    share = rank.open(1)
    for step in range(-(-share.ids.size // 32)):
        rank.step(share, 1, step)
    assert table_of(server) != before
    assert on_storage(folder).snapshots.newest() == 0
    closing = begun(lambda: rank.close(1))
    closing.join(0.3)
    assert closing.is_alive()
    faulty_files.let_go(folder)
    closing.join(30.0)
    assert not closing.is_alive()
    assert encode_table(records_to_arrow(on_storage(folder).snapshots.read(1).records)) == before
    rank.train(2)
    assert table_of(server) == undisturbed
    assert server.stored_epochs() == 3
    assert encode_table(on_storage(folder).table()) == undisturbed


@pytest.mark.parametrize(("operation", "path"), [("write", PART), ("move", PLACE)])
def test_a_server_that_ends_before_a_snapshot_is_in_place_comes_back_from_the_one_before(
    operation: str,
    path: str,
    held: Callable[[str, str], ScoreServer],
    folder: Path,
    tmp_path: Path,
    undisturbed: bytes,
) -> None:
    """Its files as they are in the middle, an epoch and a half behind the last snapshot."""
    server = held(operation, path)
    rank = Rank(server)
    rank.train(0)
    share = rank.open(1)
    for step in range(5):
        rank.step(share, 1, step)
    server.settle(0, GENERATION, rank.seq)
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("fault.json", "held", "owners"))
    assert on_storage(tmp_path / "copy").snapshots.epochs() == []
    second = serve(tmp_path / "copy")
    assert table_of(second) == table_of(server)
    rank.server = second
    for step in range(5, -(-share.ids.size // 32)):
        rank.step(share, 1, step)
    rank.close(1)
    rank.train(2)
    assert table_of(second) == undisturbed
    assert second.stored_epochs() == 3
    assert on_storage(tmp_path / "copy").snapshots.epochs() == [2, 3]
    second.finish()
    assert on_storage(tmp_path / "copy").history.epochs() == [0, 1, 2]


def test_whoever_needs_the_files_waits_for_them(held: Callable[[str, str], ScoreServer], folder: Path) -> None:
    """Going back, another generation, the end of the server, and whoever asks what is on storage."""
    for number, act in enumerate(
        [
            lambda server: server.stored_epochs(),
            lambda server: server.rewind(0, GENERATION, 1, 0, (0,), "", None),
            lambda server: Rank(server, "0d" * 16),
            lambda server: server.finish(),
        ]
    ):
        shutil.rmtree(folder / "mine", ignore_errors=True)
        server = held("move", PLACE)
        Rank(server).train(0)
        waiting = begun(lambda server=server, act=act: act(server))  # type: ignore[misc]
        waiting.join(0.2)
        assert waiting.is_alive(), number
        assert on_storage(folder).snapshots.newest() == 0
        faulty_files.let_go(folder)
        waiting.join(30.0)
        assert not waiting.is_alive()
        server.finish()
        assert on_storage(folder).snapshots.newest() == (0 if number == 1 else 1)


def test_a_checkpoint_waits_for_nothing_and_is_the_table(held: Callable[[str, str], ScoreServer], folder: Path) -> None:
    server = held("write", PART)
    Rank(server).train(0)
    data, finished, _, _ = server.state()
    assert (data, finished, on_storage(folder).snapshots.newest()) == (table_of(server), 1, 0)
    faulty_files.let_go(folder)
    assert server.stored_epochs() == 1
    path = next((folder / "mine" / "snapshots").glob("00000001-*")) / "shard-0.arrow"
    assert path.read_bytes() == data


def test_a_snapshot_that_cannot_be_written_is_said_with_the_next_one(folder: Path, undisturbed: bytes) -> None:
    faulty_files.register()
    faulty_files.break_at(folder, "write", PART, do="full")
    server = serve(f"faulty://{folder}")
    rank = Rank(server)
    rank.train(0)
    with pytest.raises(errors.StorageError, match="No space left on device"):
        server.stored_epochs()
    assert "No space left on device" in server.stats()["storage_failure"]
    faulty_files.mend(folder)
    with pytest.raises(errors.StorageError, match="No space left on device"):
        rank.train(1)
    assert server.stored_epochs() == 2  # which puts it right
    assert server.stats()["storage_failure"] is None
    rank.train(2)
    assert table_of(server) == undisturbed
    server.finish()
    storage = on_storage(folder)
    assert storage.history.epochs() == [0, 1, 2]  # of those, the first two were not told apart by a snapshot
    rows = [storage.history.epoch(epoch) for epoch in range(3)]
    assert [one.num_rows for one in rows] == [600, 420, 420]
    visits = np.bincount(np.concatenate([one.column("id") for one in rows]), minlength=600)
    assert visits.tolist() == storage.table().column("visits").to_pylist()
