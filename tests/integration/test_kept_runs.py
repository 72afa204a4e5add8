"""What a run keeps of every epoch over several ranks: ledgers merged, by a score server or by replicas."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call, call_patiently
from es_service.ledger import Ledger
from es_service.storage.runs import RunStorage

SHAPE: dict[str, Any] = {"num_samples": 240, "num_epochs": 4, "batch_size": 20}
SELECTION = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0.25, 0), seed=3)


def losses_of(ids: Any, epoch: int) -> Any:
    return (1.0 + (ids * 37 % 101) / 25.0 + epoch).astype(np.float32)


def connect(run: str, storage: str, **changes: Any) -> list[es.Selector]:
    options = {**SHAPE, "storage": storage, "world_size": 2, "generation": "one", **changes}
    return [es.connect(run, SELECTION, rank=rank, **options) for rank in range(options["world_size"])]


def steps_of(
    selector: es.Selector, epoch: int, num: int | None = None, before_last: Callable[[], None] = lambda: None
) -> None:
    for step, ids in enumerate(selector.epoch(epoch), 1):
        if step == selector.steps(epoch):
            before_last()
        selector.select(ids, losses_of(ids, epoch))
        if step == num:
            return


def kept(storage: str, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(storage) / run / "progress.json").read_text())
    return found


def kill_server(run: str) -> None:
    server = launch.find(run)
    pid = call(server.pid.remote(), 10.0, "ask for its pid")
    os.kill(pid, signal.SIGKILL)
    call_patiently(server.ping.remote, 60.0, "come back")


def counts(entry: dict[str, Any]) -> tuple[int, int, int]:
    return entry["scored"], entry["trained"], entry["ledger"]["full"]


@pytest.mark.parametrize("exchange", ["leased", "sync", "prefetch"])
def test_the_ledgers_of_all_ranks_are_merged_when_the_last_one_closes(exchange: str, run: str, storage: str) -> None:
    first, second = connect(run, storage, exchange=exchange, shards=2)
    for epoch in range(2):
        steps_of(first, epoch)
        first.log(accuracy=0.5 + epoch / 10)  # before the other one is done
        second.log(accuracy=0.1)  # of rank 1: it does not count
        assert len(kept(storage, run)["history"]) == epoch if epoch else True
        steps_of(second, epoch)
        found = kept(storage, run)
        merged = Ledger.merge([first.ledger, second.ledger])
        assert counts(found["history"][-1]) == (merged.scored, merged.trained, merged.full)
        assert found["history"][-1]["accuracy"] == 0.5 + epoch / 10
        assert (found["epoch"], found["done"]) == (epoch, 1.0)
    about = RunStorage(storage, run).training()
    assert about == {"task": None, "method": "evolved", "exchange": exchange, "workers": 2}
    shown = call(launch.find(run).stats.remote(), 10.0, "read stats")["progress"]
    assert [counts(one) for one in shown["history"]] == [counts(one) for one in found["history"]]
    for one in (first, second):
        one.close()


def test_a_server_that_restarts_between_two_ranks_has_both_ledgers(run: str, storage: str) -> None:
    first, second = connect(run, storage)
    steps_of(first, 0)
    first.log(accuracy=0.5, recall=0.25)
    kill_server(run)
    steps_of(second, 0)
    kill_server(run)
    for one in (first, second):
        steps_of(one, 1)
    history = kept(storage, run)["history"]
    assert [(one["epoch"], one["accuracy"], one["metrics"]) for one in history] == [
        (0, 0.5, {"recall": 0.25}),
        (1, None, {}),
    ]
    assert counts(history[0]) == (240, 240, 240)
    assert counts(history[1]) == (480, 360, 480)
    for one in (first, second):
        one.close()


def test_a_new_group_of_ranks_counts_on_from_what_the_run_spent(run: str, storage: str) -> None:
    for one in (before := connect(run, storage)):
        steps_of(one, 0)
    for one in before:
        steps_of(one, 1, num=3)  # the epoch is not finished: it will be made again
    [alone] = connect(run, storage, generation="two", world_size=1)
    assert alone.next_epoch == 1
    steps_of(alone, 1)
    alone.log(accuracy=0.75)
    history = kept(storage, run)["history"]
    assert [counts(one) for one in history] == [(240, 240, 240), (480, 360, 480)]
    state = alone.state_dict()
    steps_of(alone, 2)
    alone.load_state_dict(state)
    assert len(kept(storage, run)["history"]) == 2
    alone.reset()
    assert kept(storage, run).get("history", []) == []
    for one in (*before, alone):
        one.close()


def test_a_training_that_does_without_its_server_brings_the_ledgers_later(run: str, storage: str) -> None:
    [selector] = connect(run, storage, world_size=1, on_unavailable="continue", deadline_s=4.0)
    steps_of(selector, 0)
    pid = call(launch.find(run).pid.remote(), 10.0, "ask for its pid")
    try:
        with pytest.warns(UserWarning, match="is not available"):
            steps_of(selector, 1, before_last=lambda: os.kill(pid, signal.SIGSTOP))
        selector.log(accuracy=0.5)
        steps_of(selector, 2)
        selector.log(accuracy=0.75)
    finally:
        os.kill(pid, signal.SIGCONT)
    call_patiently(launch.find(run).ping.remote, 30.0, "answer")
    selector.exchange._is_back()  # type: ignore[attr-defined]
    steps_of(selector, 3)
    selector.log(accuracy=1.0)
    history = kept(storage, run)["history"]
    assert [one["accuracy"] for one in history] == [None, 0.5, 0.75, 1.0]
    assert [one["trained"] for one in history] == [240, 360, 480, 600]
    selector.close()


def replicas(storage: str, epochs: list[int], state: dict[str, Any] | None) -> Any:
    from torch import distributed

    selector = es.connect("run", SELECTION, **SHAPE, exchange="collective", storage=storage, deadline_s=30.0)
    if state is not None:
        selector.load_state_dict(state)
    for epoch in epochs:
        steps_of(selector, epoch)
        selector.log(accuracy=(1 + epoch) / 10 if distributed.get_rank() == 0 else 0.9)
    ledger, state = selector.ledger.to_dict(), selector.state_dict()
    selector.close()
    return ledger, state


def test_replicas_gather_their_ledgers_and_rank_0_writes_them(ranks: Any, storage: str) -> None:
    answers = ranks.run(replicas, storage, [0, 1], None, world_size=2)
    merged = Ledger.merge([Ledger.from_dict(ledger) for ledger, _ in answers])
    found = kept(storage, "run")
    assert [one["accuracy"] for one in found["history"]] == [0.1, 0.2]
    assert counts(found["history"][1]) == (merged.scored, merged.trained, merged.full)
    assert RunStorage(storage, "run").training() == {
        "task": None, "method": "evolved", "exchange": "collective", "workers": 2,
    }  # fmt: skip
    state = answers[0][1]
    ranks.run(replicas, storage, [2], state, world_size=2)
    again = kept(storage, "run")["history"]
    assert [(one["accuracy"], one["trained"]) for one in again] == [(0.1, 240), (0.2, 360), (pytest.approx(0.3), 480)]
