"""The score server as a plain class, without Ray: exactly once, generations, restarts, going back."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import score_server, wire
from es_service.actors.calls import AwayError
from es_service.exchange.epochs import Epochs
from es_service.exchange.reliable_channel import Channel
from es_service.exchange.server_calls import ServerCalls
from es_service.ledger import Ledger
from es_service.selection import methods
from es_service.selection.engine import choose
from es_service.selection.run import Caller, RunConfig, Share
from es_service.storage import runs

MakeConfig = Callable[..., RunConfig]
Losses = Callable[[NDArray[np.int64], int], NDArray[np.float32]]

FIRST, SECOND = "0a" * 16, "0b" * 16


_servers: list[ScoreServer] = []


class ScoreServer(score_server.ScoreServer):
    """One whose threads end with the test."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _servers.append(self)


@pytest.fixture(autouse=True)
def _ended_servers() -> Iterator[None]:
    yield
    while _servers:
        _servers.pop().finish()


def weights_of(answer: bytes) -> NDArray[np.float32]:
    return wire.decode_weights(wire.decode_acknowledgement(answer)[1])


def seq_of(answer: bytes) -> int:
    return wire.decode_acknowledgement(answer)[0].seq


def counts(server: ScoreServer) -> dict[str, Any]:
    return {name: value for name, value in server.stats().items() if name not in ("num_undurable", "calls")}


class Worker:
    """A rank as the exchanges are one, reduced to what it sends."""

    def __init__(self, server: ScoreServer, config: RunConfig, rank: int = 0, generation: str = FIRST, world: int = 1):
        self.server, self.config, self.rank, self.generation = server, config, rank, generation
        server.join(rank, generation, world, runs.config_to_dict(config))
        self.seq = server.enter(rank, generation)
        self.stands_at = server.stats()["finished_epochs"]

    def open(self, epoch: int) -> tuple[NDArray[np.int64], int]:
        answer = self.server.open_epoch(self.rank, self.generation, epoch)
        assert isinstance(answer, Share)
        return answer.ids, answer.first_step

    def message(
        self,
        ids: NDArray[np.int64],
        losses: Any,
        run_step: int,
        *,
        selected: Sequence[int] = (),
        seq: int | None = None,
    ) -> bytes:
        if seq is None:
            self.seq += 1
        report = wire.Report(
            Caller(self.rank, self.generation),
            self.seq if seq is None else seq,
            run_step,
            np.asarray(ids if losses is not None else [], dtype=np.int64),
            None if losses is None else {"loss": np.asarray(losses, dtype=np.float32)},
            np.array(selected, dtype=np.int64),
        )
        return wire.encode_report(report)

    def train(self, epoch: int, losses_of: Losses) -> list[list[int]]:
        share, first = self.open(epoch)
        drawn: list[list[int]] = [[]]
        for step in range(share.size // 6):
            ids = share[6 * step : 6 * step + 6]
            message = self.message(ids, losses_of(ids, first + step), first + step, selected=drawn[-1])
            weights = weights_of(self.server.observe(message))
            drawn.append(choose(self.config.selection, ids, weights, 3, first + step).ids.tolist())
        self.server.report(self.message([], None, first, selected=drawn[-1]))
        self.server.close_epoch(self.rank, self.generation, epoch)
        return drawn[1:]


def table(server: ScoreServer) -> str:
    return repr(server.snapshot().to_pydict())


@pytest.fixture
def config(make_config: MakeConfig) -> RunConfig:
    return make_config(prune_ratio=0.25)  # 24 samples, plans of 18 (24 at first), batches of 6


@pytest.fixture
def make_server(tmp_path: Path, config: RunConfig) -> Callable[[], ScoreServer]:
    return lambda: ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))


MakeServer = Callable[[], ScoreServer]


def test_a_server_whose_run_another_one_has_still_ends(tmp_path: Path, config: RunConfig, losses_of: Losses) -> None:
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config), actor="first")
    Worker(server, config).train(0, losses_of)
    server.stored_epochs()
    runs.RunStorage(str(tmp_path), "mine").claim("first")  # the same actor, started again
    with pytest.raises(errors.StorageError):
        server._run.check_write()
    with pytest.raises(errors.RunExistsError):
        server.stats()
    server.finish()


# -- the life of a run --------------------------------------------------------------------------------------------


def test_a_run_by_observation_and_by_report_leaves_the_same_table(
    tmp_path: Path, config: RunConfig, losses_of: Losses
) -> None:
    one = ScoreServer(str(tmp_path), "one", runs.config_to_dict(config))
    other = ScoreServer(str(tmp_path), "other", runs.config_to_dict(config))
    stepping, reporting = Worker(one, config), Worker(other, config)
    for epoch in range(2):
        share, first = stepping.open(epoch)
        assert reporting.open(epoch)[0].tolist() == share.tolist()
        together = b""
        for step in range(share.size // 6):
            ids = share[6 * step : 6 * step + 6]
            losses = losses_of(ids, first + step)
            drawn = ids[[1, 4]].tolist()
            weights = weights_of(one.observe(stepping.message(ids, losses, first + step, selected=drawn)))
            assert weights.tolist() == one.snapshot().column("w").to_numpy()[ids].tolist()
            together += reporting.message(ids, losses, first + step, selected=drawn)
        assert seq_of(other.report(together)) == reporting.seq
        assert one.close_epoch(0, FIRST, epoch)
        assert other.close_epoch(0, FIRST, epoch)
        assert table(one) == table(other)
    assert one.state() == other.state()


def test_stats_count_what_came_in(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.train(0, losses_of)
    ids = worker.open(1)[0][:6]
    server.report(worker.message([], None, 4, selected=ids[[0, 5]].tolist()))
    server.publish(0, FIRST, 1, 0.5, Ledger(scored=6, trained=3).to_dict())
    stats = server.stats()
    assert (stats["num_reports"], stats["num_observed"], stats["num_selected"]) == (6, 24, 4 * 3 + 2)
    assert (stats["finished_epochs"], stats["open_epoch"], stats["world_size"]) == (1, 1, 1)
    assert (stats["run"], stats["table_bytes"]) == ("mine", 24 * 32)
    progress = stats["progress"]
    assert (progress["epoch"], progress["done"], progress["history"]) == (1, 0.5, [])
    assert progress["samples"] == {"scored": 6, "trained": 3, "full": 0}
    assert runs.config_from_dict(stats["config"]) == config


def test_every_epoch_ends_in_a_snapshot(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tmp_path: Path
) -> None:
    server = make_server()
    worker, storage = Worker(server, config), runs.RunStorage(str(tmp_path), "mine")
    for epoch in range(4):
        worker.train(epoch, losses_of)
        assert server.stored_epochs() == storage.snapshots.newest() == epoch + 1
        assert repr(storage.table().to_pydict()) == table(server)


def test_ranks_wait_for_each_other_and_the_last_writes_the_snapshot(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))
    workers = [Worker(server, config, rank, world=2) for rank in range(2)]
    for worker in workers:
        worker.open(0)
    assert server.close_epoch(0, FIRST, 0) is False
    assert server.open_epoch(0, FIRST, 1) == [1]
    assert runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 0
    assert server.close_epoch(1, FIRST, 0) is True
    assert server.stored_epochs() == runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 1


def test_a_lease_holds_the_scores_of_its_ids(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.train(0, losses_of)
    ids, first_step = worker.open(1)
    lease = server.lease(0, FIRST, ids, first_step)
    assert list(lease) == ["s"]
    assert lease["s"].tolist() == server.snapshot().column("s").to_numpy()[ids].tolist()
    assert lease["s"].dtype == np.float32
    assert first_step == 4
    with pytest.raises(errors.IdError, match="id 24 at position 1"):
        server.lease(0, FIRST, np.array([3, 24]), first_step)


# -- exactly once -------------------------------------------------------------------------------------------------


def test_a_repeated_step_changes_nothing_and_gets_the_same_answer(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    message = worker.message(share[:6], losses_of(share[:6], 0), 0)
    answer = server.observe(message)
    before, stats = table(server), counts(server)
    for _ in range(3):
        assert weights_of(server.observe(message)).tolist() == weights_of(answer).tolist()
    assert table(server) == before
    assert counts(server) == stats


def test_repeated_reports_change_nothing(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    messages = [
        worker.message(share[6 * k : 6 * k + 6], losses_of(share[6 * k : 6 * k + 6], k), k, selected=[6 * k, 1])
        for k in range(3)
    ]
    assert seq_of(server.report(b"".join(messages[:2]))) == 2
    before = table(server)
    assert seq_of(server.report(b"".join(messages[:2]))) == 2
    assert seq_of(server.report(messages[0])) == 2
    assert table(server) == before
    assert seq_of(server.report(b"".join(messages))) == 3  # the first two again, and a new one
    assert sum(server.snapshot().column("visits").to_pylist()) == 18


def test_what_ranks_hold_back_is_what_each_said_last(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    told = []
    for step, num_behind in enumerate((7, 3)):
        ids = share[6 * step : 6 * step + 6]
        server.report(worker.message(ids, losses_of(ids, step), step), num_behind=num_behind)
        told.append(server.stats()["num_queued"])
    assert told == [7, 3]
    Worker(server, config, generation="b" * 32)  # another life of the group holds nothing of it
    assert server.stats()["num_queued"] == 0


@pytest.mark.parametrize("seq", [0, 3, 4, 2**63])
def test_a_gap_in_the_sequence_is_refused(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, seq: int
) -> None:
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    server.observe(worker.message(share[:6], losses_of(share[:6], 0), 0))
    before = table(server)
    for send in (server.observe, server.report):
        kind = errors.EpochOrderError if seq == 0 else errors.ServerRestartedError
        with pytest.raises(
            kind, match=f"rank 0 (sent report 0 after 1|has sent {seq - 1} reports, of which 1 are here)"
        ):
            send(worker.message(share[6:12], losses_of(share[6:12], 1), 1, seq=seq))
    assert table(server) == before
    server.observe(worker.message(share[6:12], losses_of(share[6:12], 1), 1))


def test_each_rank_counts_for_itself(tmp_path: Path, make_config: MakeConfig, losses_of: Losses) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))
    workers = [Worker(server, config, rank, world=2) for rank in range(2)]
    for worker in workers:
        share, _ = worker.open(0)
        for step in range(2):
            ids = share[6 * step : 6 * step + 6]
            server.observe(worker.message(ids, losses_of(ids, step), step))
    assert server.snapshot().column("visits").to_pylist() == [1] * 24


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"losses": [1, 2, np.nan, 4, 5, 6]}, errors.LossError),
        ({"losses": [1, 2, 3, 4, 5, -6]}, errors.LossError),
        ({"ids": [0, 1, 2, 3, 4, 24]}, errors.IdError),
        ({"ids": [0, 1, 2, 3, 4, 0]}, errors.IdError),
        ({"ids": [0, 1, 2, 3, 4, -1]}, errors.IdError),
        ({"ids": [], "losses": []}, errors.ShapeError),
        ({"selected": [3, 3]}, errors.IdError),
        ({"selected": [24]}, errors.IdError),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["observe", "report"])
def test_bad_input_changes_nothing(
    make_server: MakeServer,
    config: RunConfig,
    losses_of: Losses,
    change: dict[str, Any],
    kind: type[Exception],
    by: str,
) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.train(0, losses_of)
    worker.open(1)
    before, stats = table(server), counts(server)
    call = {"ids": [0, 1, 2, 3, 4, 5], "losses": [1, 2, 3, 4, 5, 6], **change}
    bad = worker.message(call["ids"], call["losses"], 4, selected=call.get("selected", [0, 1]))
    with pytest.raises(kind):
        getattr(server, by)(bad)
    assert table(server) == before
    assert counts(server) == stats
    worker.seq -= 1  # nothing was applied, so the number is still free
    ids = np.arange(6)
    getattr(server, by)(worker.message(ids, np.ones(6), 4, selected=[1]))


@pytest.mark.parametrize("run_step", [0, 3, 7, 2**32 - 1])
def test_a_step_that_is_not_of_the_open_epoch_is_refused(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, run_step: int
) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.train(0, losses_of)
    ids, first_step = worker.open(1)
    assert (first_step, ids.size) == (4, 18)
    before = table(server)
    with pytest.raises(errors.EpochOrderError, match=f"reports step {run_step}, which is not of an open epoch"):
        server.observe(worker.message(ids[:6], np.ones(6), run_step))
    assert table(server) == before


@pytest.mark.parametrize("tail", ["a bad loss", "a gap", "half a header", "noise", "another epoch", "no signal"])
def test_a_message_that_is_refused_changes_nothing_of_its_good_part_either(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tail: str
) -> None:
    """A call that raises has changed nothing, says the module."""
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    before = table(server)
    good = worker.message(share[:6], losses_of(share[:6], 0), 0, selected=[0])
    bad = {
        "a bad loss": worker.message(share[6:12], [np.nan] * 6, 1, selected=[0], seq=2),
        "a gap": worker.message(share[6:12], np.ones(6), 1, selected=[0], seq=9),
        "half a header": good[:20],
        "noise": b"\0" * 64,
        "another epoch": worker.message(share[6:12], np.ones(6), 4, seq=2),
        "no signal": wire.encode_report(wire.Report(Caller(0, FIRST), 2, 1, share[6:12], None, share[:0])),
    }[tail]
    with pytest.raises(errors.EsServiceError):
        server.report(good + bad)
    assert table(server) == before
    assert seq_of(server.report(good)) == 1


@pytest.mark.parametrize("how", ["nothing", "two", "noise", "half"])
def test_a_step_that_is_not_one_report_is_refused_in_words(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, how: str
) -> None:
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    before = table(server)
    good = worker.message(share[:6], losses_of(share[:6], 0), 0)
    with pytest.raises(errors.ShapeError):
        server.observe({"nothing": b"", "two": good + good, "noise": b"\1" * 60, "half": good[:30]}[how])
    assert table(server) == before


# -- joining and generations -----------------------------------------------------------------------------------------


def test_another_config_cannot_join(make_server: MakeServer, make_config: MakeConfig, config: RunConfig) -> None:
    server = make_server()
    for other in (make_config(prune_ratio=0.25, seed=99), make_config(methods.loss(), prune_ratio=0.25)):
        with pytest.raises(errors.RunMismatchError):
            Worker(server, other)
    Worker(server, config)


def test_a_fenced_generation_is_refused(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    old = Worker(server, config)
    share, _ = old.open(0)
    message = old.message(share[:6], losses_of(share[:6], 0), 0)
    server.observe(message)
    new = Worker(server, config, generation=SECOND)
    new.open(0)
    before = table(server)
    for act in (
        lambda: server.observe(message),
        lambda: server.observe(old.message(share[6:12], np.ones(6), 1)),
        lambda: server.report(old.message(share[6:12], np.ones(6), 1, selected=[0])),
        lambda: server.open_epoch(0, FIRST, 0),
        lambda: server.close_epoch(0, FIRST, 0),
        lambda: server.rewind(0, FIRST, 1, 0, (0,), "", None),
    ):
        with pytest.raises(errors.EpochOrderError, match="fenced"):
            act()
    assert table(server) == before


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_new_generation_inside_an_epoch_rolls_the_table_back(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, epoch: int
) -> None:
    server = make_server()
    old = Worker(server, config)
    for finished in range(epoch):
        old.train(finished, losses_of)
    before = table(server)
    share, first = old.open(epoch)
    server.observe(old.message(share[:6], 7 * losses_of(share[:6], 0), first))
    assert table(server) != before
    new = Worker(server, config, generation=SECOND)
    assert new.stands_at == epoch
    assert table(server) == before
    assert new.open(epoch)[0].tolist() == share.tolist()


def test_a_new_generation_between_epochs_goes_on_where_the_old_one_ended(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    Worker(server, config).train(0, losses_of)
    before = table(server)
    new = Worker(server, config, generation=SECOND)
    assert new.stands_at == 1
    assert table(server) == before
    new.train(1, losses_of)


@pytest.mark.parametrize(("rank", "world"), [(3, 2), (0, 20), (-1, 1)])
def test_a_join_that_is_refused_changes_nothing(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, rank: int, world: int
) -> None:
    """A call that raises has changed nothing: a mistyped second job must not throw away the first one's epoch."""
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    server.observe(worker.message(share[:6], losses_of(share[:6], 0), 0))
    before = table(server)
    with pytest.raises(errors.ConfigError):
        Worker(server, config, rank, SECOND, world)
    assert table(server) == before
    server.observe(worker.message(share[6:12], losses_of(share[6:12], 1), 1))


def test_a_rank_that_never_joined_is_refused(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.open(0)
    with pytest.raises(errors.EpochOrderError):
        server.observe(
            wire.encode_report(
                wire.Report(Caller(5, FIRST), 1, 0, np.arange(6), {"loss": np.ones(6, dtype=np.float32)}, np.arange(0))
            )
        )
    with pytest.raises(errors.EsServiceError):
        server.open_epoch(5, FIRST, 0)
    assert server.close_epoch(0, FIRST, 0) is True


# -- restarts -----------------------------------------------------------------------------------------------------


def test_a_restarted_server_goes_on_inside_the_epoch(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    first = make_server()
    worker = Worker(first, config)
    for epoch in range(2):
        worker.train(epoch, losses_of)
    share, start = worker.open(2)
    messages = [worker.message(ids, losses_of(ids, start + k), start + k) for k, ids in enumerate(share.reshape(3, 6))]
    answers = [weights_of(first.observe(message)).tolist() for message in messages[:2]]
    first.settle(0, FIRST, worker.seq - 1)
    assert first.stored_epochs() == 2

    second = make_server()  # as Ray would after a SIGKILL
    assert table(second) == table(first)
    assert second.stats()["open_epoch"] == 2
    assert weights_of(second.observe(messages[1])).tolist() == answers[1]  # its answer may have got lost
    assert table(second) == table(first)
    assert weights_of(second.observe(messages[2])).tolist() == weights_of(first.observe(messages[2])).tolist()
    assert second.close_epoch(0, FIRST, 2) is True
    assert second.stored_epochs() == 3
    assert first.close_epoch(0, FIRST, 2) is True
    assert second.state() == first.state()


class Calls:
    """Calls of a server in this process, made as a rank makes those of an actor."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.server = worker, worker.server
        self.asked: list[str] = []
        connection: Any = self
        calls = ServerCalls("mine", Caller(worker.rank, worker.generation), connection, 30.0, "raise")
        self.patience = calls.patience
        self.channel = Channel(calls, 0, Epochs(calls, 1))

    def ask(self, shard: int, method: str, *args: Any, group: str | None = None, **more: Any) -> Any:
        assert (shard, group) == (0, None)
        if method != "enter":
            self.asked.append(method)
        reference: Future[Any] = Future()
        try:
            reference.set_result(getattr(self.server, method)(*args, **more))
        except errors.EsServiceError as error:
            reference.set_exception(error)
        return reference

    def wait(self, reference: Any, deadline_s: float, doing: str) -> Any:
        return reference.result(0)

    def reconnect(self) -> bool:
        return False

    def observe(self, ids: NDArray[np.int64], losses: Any, step: int) -> None:
        message = self.worker.message(ids, losses, step)
        seq = self.worker.seq
        self.channel.answer(self.channel.post(seq, seq, "observe", message), self.patience)


def test_what_a_restarted_server_has_is_not_sent_again(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    """Three steps of `sync`, of which the server had told the rank of none that it is on storage; all of them were."""
    calls = Calls(Worker(make_server(), config))
    share, _ = calls.worker.open(0)
    for step in range(3):
        ids = share[6 * step : 6 * step + 6]
        calls.observe(ids, losses_of(ids, step), step)
    expected = table(calls.server)
    calls.server.settle(0, FIRST, 0)
    calls.server = make_server()
    calls.asked.clear()
    calls.channel.send_again(errors.ServerRestartedError("it was away"), calls.patience)
    assert calls.asked == []
    assert table(calls.server) == expected
    ids = share[18:24]
    calls.observe(ids, losses_of(ids, 3), 3)
    assert counts(calls.server)["num_reports"] == 4


def test_a_server_whose_journal_is_lost_stands_at_the_last_finished_epoch(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tmp_path: Path
) -> None:
    first = make_server()
    worker = Worker(first, config)
    for epoch in range(2):
        worker.train(epoch, losses_of)
    durable = table(first)
    share, start = worker.open(2)
    message = worker.message(share[:6], losses_of(share[:6], 0), start)
    first.observe(message)
    first.finish()
    for segment in sorted((tmp_path / "mine" / "journal" / "0-of-1").iterdir())[:-1]:
        segment.unlink()

    second = make_server()
    assert table(second) == durable
    assert second.stats()["finished_epochs"] == 2
    for act in (
        lambda: second.observe(message),
        lambda: second.report(message),
        lambda: second.open_epoch(0, FIRST, 2),
        lambda: second.close_epoch(0, FIRST, 2),
        lambda: second.rewind(0, FIRST, 1, 0, (0,), "", None),
    ):
        with pytest.raises(errors.ServerRestartedError, match="stands at the end of epoch 2: connect again"):
            act()
    assert table(second) == durable

    again = Worker(second, config, generation=SECOND)
    assert again.stands_at == 2
    assert again.open(2)[0].tolist() == share.tolist()
    again.server.finish()
    third = make_server()
    assert third.stats()["open_epoch"] == 2


def test_a_run_with_a_restart_ends_as_one_without(
    tmp_path: Path, config: RunConfig, make_server: MakeServer, losses_of: Losses
) -> None:
    undisturbed = ScoreServer(str(tmp_path), "undisturbed", runs.config_to_dict(config))
    worker = Worker(undisturbed, config)
    expected = [worker.train(epoch, losses_of) for epoch in range(4)]
    drawn = []
    for epoch in range(4):
        server = make_server()
        drawn.append(Worker(server, config, generation=f"{epoch:032x}").train(epoch, losses_of))
    assert drawn == expected
    assert server.state() == undisturbed.state()


# -- going back ---------------------------------------------------------------------------------------------------


def test_a_close_that_meets_the_servers_end_is_made_again_with_the_next_server(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    first = make_server()
    worker = Worker(first, config)
    worker.train(0, losses_of)
    ids, step = worker.open(1)
    first.report(worker.message(ids, losses_of(ids, step), step))
    first.finish()
    with pytest.raises(AwayError, match="the score server is ending"):
        first.close_epoch(0, FIRST, 1)
    second = make_server()
    assert second.close_epoch(0, FIRST, 1) is True
    assert second.stats()["finished_epochs"] == 2


def checkpoints(worker: Worker, epochs: int, losses_of: Losses) -> list[tuple[bytes, int, tuple[int, ...]]]:
    states = []
    for epoch in range(epochs):
        worker.train(epoch, losses_of)
        states.append(worker.server.state())
    return states


def test_rewinding_by_digest_alone_where_the_storage_still_has_it(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tmp_path: Path
) -> None:
    server = make_server()
    worker = Worker(server, config)
    states = checkpoints(worker, 3, losses_of)
    data, finished, starts, _ = states[1]
    assert server.rewind(0, FIRST, 1, finished, starts, hashlib.sha256(data).hexdigest(), None) is True
    assert server.state() == states[1]
    assert runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 2
    worker.train(2, losses_of)
    assert server.state() == states[2]


def test_rewinding_with_a_table_that_the_storage_no_longer_has(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tmp_path: Path
) -> None:
    server = make_server()
    worker = Worker(server, config)
    states = checkpoints(worker, 4, losses_of)
    data, finished, starts, _ = states[0]
    digest = hashlib.sha256(data).hexdigest()
    before = server.state()
    assert server.rewind(0, FIRST, 1, finished, starts, digest, None) is False
    assert server.state() == before
    assert server.rewind(0, FIRST, 1, finished, starts, digest, data) is True
    assert server.state() == states[0]
    assert runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 1
    worker.train(1, losses_of)
    assert server.state() == states[1]


def test_a_digest_of_another_table_has_to_send_it(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    states = checkpoints(Worker(server, config), 2, losses_of)
    assert server.rewind(0, FIRST, 1, 1, states[0][2], "0" * 64, None) is False
    assert server.state() == states[1]


def test_rewinding_to_the_start_forgets_everything(
    make_server: MakeServer, config: RunConfig, losses_of: Losses, tmp_path: Path
) -> None:
    server = make_server()
    blank = table(server)
    worker = Worker(server, config)
    first = worker.train(0, losses_of)
    assert server.rewind(0, FIRST, 1, 0, (0,), "", None) is True
    assert table(server) == blank
    assert runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 0
    assert worker.train(0, losses_of) == first


def test_each_rewind_is_done_by_the_first_rank_and_only_once(
    tmp_path: Path, make_config: MakeConfig, losses_of: Losses
) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))
    workers = [Worker(server, config, rank, world=2) for rank in range(2)]
    for worker in workers:
        worker.open(0)
    for worker in workers:
        server.close_epoch(worker.rank, FIRST, 0)
    data, finished, starts, _ = server.state()
    call = (finished, starts, hashlib.sha256(data).hexdigest(), None)
    assert server.rewind(0, FIRST, 1, *call) is True
    share, first = workers[0].open(1)
    server.observe(workers[0].message(share[:6], losses_of(share[:6], 0), first))
    moved = table(server)
    with pytest.raises(errors.EpochOrderError, match="rank 1 opens epoch 1, but another rank has reset the run"):
        workers[1].open(1)  # as its reports do that are still under way, where they find the server behind
    assert server.rewind(1, FIRST, 1, *call) is True  # the slower rank: already done
    assert table(server) == moved
    workers[1].open(1)
    assert server.rewind(1, FIRST, 2, *call) is True  # another one
    assert table(server) != moved


def test_a_restarted_server_knows_who_has_not_followed_a_rewind(
    tmp_path: Path, make_config: MakeConfig, losses_of: Losses
) -> None:
    config = make_config()
    first = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))
    workers = [Worker(first, config, rank, world=2) for rank in range(2)]
    for worker in workers:
        worker.open(0)
    assert first.rewind(0, FIRST, 1, 0, (0,), "", None) is True
    first.settle(0, FIRST, 0)
    second = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))  # as Ray would after a SIGKILL
    with pytest.raises(errors.EpochOrderError, match="rank 1 opens epoch 0, but another rank has reset the run"):
        second.open_epoch(1, FIRST, 0)
    assert second.rewind(1, FIRST, 1, 0, (0,), "", None) is True
    second.open_epoch(1, FIRST, 0)


@pytest.mark.parametrize("damage", ["table", "digest", "length"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    tmp_path: Path, make_server: MakeServer, make_config: MakeConfig, config: RunConfig, losses_of: Losses, damage: str
) -> None:
    server = make_server()
    states = checkpoints(Worker(server, config), 2, losses_of)
    data, finished, starts, _ = states[0]
    if damage == "length":
        small = make_config(num_samples=12, prune_ratio=0.25)
        data = ScoreServer(str(tmp_path), "small", runs.config_to_dict(small)).state()[0]
    digest = "0" * 64 if damage == "digest" else hashlib.sha256(data).hexdigest()
    if damage == "table":
        data = data[:-20]
        digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(errors.StorageError):
        server.rewind(0, FIRST, 1, finished, starts, digest, data)
    assert server.state() == states[1]
    assert runs.RunStorage(str(tmp_path), "mine").snapshots.newest() == 2


def test_a_checkpoint_whose_starts_do_not_fit_is_refused_and_changes_nothing(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    states = checkpoints(Worker(server, config), 2, losses_of)
    data, finished, _, _ = states[0]
    with pytest.raises(errors.StorageError):
        server.rewind(0, FIRST, 1, finished, (0,), hashlib.sha256(data).hexdigest(), data)
    assert server.state() == states[1]


def test_a_snapshot_gone_bad_does_not_stand_in_the_way_of_the_checkpoint(
    tmp_path: Path, make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    """The caller has the table: a damaged copy on storage must ask for it, not refuse for ever."""
    server = make_server()
    states = checkpoints(Worker(server, config), 2, losses_of)
    data, finished, starts, _ = states[0]
    path = next((tmp_path / "mine" / "snapshots").glob("00000001-*")) / "shard-0.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    digest = hashlib.sha256(data).hexdigest()
    assert server.rewind(0, FIRST, 1, finished, starts, digest, None) is False
    assert server.rewind(0, FIRST, 1, finished, starts, digest, data) is True
    assert server.state() == states[0]


# -- what cannot start --------------------------------------------------------------------------------------------


def every_call(server: ScoreServer, config: RunConfig) -> list[Callable[[], Any]]:
    return [
        lambda: server.join(0, FIRST, 1, runs.config_to_dict(config)),
        lambda: server.open_epoch(0, FIRST, 0),
        lambda: server.observe(b""),
        lambda: server.lease(0, FIRST, np.arange(3), 0),
        lambda: server.report(b""),
        lambda: server.close_epoch(0, FIRST, 0),
        lambda: server.rewind(0, FIRST, 1, 0, (0,), "", None),
        server.state,
        server.snapshot,
        server.stats,
    ]


@pytest.mark.parametrize("trouble", ["name", "folder", "config", "other run", "snapshot"])
def test_a_failure_to_start_is_raised_by_every_call(
    tmp_path: Path, make_config: MakeConfig, config: RunConfig, losses_of: Losses, trouble: str
) -> None:
    storage, run, values = str(tmp_path), "mine", runs.config_to_dict(config)
    kind: type[errors.EsServiceError] = errors.StorageError
    if trouble == "name":
        run, kind = "../mine", errors.RunNameError
    elif trouble == "folder":
        (tmp_path / "file").write_text("")
        storage = str(tmp_path / "file")
    elif trouble == "config":
        values["num_samples"] = 0
    elif trouble == "other run":
        runs.RunStorage(storage, run).begin(make_config(seed=99))
        kind = errors.RunMismatchError
    else:
        Worker(ScoreServer(storage, run, values), config).train(0, losses_of)
        _servers[-1].finish()
        shutil.rmtree(tmp_path / "mine" / "journal")
        next(tmp_path.glob("mine/snapshots/00000001-*/shard-0.arrow")).write_bytes(b"damaged")
    server = ScoreServer(storage, run, values)  # does not raise: Ray would give the actor up for good
    for act in every_call(server, config):
        with pytest.raises(kind):
            act()


def frames_of(act: Callable[[], object]) -> int:
    """How many frames the traceback of what a call raises has."""
    with pytest.raises(errors.EsServiceError) as raised:
        act()
    return len(traceback.extract_tb(raised.value.__traceback__))


@pytest.mark.parametrize("trouble", ["failed to start", "taken over", "snapshot"])
def test_an_error_that_is_kept_is_no_longer_each_time_it_is_raised(
    tmp_path: Path, config: RunConfig, losses_of: Losses, trouble: str
) -> None:
    storage, values = str(tmp_path), runs.config_to_dict(config)
    server = ScoreServer(storage, "../mine" if trouble == "failed to start" else "mine", values, actor="first")
    act: Callable[[], object] = server.stats
    if trouble != "failed to start":
        worker = Worker(server, config)
        worker.train(0, losses_of)
        server.stored_epochs()
    if trouble == "taken over":
        runs.RunStorage(storage, "mine").claim("first")
        with pytest.raises(errors.StorageError):
            server._run.check_write()
    elif trouble == "snapshot":
        worker.open(1)
        shutil.move(tmp_path / "mine", tmp_path / "moved")
        server.close_epoch(0, FIRST, 1)
        act = server.stored_epochs
    first = frames_of(act)
    assert max(frames_of(act) for _ in range(20)) <= first + 2
    if (tmp_path / "moved").exists():
        shutil.move(tmp_path / "moved", tmp_path / "mine")


# -- readers ------------------------------------------------------------------------------------------------------


def test_readers_on_other_threads_see_whole_steps(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    worker = Worker(server, config)
    torn: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            visits = sum(server.snapshot().column("visits").to_pylist())
            if visits % 6:
                torn.append(visits)
            server.stats()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for epoch in range(4):
            worker.train(epoch, losses_of)
    finally:
        stop.set()
        reader.join()
    assert torn == []


def test_a_snapshot_is_a_copy(make_server: MakeServer, config: RunConfig, losses_of: Losses) -> None:
    server = make_server()
    snapshot = server.snapshot()
    before = repr(snapshot.to_pydict())
    Worker(server, config).train(0, losses_of)
    assert repr(snapshot.to_pydict()) == before


# -- what it says of itself ----------------------------------------------------------------------------------------


def test_it_counts_its_calls_by_how_long_they_took(make_config: MakeConfig, losses_of: Losses, tmp_path: Path) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "run", runs.config_to_dict(config))
    worker = Worker(server, config)
    worker.train(0, losses_of)
    assert server.stored_epochs() == 1
    calls = server.stats()["calls"]
    assert {name: sum(one["counts"]) for name, one in calls.items() if name != "copy_records"} == {
        "observe": 4,
        "report": 1,
        "copy_part": 1,
        "write_part": 1,
    }
    for one in calls.values():
        assert len(one["counts"]) == len(one["edges_s"]) + 1
        lowest = sum(num * edge for num, edge in zip(one["counts"], [0.0, *one["edges_s"]], strict=True))
        assert lowest <= one["total_s"]


def test_an_epoch_is_one_line_of_json_in_its_log(
    make_config: MakeConfig, losses_of: Losses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "run", runs.config_to_dict(config))
    worker = Worker(server, config)
    with caplog.at_level(logging.INFO, logger="es_service.epochs"):
        worker.train(0, losses_of)
        worker.train(1, losses_of)
    first, second = (json.loads(record.getMessage()) for record in caplog.records)
    assert first["event"] == "epoch_finished"
    assert (first["run"], first["epoch"], first["steps"], first["run_step"]) == ("run", 0, 4, 4)
    assert (first["num_reports"], first["num_observed"], first["num_selected"]) == (5, 24, 12)
    assert (second["epoch"], second["run_step"], second["num_observed"]) == (1, 8, 48)
    assert 0 <= first["seconds"] < 60


# -- what a close closes ------------------------------------------------------------------------------------------


def test_a_close_with_reports_that_are_not_here_is_refused(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    """They went down with a process: nothing is closed before they are sent again."""
    server = make_server()
    worker = Worker(server, config)
    share, _ = worker.open(0)
    messages = [worker.message(share[6 * k : 6 * k + 6], losses_of(share[6 * k : 6 * k + 6], k), k) for k in range(4)]
    server.report(b"".join(messages[:3]))
    for _ in range(2):
        with pytest.raises(errors.ServerRestartedError, match="rank 0 has sent 4 reports, of which 3 are here"):
            server.close_epoch(0, FIRST, 0, 4, (4,), turn="a turn")
    assert server.whereabouts(0, FIRST) == (0, True)
    server.report(messages[3])
    assert server.close_epoch(0, FIRST, 0, 4, (4,), turn="a turn") is True
    assert server.whereabouts(0, FIRST) == (1, False)


def test_settling_says_that_a_close_is_not_known_here(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.open(0)
    server.settle(0, FIRST, 0, 0)
    with pytest.raises(errors.ServerRestartedError, match="has closed 1 epochs, which is not known here"):
        server.settle(0, FIRST, 0, 1)


def test_rows_of_an_epoch_that_is_not_open_here_are_not_leased(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    """A server that came back from before would lease rows that others' reports are missing from."""
    server = make_server()
    worker = Worker(server, config)
    ids, _ = worker.open(0)
    request = wire.encode_request(Caller(0, FIRST), 4, ids)
    for act in (lambda: server.lease(0, FIRST, ids, 4), lambda: server.fetch(request)):
        with pytest.raises(errors.ServerRestartedError, match="the epoch of run step 4 is not open here"):
            act()


# -- other jobs, other ranks --------------------------------------------------------------------------------------


def test_a_second_job_that_would_be_refused_its_epoch_leaves_the_first_alone(
    make_server: MakeServer, config: RunConfig, losses_of: Losses
) -> None:
    server = make_server()
    worker = Worker(server, config)
    worker.train(0, losses_of)
    share, first = worker.open(1)
    server.observe(worker.message(share[:6], losses_of(share[:6], first), first))
    before = table(server)
    described = runs.config_to_dict(config)
    with pytest.raises(errors.EpochOrderError, match="rank 0 opens epoch 0, but the run stands before epoch 1"):
        server.join(0, SECOND, 1, described, 0)
    assert table(server) == before
    server.observe(worker.message(share[6:12], losses_of(share[6:12], first + 1), first + 1))
    server.join(0, SECOND, 1, described, 1)  # one that goes on from there, as a group that was restarted
    with pytest.raises(errors.EpochOrderError, match="fenced"):
        server.observe(worker.message(share[12:], losses_of(share[12:], first + 2), first + 2))


def test_the_state_of_an_epochs_end_names_late_ranks_and_is_to_be_had_when_others_are_ahead(
    tmp_path: Path, make_config: MakeConfig, losses_of: Losses
) -> None:
    config = make_config()
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config))
    workers = [Worker(server, config, rank, world=2) for rank in range(2)]
    for worker in workers:
        share, first = worker.open(0)
        server.observe(worker.message(share[:6], losses_of(share[:6], first), first))
    server.close_epoch(0, FIRST, 0)
    assert server.state(1) == [1]
    with pytest.raises(errors.EpochOrderError, match="epoch 0 is open"):
        server.state()
    server.close_epoch(1, FIRST, 0)
    state = server.state(1)
    assert state == server.state()
    share, first = workers[1].open(1)
    server.observe(workers[1].message(share[:6], losses_of(share[:6], first), first))
    assert server.state(1) == state
    with pytest.raises(errors.EpochOrderError, match="epoch 1 is open"):
        server.state()
    server.stored_epochs()
    shutil.rmtree(tmp_path / "mine" / "snapshots")
    with pytest.raises(errors.StorageError, match="a rank has opened epoch 1, and the snapshot of the end of epoch 0"):
        server.state(1)


def test_a_folder_that_is_deleted_while_it_is_written_is_said_to_be_gone(
    tmp_path: Path, config: RunConfig, losses_of: Losses
) -> None:
    """Not that another server writes the run; what is reported is kept, and written where the folder comes back."""
    server = ScoreServer(str(tmp_path), "mine", runs.config_to_dict(config), actor="this one")
    worker = Worker(server, config)
    share, _ = worker.open(0)
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    server.observe(worker.message(share[:6], losses_of(share[:6], 0), 0))
    with pytest.raises(
        errors.StorageError, match=r"the run's folder .*/mine is gone, or its run\.json: it was deleted"
    ):
        server.settle(0, FIRST, 1)
    assert not (tmp_path / "mine").exists()
    server.observe(worker.message(share[6:12], losses_of(share[6:12], 1), 1))
    (tmp_path / "elsewhere").rename(tmp_path / "mine")
    assert wire.decode_acknowledgement(server.settle(0, FIRST, 2))[0].durable == 2
