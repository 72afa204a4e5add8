"""A run that goes back, by reset or a checkpoint: what it did before is in no file that tells of its history.

No Ray here: shards are objects on a filesystem whose operations can be held.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import faulty_files
import numpy as np
import pytest
from numpy.typing import NDArray

from es_service.actors import wire
from es_service.actors.score_server import ScoreServer
from es_service.actors.score_shard import ScoreShard
from es_service.actors.served_run import ServedRun
from es_service.selection.past import BEGINNING, Past
from es_service.selection.run import Caller, RunConfig, Share
from es_service.selection.shards import Shard, pieces
from es_service.storage import runs
from es_service.storage.table_files import encode_table

GENERATION = "0c" * 16
CONFIG = RunConfig(selection=driving.selection_of("es", seed=3), **driving.SHAPE)  # 4 epochs of 600 samples
_shards: list[ScoreShard] = []


@pytest.fixture(autouse=True)
def _ended(folder: Path) -> Iterator[None]:
    faulty_files.register()
    yield
    faulty_files.let_go(folder)
    while _shards:
        _shards.pop().finish()


class Run:
    """A run of one rank over some shards."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count, self.folder, self.caller = count, folder, Caller(0, GENERATION)
        self.shards: list[Any] = [None] * count
        for index in reversed(range(count)):
            self.start(index)
        self.server.join(0, GENERATION, 1, runs.config_to_dict(CONFIG))
        self.seqs = [shard.enter(0, GENERATION) for shard in self.shards]
        self.num_rewinds = 0

    def start(self, index: int) -> None:
        where = (f"faulty://{self.folder}", "mine", runs.config_to_dict(CONFIG))
        self.shards[index] = (
            ScoreShard(ServedRun(*where), index, self.count) if index else ScoreServer(*where, self.count, self._ask)
        )
        _shards.append(self.shards[index])

    def _ask(self, index: int, method: str, *args: Any) -> Callable[[], Any]:
        return lambda: getattr(self.shards[index], method)(*args)

    @property
    def server(self) -> ScoreServer:
        server = self.shards[0]
        assert isinstance(server, ScoreServer)
        return server

    @property
    def storage(self) -> runs.RunStorage:
        return runs.RunStorage(str(self.folder), "mine")

    def train(self, epoch: int, loss: float) -> None:
        """Train an epoch in which each sample has this loss."""
        self.steps(self.opened(epoch), loss)
        self.server.close_epoch(0, GENERATION, epoch)

    def opened(self, epoch: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Open an epoch; return its steps, each a run step and its ids."""
        share = self.server.open_epoch(0, GENERATION, epoch)
        assert isinstance(share, Share)
        return [(share.first_step + step, share.ids[32 * step : 32 * step + 32]) for step in range(19)]

    def steps(self, steps: list[tuple[int, NDArray[np.int64]]], loss: float) -> None:
        for run_step, ids in steps:
            for shard, cut in enumerate(pieces(ids, self.count, 100)):
                for where in cut:
                    self.seqs[shard] += 1
                    seen = {"loss": np.full(ids[where].size, loss, dtype=np.float32)}
                    report = wire.Report(self.caller, self.seqs[shard], run_step, ids[where], seen, ids[:0])
                    self.shards[shard].report(wire.encode_report(report))
        for shard, seq in zip(self.shards, self.seqs, strict=True):
            shard.settle(0, GENERATION, seq)

    def load(self, state: tuple[bytes, int, tuple[int, ...], Past]) -> None:
        self.num_rewinds += 1
        table, finished, starts, past = state
        digest = hashlib.sha256(table).hexdigest() if table else ""
        where = (0, GENERATION, self.num_rewinds, finished, starts, digest)
        if not self.server.rewind(*where, None, past):
            assert self.server.rewind(*where, table, past)
        self.seqs = [shard.enter(0, GENERATION) for shard in self.shards]

    def reset(self) -> None:
        self.load((b"", 0, (0,), BEGINNING))

    def finish(self) -> dict[int, set[float]]:
        """End all shards; return the losses in the history of each epoch."""
        for shard in self.shards:
            shard.finish()
        return self.told()

    def told(self) -> dict[int, set[float]]:
        """Return the losses in the history of each epoch, which has to have every sample once."""
        found = {}
        for epoch in self.storage.history.epochs():
            rows = self.storage.history.epoch(epoch)
            assert sorted(rows.column("id").to_pylist()) == list(range(600)), epoch
            found[epoch] = set(rows.column("loss").to_pylist())
        return found


def held(folder: Path, operation: str, path: str) -> None:
    faulty_files.break_at(folder, operation, path, do="hold")


def until_held(folder: Path) -> None:
    give_up = time.monotonic() + 30.0
    while not faulty_files.is_broken(folder):
        assert time.monotonic() < give_up
        time.sleep(0.005)  # polling a file


def begun(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> None:
    thread.join(60.0)
    assert not thread.is_alive()


@pytest.mark.parametrize(("count", "writing"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("to", [0, 1])
def test_a_history_that_is_being_written_when_the_run_goes_back_is_dropped(
    count: int, writing: int, to: int, folder: Path
) -> None:
    """By the end of the going back, and as the run goes on from there."""
    run = Run(folder, count)
    state: tuple[bytes, int, tuple[int, ...], Past] = (b"", 0, (0,), BEGINNING)
    if to == 1:
        run.train(0, 1.0)
        state = run.server.state()
    held(folder, "write", rf"/history/{to:08d}/{writing}-of-")
    run.train(to, 2.0)
    until_held(folder)
    going = begun(lambda: run.load(state))
    going.join(0.2)
    assert going.is_alive()
    faulty_files.let_go(folder)
    ended(going)
    assert run.told() == ({0: {1.0}} if to else {})
    assert run.storage.spreads.epochs() == list(range(1, to + 1))
    for epoch in range(to, 4):
        run.train(epoch, 7.0 + epoch)
    assert run.finish() == {**({0: {1.0}} if to else {}), **{epoch: {7.0 + epoch} for epoch in range(to, 4)}}


@pytest.mark.parametrize("writing", [0, 1])
def test_a_server_that_died_over_the_history_leaves_none_of_it_behind(
    writing: int, folder: Path, tmp_path: Path
) -> None:
    """Another shard still has the dead server's call, and comes to it while the new server takes the run back."""
    run = Run(folder, 2)
    held(folder, "write", rf"/history/00000000/{writing}-of-")
    run.train(0, 1.0)
    until_held(folder)
    other = faulty_files.make_storage(tmp_path / "other").removeprefix("faulty://")
    left_out = shutil.ignore_patterns("fault.json", "held", "owners")
    shutil.copytree(folder, other, ignore=left_out, dirs_exist_ok=True)
    faulty_files.let_go(folder)
    second = Run(Path(other), 2)
    assert second.server.stats()["finished_epochs"] == 1
    held(Path(other), "delete", r"/snapshots/00000001-[^/]*$")
    going = begun(second.reset)
    until_held(Path(other))
    second.shards[1].write_history(1)
    assert not second.storage.history.has_part(0, Shard(1, 2))
    faulty_files.let_go(Path(other))
    ended(going)
    second.shards[1].write_history(1)
    assert second.told() == {}
    for epoch in range(4):
        second.train(epoch, 7.0 + epoch)
    assert second.finish() == {epoch: {7.0 + epoch} for epoch in range(4)}


def test_a_history_that_no_server_lived_to_ask_for_is_written_at_the_end(folder: Path, tmp_path: Path) -> None:
    run = Run(folder, 2)
    for epoch in range(3):
        run.train(epoch, 1.0 + epoch)
    held(folder, "write", r"/history/00000003/0-of-")
    run.train(3, 4.0)
    until_held(folder)
    other = faulty_files.make_storage(tmp_path / "other").removeprefix("faulty://")
    left_out = shutil.ignore_patterns("fault.json", "held", "owner*.json")
    shutil.copytree(folder, other, ignore=left_out, dirs_exist_ok=True)
    faulty_files.let_go(folder)
    second = Run(Path(other), 2)
    assert not second.storage.history.has_part(3, Shard(0, 2))
    assert second.finish() == {epoch: {1.0 + epoch} for epoch in range(4)}


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_starts_over_when_its_first_records_are_gone_has_a_whole_history(count: int, folder: Path) -> None:
    """And a server that dies in the first epoch of the new life comes back to where it was."""
    run = Run(folder, count)
    for epoch in range(4):
        run.train(epoch, 1.0)
    run.server.stored_epochs()
    run.reset()
    steps = run.opened(0)
    run.steps(steps[:8], 7.0)
    before = run.server.snapshot()
    for index in range(count):
        run.shards[index].finish()
        run.start(index)
    assert encode_table(run.server.snapshot()) == encode_table(before)
    run.steps(steps[8:], 7.0)
    run.server.close_epoch(0, GENERATION, 0)
    for epoch in range(1, 4):
        run.train(epoch, 7.0 + epoch)
    assert run.finish() == {epoch: {7.0 + epoch} for epoch in range(4)}


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_of_another_life_takes_the_history_before_it_along(count: int, folder: Path) -> None:
    run = Run(folder, count)
    states = []
    for epoch in range(3):
        run.train(epoch, 1.0 + epoch)
        states.append(run.server.state())
    run.reset()
    run.train(0, 6.0)
    run.steps(run.opened(1)[:5], 8.0)
    run.server.close_epoch(0, GENERATION, 1)
    run.load(states[1])  # of the first life: nothing here has the way to it
    assert run.told() == {}
    assert run.storage.spreads.epochs() == [2]
    run.train(2, 9.0)
    run.train(3, 10.0)
    assert run.finish() == {2: {9.0}, 3: {10.0}}


@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_of_this_life_keeps_the_history_before_it(count: int, folder: Path) -> None:
    """Though its snapshot is gone, and its table comes from the checkpoint."""
    run = Run(folder, count)
    states = []
    for epoch in range(4):
        run.train(epoch, 1.0 + epoch)
        states.append(run.server.state())
    run.server.stored_epochs()
    assert run.storage.snapshots.epochs() == [2, 3, 4]
    run.load(states[0])
    assert run.told() == {0: {1.0}}
    assert run.storage.spreads.epochs() == [1]
    for epoch in range(1, 4):
        run.train(epoch, 7.0 + epoch)
    assert run.finish() == {0: {1.0}} | {epoch: {7.0 + epoch} for epoch in range(1, 4)}
