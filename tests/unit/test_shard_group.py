"""A score server with shards, as plain classes without Ray: one run over several owners, any of which may restart."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.actors.score_server import ScoreServer
from es_service.actors.score_shard import ScoreShard
from es_service.actors.served_run import ServedRun
from es_service.ledger import Ledger
from es_service.selection.engine import choose
from es_service.selection.named import preset
from es_service.selection.run import Caller, RunConfig, Share
from es_service.selection.shards import pieces
from es_service.storage import runs

MakeConfig = Callable[..., RunConfig]
Losses = Callable[[NDArray[np.int64], int], NDArray[np.float32]]
FIRST, SECOND = "0a" * 16, "0b" * 16


_groups: list[Group] = []


@pytest.fixture(autouse=True)
def _ended_groups() -> Iterator[None]:
    yield
    while _groups:
        for shard in _groups.pop().shards:
            shard.finish()


class Group:
    """The shards of a run, each an object that calls reach by its index, so that one can be replaced."""

    def __init__(self, storage: str, config: RunConfig, count: int) -> None:
        self.config, self.count, self._storage = config, count, storage
        self.shards: list[Any] = [None] * count
        self.away: set[str] = set()  # calls that are lost, once each
        _groups.append(self)
        for index in reversed(range(count)):
            self.restart(index)

    @property
    def server(self) -> ScoreServer:
        server = self.shards[0]
        assert isinstance(server, ScoreServer)
        return server

    def restart(self, index: int, *, journal_lost: bool = False) -> None:
        """Start a shard anew, as Ray does after it died; its journal may be gone, as one of an older version is."""
        if journal_lost:
            self.server.stored_epochs()
        if self.shards[index] is not None:
            self.shards[index].finish()
        if journal_lost:
            shutil.rmtree(Path(self._storage) / "mine" / "journal" / f"{index}-of-{self.count}")
            for path in (Path(self._storage) / "mine" / "snapshots").glob("*/manifest.json"):
                manifest = json.loads(path.read_text())
                del manifest["sha256"]  # an older version noted none
                manifest["files"][f"shard-{index}.arrow"]["note"] = None
                path.write_text(json.dumps(manifest))
        where = (self._storage, "mine", runs.config_to_dict(self.config))
        self.shards[index] = (
            ScoreShard(ServedRun(*where), index, self.count) if index else ScoreServer(*where, self.count, self._ask)
        )

    def _ask(self, index: int, method: str, *args: Any) -> Callable[[], Any]:
        if method in self.away:
            self.away.remove(method)
            raise errors.ServerUnavailableError(f"shard {index} is away")
        return lambda: getattr(self.shards[index], method)(*args)


class Worker:
    """A lone rank, reduced to what it sends."""

    def __init__(self, group: Group, generation: str = FIRST) -> None:
        self.group, self.caller = group, Caller(0, generation)
        group.server.join(0, generation, 1, runs.config_to_dict(group.config))
        self.seqs = [shard.enter(0, generation) for shard in group.shards]

    def observe(self, ids: NDArray[np.int64], losses: NDArray[np.float32], run_step: int) -> NDArray[np.float32]:
        weights = np.empty(ids.size, dtype=np.float32)
        for shard, cut in enumerate(pieces(ids, self.group.count, 100)):
            for where in cut:
                self.seqs[shard] += 1
                report = wire.Report(
                    self.caller, self.seqs[shard], run_step, ids[where], {"loss": losses[where]}, ids[where][:1]
                )
                answer = self.group.shards[shard].observe(wire.encode_report(report))
                weights[where] = wire.decode_weights(wire.decode_acknowledgement(answer)[1])
        return weights

    def open(self, epoch: int) -> Share:
        share = self.group.server.open_epoch(0, self.caller.generation, epoch)
        assert isinstance(share, Share)
        return share

    def train(self, epoch: int, losses_of: Losses) -> list[list[int]]:
        share, drawn = self.open(epoch), []
        for step in range(share.ids.size // 6):
            ids, run_step = share.ids[6 * step : 6 * step + 6], share.first_step + step
            weights = self.observe(ids, losses_of(ids, run_step), run_step)
            drawn.append(choose(self.group.config.selection, ids, weights, 3, run_step).ids.tolist())
        self.group.server.close_epoch(0, self.caller.generation, epoch)
        return drawn


@pytest.fixture
def config(make_config: MakeConfig) -> RunConfig:
    return make_config(prune_ratio=0.25)  # 24 samples, plans of 18 (24 at first), batches of 6


@pytest.fixture
def undisturbed(tmp_path: Path, config: RunConfig, losses_of: Losses) -> tuple[list[Any], str]:
    """What four epochs on one shard draw, and the table they leave."""
    group = Group(str(tmp_path / "undisturbed"), config, 1)
    worker = Worker(group)
    return [worker.train(epoch, losses_of) for epoch in range(4)], table(group)


def table(group: Group) -> str:
    return repr(group.server.snapshot().drop_columns(["selected"]).to_pydict())


@pytest.mark.parametrize("count", [2, 3, 24])
def test_a_run_over_shards_is_the_run_over_one(
    tmp_path: Path, config: RunConfig, losses_of: Losses, undisturbed: tuple[list[Any], str], count: int
) -> None:
    group = Group(str(tmp_path), config, count)
    worker = Worker(group)
    assert ([worker.train(epoch, losses_of) for epoch in range(4)], table(group)) == undisturbed
    stats = group.server.stats()
    assert (stats["shards"], stats["num_observed"], stats["table_bytes"]) == (count, 24 + 3 * 18, 24 * 32)
    rows = [len(range(index, 24, count)) for index in range(count)]
    assert [shard.counts()["table_bytes"] for shard in group.shards] == [32 * num for num in rows]


@pytest.mark.parametrize("killed", [0, 1, 2])
@pytest.mark.parametrize("when", ["between epochs", "inside an epoch", "before the last close"])
def test_a_shard_that_restarts_goes_on_where_it_was(
    tmp_path: Path, config: RunConfig, losses_of: Losses, undisturbed: tuple[list[Any], str], killed: int, when: str
) -> None:
    group = Group(str(tmp_path), config, 3)
    worker = Worker(group)
    drawn = [worker.train(epoch, losses_of) for epoch in range(2)]
    if when == "between epochs":
        group.restart(killed)
        drawn.append(worker.train(2, losses_of))
    else:
        share, steps = worker.open(2), []
        for step in range(3):
            if step == 1 and when == "inside an epoch":
                group.restart(killed)
            ids, run_step = share.ids[6 * step : 6 * step + 6], share.first_step + step
            weights = worker.observe(ids, losses_of(ids, run_step), run_step)
            steps.append(choose(config.selection, ids, weights, 3, run_step).ids.tolist())
        if when == "before the last close":
            group.restart(killed)
        group.server.close_epoch(0, FIRST, 2)
        drawn.append(steps)
    drawn.append(worker.train(3, losses_of))
    assert (drawn, table(group)) == undisturbed


@pytest.mark.parametrize("killed", [0, 1, 2])
@pytest.mark.parametrize("when", ["between epochs", "inside an epoch", "before the last close"])
def test_a_shard_without_its_journal_takes_the_run_back_to_the_last_finished_epoch(
    tmp_path: Path, config: RunConfig, losses_of: Losses, undisturbed: tuple[list[Any], str], killed: int, when: str
) -> None:
    group = Group(str(tmp_path), config, 3)
    worker = Worker(group)
    drawn = [worker.train(epoch, losses_of) for epoch in range(2)]
    if when != "between epochs":
        share = worker.open(2)
        for step in range(1 if when == "inside an epoch" else 3):
            ids = share.ids[6 * step : 6 * step + 6]
            worker.observe(ids, losses_of(ids, share.first_step + step), share.first_step + step)
    group.restart(killed, journal_lost=True)
    acts: dict[str, Callable[[], Any]] = {
        "between epochs": lambda: worker.open(2),
        "inside an epoch": lambda: worker.observe(np.arange(6), np.ones(6, np.float32), share.first_step + 1),
        "before the last close": lambda: group.server.close_epoch(0, FIRST, 2),
    }
    with pytest.raises(errors.ServerRestartedError, match=f"shard {killed} of run 'mine' restarted and stands"):
        acts[when]()
    again = Worker(group, SECOND)
    assert group.server.stats()["finished_epochs"] == 2
    assert (drawn + [again.train(epoch, losses_of) for epoch in (2, 3)], table(group)) == undisturbed
    with pytest.raises(errors.EpochOrderError, match="fenced"):
        worker.observe(np.arange(6), np.ones(6, dtype=np.float32), 0)


def ledger(epoch: int) -> dict[str, Any]:
    """Of a rank at an epoch's end: after a minute scoring costs half a step, and selection has saved no time."""
    done = epoch + 1
    counts = {"scored": 24 * done, "trained": 12 * done, "full": 24 * done, "full_steps": 4.0 * done}
    timed = {"total_s": 45.0 * done, "measured_s": 200.0, "measured_steps": 20}
    seconds = {"score": 20.0 * done, "train": 31.0 * done, "exchange": 0.0, "data": 0.0}
    return Ledger(**counts, **timed, seconds=seconds).to_dict()  # type: ignore[arg-type]


def decisions(group: Group, losses_of: Losses, restarts: int | None, epochs: int = 6) -> list[Any]:
    """Return what was decided for each epoch, with a shard that restarts inside each and between them."""
    worker, found = Worker(group), []
    for epoch in range(epochs):
        share = worker.open(epoch)
        found.append((share.decision, share.ratio))
        for step in range(4):
            ids, run_step = share.ids[6 * step : 6 * step + 6], share.first_step + step
            worker.observe(ids, losses_of(ids, 0), run_step)
        if restarts is not None:
            group.restart(restarts)
            group.server.whereabouts(0, FIRST)
            assert group.server._coordinator().membership.share(worker.caller).decision == share.decision
        group.server.close_epoch(0, FIRST, epoch, ledger=ledger(epoch))
        if restarts is not None:
            group.restart(restarts)
    return found


@pytest.mark.parametrize(("count", "restarts"), [(1, 0), (3, None), (3, 0), (3, 2)])
@pytest.mark.parametrize("name", ["auto", "es"])
def test_decisions_are_the_same_over_shards_and_after_restarts(
    tmp_path: Path, losses_of: Losses, name: str, count: int, restarts: int | None
) -> None:
    settings = {"anneal": (0, 0), "guard": True, "draw": "topk"} if name == "es" else {}
    config = RunConfig(selection=preset(name, **settings), num_samples=24, num_epochs=6, batch_size=6)
    expected = decisions(Group(str(tmp_path / "whole"), config, 1), losses_of, None)
    assert decisions(Group(str(tmp_path), config, count), losses_of, restarts) == expected
    costs = [None if one is None else one["scoring_cost"] for one, _ in expected]
    assert {*costs[:2]} == {0.35}  # a minute of training ends with the second epoch
    assert {*costs[2:]} == {0.5}
    if name == "es":
        assert [one["reason"] for one, _ in expected][2] == "stopped_time"


def test_a_checkpoint_goes_to_all_shards(
    tmp_path: Path, config: RunConfig, losses_of: Losses, undisturbed: tuple[list[Any], str]
) -> None:
    group = Group(str(tmp_path), config, 3)
    worker = Worker(group)
    drawn = [worker.train(epoch, losses_of) for epoch in range(2)]
    data, finished, starts, _ = group.server.state()
    worker.train(2, losses_of)
    digest = hashlib.sha256(data).hexdigest()
    assert group.server.rewind(0, FIRST, 1, finished, starts, digest, None) is False  # of parts, none has this digest
    assert group.server.rewind(0, FIRST, 1, finished, starts, digest, data) is True
    assert group.server.state()[:3] == (data, finished, starts)
    assert (drawn + [worker.train(epoch, losses_of) for epoch in (2, 3)], table(group)) == undisturbed
    assert group.server.rewind(0, FIRST, 2, 0, (0,), "", None) is True
    assert sum(group.server.snapshot().column("visits").to_pylist()) == 0


def test_an_id_of_another_shard_is_refused(tmp_path: Path, config: RunConfig) -> None:
    group = Group(str(tmp_path), config, 3)
    worker = Worker(group)
    worker.open(0)
    losses = {"loss": np.ones(2, dtype=np.float32)}
    for ids, selected in (([1, 5], []), ([1, 4], [2])):
        report = wire.Report(worker.caller, 1, 0, np.array(ids), losses, np.array(selected, dtype=np.int64))
        with pytest.raises(errors.IdError, match=r"id [25] at position [01] is none of shard 1 of 3"):
            group.shards[1].observe(wire.encode_report(report))
    assert sum(group.server.snapshot().column("visits").to_pylist()) == 0


def test_no_checkpoint_is_taken_of_shards_that_stand_in_different_places(
    tmp_path: Path, make_config: MakeConfig, losses_of: Losses
) -> None:
    """Rank 0 has closed epoch 0, a shard loses it, and rank 1 finds that out when it closes."""
    config = make_config()
    group = Group(str(tmp_path), config, 2)
    described = runs.config_to_dict(config)
    for rank in range(2):
        group.server.join(rank, FIRST, 2, described)
        group.server.open_epoch(rank, FIRST, 0)
    group.server.close_epoch(0, FIRST, 0)
    group.restart(1, journal_lost=True)
    with pytest.raises(errors.ServerRestartedError):
        group.server.close_epoch(1, FIRST, 0)
    assert group.server.stats()["finished_epochs"] == 0
    with pytest.raises(errors.EpochOrderError, match="epoch 0 is open"):
        group.server.state()
    Worker(group, SECOND).train(0, losses_of)
    assert group.server.state()[1] == 1


def test_a_server_that_restarts_alone_gives_the_state_of_the_last_snapshot(
    tmp_path: Path, config: RunConfig, losses_of: Losses
) -> None:
    group = Group(str(tmp_path), config, 2)
    worker = Worker(group)
    worker.train(0, losses_of)
    before = group.server.state()
    share = worker.open(1)
    worker.observe(share.ids[:6], losses_of(share.ids[:6], 4), 4)
    group.restart(0, journal_lost=True)
    assert group.server.state() == before


def test_a_shard_that_restarts_after_a_snapshot_failed_mixes_no_epochs(
    tmp_path: Path, config: RunConfig, losses_of: Losses, undisturbed: tuple[list[Any], str]
) -> None:
    group = Group(str(tmp_path), config, 2)
    worker = Worker(group)
    (tmp_path / "mine" / "snapshots").write_text("in the way")
    worker.train(0, losses_of)
    with pytest.raises(errors.StorageError, match="snapshots"):
        group.server.stored_epochs()
    (tmp_path / "mine" / "snapshots").unlink()
    group.shards[1].finish()
    shutil.rmtree(tmp_path / "mine" / "journal" / "1-of-2")
    group.restart(1)
    again = Worker(group, SECOND)
    assert group.server.stats()["finished_epochs"] == 0
    assert ([again.train(epoch, losses_of) for epoch in range(4)], table(group)) == undisturbed


def test_an_generation_that_was_fenced_cannot_come_back(tmp_path: Path, config: RunConfig) -> None:
    """A slow rank of the group that died joins behind the first rank of the new one."""
    group = Group(str(tmp_path), config, 2)
    described = runs.config_to_dict(config)
    group.server.join(0, FIRST, 2, described)
    Worker(group, SECOND).open(0)
    with pytest.raises(errors.EpochOrderError, match="fenced"):
        group.server.join(1, FIRST, 2, described)
    assert group.server.stats()["open_epoch"] == 0


def test_questions_that_came_to_nothing_are_dropped(tmp_path: Path, config: RunConfig) -> None:
    group = Group(str(tmp_path), config, 2)
    Worker(group)
    healthy, group.shards[1] = group.shards[1], None

    class Away:
        def __getattr__(self, name: str) -> Any:
            raise errors.ServerUnavailableError("away")

    group.shards[1] = Away()
    for _ in range(5):
        with pytest.raises(errors.ServerUnavailableError):
            group.server.top("w", 3, False)
    assert len(group.server.shard.pending) == len(healthy.pending) == 0
    group.shards[1] = healthy
    for number in range(20):
        healthy.reduction(f"left behind {number}", "top", "id", 3, False)
    assert len(healthy.pending) == 8
    with pytest.raises(errors.ServerRestartedError, match="unknown reduction token"):
        healthy.answer("left behind 0", None)
    assert group.server.top("id", 3, True).column("id").to_pylist() == [0, 1, 2]


def test_an_epoch_that_could_not_be_closed_takes_reports_that_come_once_more(
    tmp_path: Path, config: RunConfig, losses_of: Losses
) -> None:
    """A shard goes down as its rows are copied; what it lacks then is sent again, and the epoch is closed."""
    group = Group(str(tmp_path), config, 2)
    rank = Worker(group)
    share = rank.open(0)
    last = share.ids.size // 6 - 1
    for step in range(last):
        ids = share.ids[6 * step : 6 * step + 6]
        rank.observe(ids, losses_of(ids, step), share.first_step + step)
    group.away.add("copy_part")
    with pytest.raises(errors.ServerUnavailableError, match="shard 1 is away"):
        group.server.close_epoch(0, FIRST, 0)
    assert not group.away
    ids = share.ids[6 * last : 6 * last + 6]
    rank.observe(ids, losses_of(ids, last), share.first_step + last)
    assert group.server.close_epoch(0, FIRST, 0)
    assert group.server.stored_epochs() == 1
