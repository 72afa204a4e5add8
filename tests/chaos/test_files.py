"""What a crash or a bad disk does to a run's files: torn, flipped and missing bytes, held against the plain server.

No Ray here: a server is an object, and its end is that nobody asks it any more.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driving
import numpy as np
import pytest
from pyarrow import fs

from es_service import errors
from es_service.actors import wire
from es_service.actors.score_server import ScoreServer
from es_service.selection.run import Caller, RunConfig, Share
from es_service.storage import runs
from es_service.storage.files import register_filesystem
from es_service.storage.table_files import encode_table

GENERATION = "0c" * 16
CONFIG = RunConfig(selection=driving.selection_of("eswp", seed=3), **driving.SHAPE)
_servers: list[ScoreServer] = []


@pytest.fixture(autouse=True)
def _ended_servers() -> Iterator[None]:
    yield
    while _servers:
        _servers.pop().finish()


def serve(storage: str | Path, run: str = "mine") -> ScoreServer:
    server = ScoreServer(str(storage), run, runs.config_to_dict(CONFIG))
    _servers.append(server)
    return server


def table_of(server: ScoreServer) -> bytes:
    return encode_table(server.snapshot())


class Rank:
    """A lone rank that keeps all it ever sent."""

    def __init__(self, server: ScoreServer, generation: str = GENERATION) -> None:
        self.server, self.caller = server, Caller(0, generation)
        self.sent: list[bytes] = []
        server.join(0, generation, 1, runs.config_to_dict(CONFIG))
        self.seq = server.enter(0, generation)

    def open(self, epoch: int) -> Share:
        share = self.server.open_epoch(0, self.caller.generation, epoch)
        assert isinstance(share, Share)
        return share

    def step(self, share: Share, epoch: int, step: int) -> None:
        ids = share.ids[32 * step : 32 * step + 32]
        self.seq += 1
        losses = {"loss": driving.losses_of(3, epoch, ids)}
        report = wire.Report(self.caller, self.seq, share.first_step + step, ids, losses, ids[::3])
        self.sent.append(wire.encode_report(report))
        self.server.report(self.sent[-1])

    def train(self, epoch: int) -> None:
        share = self.open(epoch)
        for step in range(-(-share.ids.size // 32)):
            self.step(share, epoch, step)
        self.close(epoch)

    def close(self, epoch: int) -> None:
        self.server.settle(0, self.caller.generation, self.seq)
        self.server.close_epoch(0, self.caller.generation, epoch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table after three epochs."""
    server = serve(tmp_path_factory.mktemp("undisturbed"))
    rank = Rank(server)
    for epoch in range(3):
        rank.train(epoch)
    return table_of(server)


@pytest.fixture
def halfway(tmp_path: Path) -> tuple[Path, Rank, Share]:
    """A run inside its third epoch, whose journal has just been written, and its only rank."""
    server = serve(tmp_path / "runs")
    rank = Rank(server)
    for epoch in range(2):
        rank.train(epoch)
    share = rank.open(2)
    for step in range(4):
        rank.step(share, 2, step)
        if step % 2:
            server.settle(0, GENERATION, rank.seq)
    server.finish()
    return tmp_path / "runs", rank, share


def go_on(rank: Rank, share: Share, server: ScoreServer) -> None:
    """Send again what the server has not, as `exchange.channel` does, and finish the epoch."""
    rank.server = server
    for message in rank.sent[server.enter(0, GENERATION) - (rank.seq - len(rank.sent)) :]:
        server.report(message)
    for step in range(4, -(-share.ids.size // 32)):
        rank.step(share, 2, step)
    rank.close(2)


def test_the_last_segment_cut_anywhere_loses_nothing_that_the_rank_still_has(
    halfway: tuple[Path, Rank, Share], undisturbed: bytes, tmp_path: Path
) -> None:
    storage, rank, share = halfway
    segments = sorted((storage / "mine" / "journal" / "0-of-1").glob("*.arrow"))
    length = segments[-1].stat().st_size
    sent, seq = list(rank.sent), rank.seq
    for cut in [*range(0, length, max(1, length // 12)), length - 1]:
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(storage, copy)
        torn = copy / segments[-1].relative_to(storage)
        torn.write_bytes(torn.read_bytes()[:cut])
        server = serve(copy)
        rank.sent, rank.seq = list(sent), seq
        go_on(rank, share, server)
        assert table_of(server) == undisturbed


def test_a_flipped_bit_in_any_file_is_survived_or_said(
    halfway: tuple[Path, Rank, Share], undisturbed: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a wrong table: either it goes on as if nothing had been, or the rank is told where to go on from."""
    storage, rank, share = halfway
    sent, seq = list(rank.sent), rank.seq
    files = sorted(path for path in storage.rglob("*") if path.is_file() and "history" not in path.parts)
    fates: dict[str, int] = {}
    for number, original in enumerate(files):
        for place in (0.02, 0.5, 0.93):
            copy = tmp_path / f"flipped-{number}-{place}"
            shutil.copytree(storage, copy)
            path = copy / original.relative_to(storage)
            data = bytearray(path.read_bytes())
            data[int(place * len(data))] ^= 1 << number % 8
            path.write_bytes(data)
            server = serve(copy)
            rank.sent, rank.seq = list(sent), seq
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                fate = _fate(rank, share, server, undisturbed)
            fates[fate] = fates.get(fate, 0) + 1
            shutil.rmtree(copy, ignore_errors=True)
    assert fates.get("as if nothing had been", 0) > len(files)
    assert set(fates) <= {"as if nothing had been", "back to the end of an epoch", "refused"}


def _fate(rank: Rank, share: Share, server: ScoreServer, undisturbed: bytes) -> str:
    try:
        server.stats()
    except errors.EsServiceError:
        return "refused"
    try:
        go_on(rank, share, server)
    except (errors.ServerRestartedError, errors.EpochOrderError):
        again = Rank(server, "0d" * 16)
        for epoch in range(server.stats()["finished_epochs"], 3):
            again.train(epoch)
        assert table_of(server) == undisturbed
        return "back to the end of an epoch"
    assert table_of(server) == undisturbed
    return "as if nothing had been"


def test_a_newer_format_is_refused_in_words(halfway: tuple[Path, Rank, Share]) -> None:
    storage, _, _ = halfway
    path = storage / "mine" / "run.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    failure = serve(storage).identity()[0]
    assert isinstance(failure, errors.StorageError)
    assert "has format 7, this version reads 2" in str(failure)


def test_a_run_lives_on_a_filesystem_in_memory(undisturbed: bytes, tmp_path: Path) -> None:
    """As on an object store: no local disk, no file descriptors, no fsync."""
    memory: Any = fs._MockFileSystem()
    register_filesystem("memory", lambda: memory)
    server = serve("memory://bucket/runs")
    rank = Rank(server)
    for epoch in range(2):
        rank.train(epoch)
    share = rank.open(2)
    for step in range(4):
        rank.step(share, 2, step)
    server.finish()
    second = serve("memory://bucket/runs")
    go_on(rank, share, second)
    assert table_of(second) == undisturbed
    storage = runs.RunStorage("memory://bucket/runs", "mine")
    second.finish()
    assert storage.history.epochs() == [0, 1, 2]
    assert encode_table(storage.table()) == undisturbed
    seen = storage.history.sample(int(share.ids[0]))
    assert seen.column("epoch").to_pylist()[-1] == 2
    assert seen.column("loss").to_pylist()[-1] == driving.losses_of(3, 2, share.ids[:1])[0]


def test_history_and_table_tell_the_same(undisturbed: bytes, tmp_path: Path) -> None:
    server = serve(tmp_path)
    rank = Rank(server)
    for epoch in range(3):
        rank.train(epoch)
    server.finish()
    storage = runs.RunStorage(str(tmp_path), "mine")
    table = storage.table()
    rows = [storage.history.epoch(epoch) for epoch in range(3)]
    visits = np.bincount(np.concatenate([one.column("id") for one in rows]), minlength=600)
    picked = np.concatenate([one.filter(one.column("selected")).column("id") for one in rows])
    assert visits.tolist() == table.column("visits").to_pylist()
    assert np.bincount(picked, minlength=600).tolist() == table.column("selected").to_pylist()
