"""What replicas refuse, what they wait for, and what they do with ids that several ranks observe.

That their selection and table are those of one process: see test_exchanges.py.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.actors.wire import Report
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage
from es_service.storage.table_files import decode_table, encode_table

SHAPE: dict[str, Any] = {"num_samples": 120, "num_epochs": 3, "batch_size": 10}  # 2 ranks: 6 steps an epoch
SELECTION = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=1)
DEADLINE_S = 2.0


def losses_of(ids: Any, epoch: int = 0) -> Any:
    return (1.0 + (ids * 37 % 101) / 25.0 + epoch).astype(np.float32)


def connect(storage: str, **changes: Any) -> tuple[es.Selector, int]:
    """Return this process's selector and rank; what a test gives as rank1=… is for that rank alone."""
    from torch import distributed

    rank = distributed.get_rank()
    changes = {**changes, **changes.pop(f"rank{rank}", {})}
    changes = {key: value for key, value in changes.items() if not key.startswith("rank") or key == "rank"}
    arguments = {"run": "run", "selection": SELECTION, **SHAPE, "deadline_s": 30.0, "storage": storage, **changes}
    return es.connect(exchange="collective", **arguments), rank


def connect_only(storage: str, changes: dict[str, Any]) -> None:
    connect(storage, **changes)[0].close()


REFUSED = {
    "another seed": ({"selection": es.Selection(es.methods.evolved(), seed=2)}, "selection.seed: 2, expected 1"),
    "another method": ({"selection": es.Selection(es.methods.loss(), ratio=0.5, anneal=(0, 0), seed=1)}, "method"),
    "another setting of the method": (
        {"selection": es.Selection(es.methods.evolved(beta1=0.1), ratio=0.5, anneal=(0, 0), seed=1)},
        "beta1: 0.1, expected 0.2",
    ),
    "another batch size": ({"batch_size": 20}, "batch_size: 20, expected 10"),
    "another number of samples": ({"num_samples": 121}, "num_samples: 121, expected 120"),
    "another k": ({"every": 2}, "every: 2, expected 1"),
    "another run": ({"run": "other"}, "run: 'other', expected 'run'"),
    "another world size": ({"rank": 1, "world_size": 3}, "world_size: 3, expected 2"),
    "another's place": ({"rank": 0, "world_size": 2}, "rank: 0, expected 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_rank_with_other_settings_is_named_on_every_rank(what: str, ranks: Any, storage: str) -> None:
    changes, message = REFUSED[what]
    answers = ranks.run(connect_only, storage, {"rank1": changes}, world_size=2)
    for error in answers:
        assert isinstance(error, es.RunMismatchError)
        assert "rank 1 came with other settings" in str(error)
        assert message in str(error)
    assert not Path(storage).exists()


def test_a_world_size_that_all_ranks_have_wrong_is_refused(ranks: Any, storage: str) -> None:
    [error, other] = ranks.run(
        connect_only,
        storage,
        {"rank0": {"rank": 0, "world_size": 4}, "rank1": {"rank": 1, "world_size": 4}},
        world_size=2,
    )
    assert "world_size: 4, expected 2" in str(error)
    assert str(other) == str(error)


def test_a_plan_too_small_for_the_ranks_is_refused(ranks: Any, storage: str) -> None:
    for error in ranks.run(connect_only, storage, {"batch_size": 61}, world_size=2):
        assert isinstance(error, es.ConfigError)
        assert "at most 60" in str(error)


def test_what_rank_0_cannot_write_ends_every_rank(ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    own, other = ranks.run(connect_only, str(tmp_path / "file"), {}, world_size=2)
    assert isinstance(own, es.StorageError)
    assert isinstance(other, es.StorageError)
    assert "rank 0" in str(other)
    assert str(tmp_path / "file") in str(other)


def hand_over(rank: int) -> None:
    """Rank 1 does nothing until rank 0 comes here too."""
    import torch
    from torch import distributed

    if rank == 0:
        distributed.send(torch.zeros(1), dst=1)
    else:
        distributed.recv(torch.zeros(1), src=0)


def never_connect(storage: str) -> None:
    from torch import distributed

    rank = distributed.get_rank()
    try:
        if rank == 0:
            connect(storage, deadline_s=DEADLINE_S)
    finally:
        hand_over(rank)


def test_a_rank_that_never_connects_is_waited_for_in_vain(ranks: Any, storage: str) -> None:
    error, _ = ranks.run(never_connect, storage, world_size=2)
    assert isinstance(error, es.ServerUnavailableError)
    assert "rank 0 of 2 waited for the other ranks to connect, at most 2 s" in str(error)


def stop_early(storage: str, how: str, every: int) -> Any:
    """Be rank 0, which wants to go on, or rank 1, which stops after two steps; return how long rank 0 waited."""
    selector, rank = connect(storage, every=every, deadline_s=DEADLINE_S)
    for step, ids in enumerate(selector.epoch(0)):
        if rank == 1 and step == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "left":
                selector.close()
            else:
                hand_over(rank)
            return None
        begin = time.monotonic()
        try:
            selector.select(ids, losses_of(ids))
        except es.ServerUnavailableError as error:
            waited_s = time.monotonic() - begin
            with pytest.raises(es.ServerUnavailableError):
                selector.select(ids, losses_of(ids))  # there is no going on
            if how == "frozen":
                hand_over(rank)
            return str(error), waited_s
    return "done", 0.0


@pytest.mark.parametrize("how", ["killed", "frozen", "left"])
def test_a_rank_that_stops_ends_the_others_by_the_deadline(how: str, ranks: Any, storage: str) -> None:
    answers = ranks.run(stop_early, storage, how, 1, world_size=2)
    message, waited_s = answers[0]
    assert "rank 0 of 2 waited for the other ranks to start step 2 of epoch 0, at most 2 s" in message
    assert waited_s < DEADLINE_S + 1
    if how == "killed":
        assert answers[1] is None


def leave_the_loop(storage: str, every: int) -> Any:
    selector, rank = connect(storage, every=every)
    for step, ids in enumerate(selector.epoch(0)):
        if rank == 1 and step == 3:
            break
        selector.select(ids, losses_of(ids))
    for ids in selector.epoch(1):
        selector.select(ids, losses_of(ids, 1))
    table = selector.table()
    selector.close()
    return encode_table(table), int(table["visits"].to_numpy().sum())


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_an_epoch_left_early_is_closed_when_the_next_one_opens(every: int, ranks: Any, storage: str) -> None:
    answers = ranks.run(leave_the_loop, storage, every, world_size=2)
    assert answers[0] == answers[1]
    assert answers[0][1] == (60 + 30) + 120


def go_apart(storage: str, how: str) -> None:
    """Do on rank 1 what rank 0 does not."""
    selector, rank = connect(storage)
    for ids in selector.epoch(0):
        selector.select(ids, losses_of(ids))
    state = selector.state_dict()
    for step, ids in enumerate(selector.epoch(1)):
        if rank == 1 and step == 1 and how == "resets inside an epoch":
            selector.reset()
            next(selector.epoch(0))
        selector.select(ids, losses_of(ids, 1))
    if rank == 1 and how == "resets":
        selector.reset()
        next(selector.epoch(0))
    if how == "loads another table":
        selector.load_state_dict(state)
        if rank == 1:
            other = Embedded(LocalRun(selector.config), Position(0, 1))
            alone = es.Selector(SELECTION, **SHAPE, exchange=other)
            for ids in alone.epoch(0):
                alone.select(ids, losses_of(ids, 7))
            selector.load_state_dict(alone.state_dict())
        next(selector.epoch(1))
    next(selector.epoch(2))


APART = {
    "resets": (es.EpochOrderError, "rank 1 wants to open epoch 0 while rank 0 wants to open epoch 2"),
    "resets inside an epoch": (
        es.EpochOrderError,
        "rank 1 wants to open epoch 0 while rank 0 wants to start step 1 of epoch 1",
    ),
    "loads another table": (es.RunMismatchError, r"rank(s) [1] hold another table or plan than rank 0 before epoch 1"),
}


@pytest.mark.parametrize("how", APART)
def test_a_rank_that_does_something_else_is_named_on_every_rank(how: str, ranks: Any, storage: str) -> None:
    kind, message = APART[how]
    for error in ranks.run(go_apart, storage, how, world_size=2):
        assert isinstance(error, kind)
        assert message in str(error)


def own_sampler(storage: str, every: int) -> Any:
    """Train on overlapping ids of one's own; return, per step, the visits that this replica knew of, and the table."""
    selector, rank = connect(storage, every=every)
    known = []
    for step, _ in enumerate(selector.epoch(0)):
        ids = np.arange(10) + 5 * rank + step  # half of a step's ids are the other rank's too, in the same step
        selector.select(ids, losses_of(ids, rank + step))
        known.append(int(selector.table()["visits"].to_numpy().sum()))
    next(selector.epoch(1))
    table = selector.table()
    selector.close()
    return known, encode_table(table)


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_ids_that_several_ranks_observe_leave_equal_replicas(every: int, ranks: Any, storage: str) -> None:
    """Applied in the order of steps, and of ranks within a step, as one process in lockstep does."""
    answers = ranks.run(own_sampler, storage, every, world_size=2)
    assert answers[0][1] == answers[1][1]
    keeper = LocalRun(RunConfig(selection=SELECTION, **SHAPE))
    reference = [es.Selector(SELECTION, **SHAPE, exchange=Embedded(keeper, Position(rank, 2))) for rank in range(2)]
    for step, _ in enumerate(zip(*(selector.epoch(0) for selector in reference), strict=True)):
        for rank, selector in enumerate(reference):
            ids = np.arange(10) + 5 * rank + step
            selector.select(ids, losses_of(ids, rank + step))
    expected = reference[0].table()
    table = decode_table(answers[0][1], "the table")
    for name in set(expected.column_names) - {"selected"}:  # a draw does not know the other rank's same step
        assert table[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes(), name
    # What a replica knows after each step: all of its own, and the other's up to the last all-gather; behind the last
    # step, which closes the epoch, all there is.
    for known, _ in answers:
        assert known == [*(10 * (step + 1) + 10 * (step // every * every) for step in range(5)), 120]


def train_on(storage: str, reset: bool) -> Any:
    selector, rank = connect(storage)
    if reset:
        selector.reset()
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            with pytest.raises(es.EpochOrderError, match=f"epoch {epoch} is open"):
                selector.state_dict()
            selector.select(ids, losses_of(ids, epoch))
        selector.log(accuracy=0.5 + rank, epochs_made=epoch + 1)
    table = encode_table(selector.table())
    selector.close()
    with pytest.raises(es.ServerUnavailableError, match="closed"):
        next(selector.epoch(2))
    return table


def test_rank_0_keeps_snapshots_and_progress_and_the_next_life_has_to_say_what_it_wants(
    ranks: Any, storage: str
) -> None:
    tables = ranks.run(train_on, storage, False, world_size=2)
    kept = RunStorage(storage, "run")
    assert kept.snapshots.newest() == 2
    assert {*tables} == {encode_table(kept.table())}
    progress = json.loads((Path(storage) / "run" / "progress.json").read_text())
    assert [(one["epoch"], one["accuracy"]) for one in progress["history"]] == [(0, 0.5), (1, 0.5)]
    assert [one["metrics"] for one in progress["history"]] == [{"epochs_made": 1.0}, {"epochs_made": 2.0}]
    assert progress["samples"] == {"scored": 240, "trained": 120, "full": 240}  # of both ranks
    for error in ranks.run(train_on, storage, False, world_size=2):
        assert isinstance(error, es.EpochOrderError)
        assert "the storage holds 2 finished epoch(s)" in str(error)
    assert ranks.run(train_on, storage, True, world_size=2) == tables
    own, other = ranks.run(connect_only, storage, {"num_epochs": 4}, world_size=2)
    assert isinstance(own, es.RunMismatchError)
    assert isinstance(other, es.RunMismatchError)
    assert "num_epochs: run 3, yours 4" in str(own)
    assert str(own) in str(other)


def continue_from(storage: str, state: dict[str, Any], epoch: int) -> Any:
    selector, _ = connect(storage)
    assert selector.load_state_dict(state) == epoch
    for ids in selector.epoch(epoch):
        selector.select(ids, losses_of(ids, epoch))
    return encode_table(selector.table())


def test_a_state_of_one_process_goes_to_replicas_unless_it_was_saved_inside_an_epoch(ranks: Any, storage: str) -> None:
    alone = es.Selector(SELECTION, **SHAPE)
    for ids in alone.epoch(0):
        alone.select(ids, losses_of(ids))
    state = alone.state_dict()
    steps = alone.epoch(1)
    first = next(steps)
    alone.select(first, losses_of(first, 1))
    inside = alone.state_dict()
    for ids in steps:
        alone.select(ids, losses_of(ids, 1))
    answers = ranks.run(continue_from, storage, state, 1, world_size=3)
    table = decode_table(answers[0], "the table")
    assert {*answers} == {answers[0]}
    for name in ("s", "w", "last_loss", "visits"):  # the same ids and losses, in other batches: drawn otherwise
        assert table[name].to_numpy().tobytes() == alone.table()[name].to_numpy().tobytes()
    for error in ranks.run(continue_from, storage, inside, 1, world_size=2):
        assert isinstance(error, es.ConfigError)
        assert "saved inside an epoch" in str(error)


KEPT = {
    "plain": {},
    "pruned": {"prune_ratio": 0.3},
    "scored every second epoch": {"score_every": 2},
    "scored in part": {"score_share": 0.3},
    "pruned, and annealed at both ends": {"prune_ratio": 0.3, "anneal": (0.3, 0.3)},
}


def selection_of(name: str) -> es.Selection:
    return es.Selection(es.methods.evolved(), **{"ratio": 0.5, "anneal": (0, 0), "seed": 1, **KEPT[name]})


def _num_reports() -> int:
    gc.collect()
    return sum(isinstance(one, Report) for one in gc.get_objects())


def train_and_tell(storage: str, name: str, every: int, epochs: int) -> Any:
    """Return what this rank observed: (id, step, rank, loss, picked); and how many reports it has in memory at each
    epoch's end.

    In an epoch that does not score, the losses of what was drawn come after the draw, but for each third step's: these
    never come.
    """
    of_others = _num_reports()  # earlier tests ran in this process
    selector, rank = connect(storage, selection=selection_of(name), every=every)
    rows: list[Any] = []
    left = []
    run_step = 0
    for epoch in range(epochs):
        for step, ids in enumerate(selector.epoch(epoch)):
            asked = selector.to_score(ids)
            if asked.size == ids.size or step % 3 == 0:
                seen, picked = ids, selector.select(ids, losses_of(ids, epoch)).ids
            elif asked.size:
                scored = ids[asked]
                picked = selector.select(ids, losses_of(scored, epoch), scored=asked).ids
                new = picked[~np.isin(picked, scored)]
                if step % 3 == 1:
                    selector.observe(losses_of(picked, epoch))
                    seen = np.concatenate([scored, new])
                else:
                    rows += [(one, None, rank, None, True) for one in new.tolist()]
                    seen = scored
            else:
                seen = picked = selector.select(ids).ids
                if step % 3 == 1:
                    selector.observe(losses_of(picked, epoch))
                else:  # counted with the next step, or the close
                    rows += [(one, None, rank, None, True) for one in picked.tolist()]
                    seen = picked[:0]
            losses = losses_of(seen, epoch).tolist()
            rows += [
                (one, run_step, rank, loss, one in picked) for one, loss in zip(seen.tolist(), losses, strict=True)
            ]
            run_step += 1
        left.append(_num_reports() - of_others)
    selector.close()
    return rows, left


@pytest.mark.parametrize(
    ("name", "world_size", "every"),
    [
        *(("plain", world_size, every) for world_size in (1, 2, 3, 4) for every in (1, 4)),
        *((name, 2, every) for name in KEPT if name != "plain" for every in (1, 1000)),
        ("scored every second epoch", 1, 1),
        ("scored in part", 1, 1),
        ("pruned", 4, 3),
    ],
)
def test_the_history_has_what_every_rank_observed_once(
    name: str, world_size: int, every: int, ranks: Any, storage: str
) -> None:
    answers = ranks.run(train_and_tell, storage, name, every, 3, world_size=world_size)
    kept = RunStorage(storage, "run")
    assert kept.history.epochs() == [0, 1, 2]
    tables = [kept.history.epoch(epoch) for epoch in range(3)]
    found = [
        (row["id"], None, row["rank"], None, True) if np.isnan(row["loss"]) else tuple(row.values())
        for table in tables
        for row in table.to_pylist()
    ]
    assert sorted(map(repr, found)) == sorted(repr(row) for rows, _ in answers for row in rows)
    visits = np.bincount([row[0] for row in found if row[3] is not None], minlength=SHAPE["num_samples"])
    assert visits.tolist() == kept.table()["visits"].to_pylist()
    picks = np.bincount([row[0] for row in found if row[4]], minlength=SHAPE["num_samples"])
    assert picks.tolist() == kept.table()["selected"].to_pylist()
    for _, left in answers:
        assert left == [0, 0, 0]
