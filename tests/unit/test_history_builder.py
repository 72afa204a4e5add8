"""From reports to history: a pick belongs to the last observation of its sample before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from es_service import errors
from es_service.actors.history_builder import history_of
from es_service.actors.wire import Report
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.local_run import LocalRun
from es_service.selection.run import Caller, RunConfig
from es_service.selector import Selector
from es_service.storage.runs import RunStorage


def report(seq: int, step: int, ids: list[int], selected: list[int], rank: int = 0, **signals: list[float]) -> Report:
    seen = {name: np.array(values, dtype=np.float32) for name, values in signals.items()} or None
    return Report(Caller(rank, "0a" * 16), seq, step, np.array(ids, np.int64), seen, np.array(selected, np.int64))


def rows(*reports: Report, signals: tuple[str, ...] = ("loss",)) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in history_of(reports, signals).to_pylist()]


def test_what_is_picked_with_its_observation_is_marked() -> None:
    assert rows(report(1, 4, [7, 3], [3], loss=[0.5, 1.5])) == [(3, 4, 0, 1.5, True), (7, 4, 0, 0.5, False)]


def test_what_is_picked_a_step_later_belongs_to_the_step_before() -> None:
    found = rows(
        report(1, 0, [1, 2], [], loss=[1.0, 2.0]), report(2, 1, [3], [2], loss=[3.0]), report(3, 0, [], [3], rank=0)
    )
    assert found == [(1, 0, 0, 1.0, False), (2, 0, 0, 2.0, True), (3, 1, 0, 3.0, True)]


def test_a_sample_seen_twice_is_marked_where_it_was_picked() -> None:
    found = rows(
        report(1, 0, [1], [], loss=[1.0]), report(2, 1, [1], [1], rank=2, loss=[2.0]), report(3, 2, [1], [], loss=[3.0])
    )
    assert found == [(1, 0, 0, 1.0, False), (1, 1, 2, 2.0, True), (1, 2, 0, 3.0, False)]


def test_what_is_picked_unseen_has_no_loss() -> None:
    found = rows(
        report(1, 0, [], [5, 4]), report(2, 1, [5], [], loss=[1.0]), report(3, 2, [], [5]), report(4, 3, [], [5])
    )
    assert found[2] == (5, 1, 0, 1.0, True)
    blind = [found[0], found[1], found[3]]
    assert [(row[0], row[1], row[4]) for row in blind] == [(4, 0, True), (5, 0, True), (5, 3, True)]
    assert all(np.isnan(row[3]) for row in blind)


def test_ids_too_large_for_a_short_key_come_in_the_same_order() -> None:
    far = 2**61
    found = rows(report(1, 0, [far + 1, far], [far], loss=[1.0, 2.0]), report(2, 1, [far], [far + 1], loss=[3.0]))
    assert found == [(far, 0, 0, 2.0, True), (far, 1, 0, 3.0, False), (far + 1, 0, 0, 1.0, True)]


def test_signals_come_along() -> None:
    found = rows(report(1, 0, [5, 6], [6], loss=[1.0, 2.0], correct=[0.0, 1.0]), signals=("loss", "correct"))
    assert found == [(5, 0, 0, 1.0, False, 0.0), (6, 0, 0, 2.0, True, 1.0)]


def test_nothing_makes_an_empty_history() -> None:
    assert rows() == []


def test_it_is_what_a_plain_loop_makes_of_random_reports() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        reports, rows_of, last = [], [], {}
        for seq in range(12):
            ids = rng.choice(6, size=rng.integers(0, 5), replace=False)
            selected = rng.choice(6, size=rng.integers(0, 3), replace=False)
            losses = rng.random(ids.size).astype(np.float32)
            reports.append(report(seq, seq, ids.tolist(), selected.tolist(), **({"loss": losses} if ids.size else {})))
            for one, loss in zip(ids.tolist(), losses.tolist(), strict=True):
                last[one] = [one, seq, loss, False]
                rows_of.append(last[one])
            for one in selected.tolist():
                if one in last and not last[one][3]:
                    last[one][3] = True
                else:
                    rows_of.append([one, seq, -1.0, True])
        found = [[row[0], row[1], -1.0 if np.isnan(row[3]) else row[3], row[4]] for row in rows(*reports)]
        assert sorted(found) == sorted(rows_of)


def test_an_embedded_run_keeps_its_history_and_so_does_one_that_was_reset(tmp_path: Path) -> None:
    selection = Selection(methods.evolved(), ratio=0.5, anneal=(0, 0), seed=2)
    config = RunConfig(selection=selection, num_samples=30, num_epochs=2, batch_size=10)
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), storage)
    selector = Selector(selection, num_samples=30, num_epochs=2, batch_size=10, exchange=exchange)
    for ids in selector.epoch(0):
        selector.select(ids, np.full(10, 9.0))
        break
    selector.reset()
    picked: dict[int, list[int]] = {}
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            for one in selector.select(ids, (ids + epoch).astype(np.float32)).ids.tolist():
                picked.setdefault(one, []).append(epoch)
    assert storage.history.epochs() == [0, 1]
    for one in range(30):
        rows = storage.history.sample(one)
        assert rows.column("epoch").to_pylist() == [0, 1]
        assert rows.column("loss").to_pylist() == [one, one + 1]
        assert rows.filter(rows.column("selected")).column("epoch").to_pylist() == picked.get(one, [])


def losses_kept(storage: RunStorage) -> dict[int, set[float]]:
    """The losses in the history of each epoch, which has to have every sample once."""
    found = {}
    for epoch in storage.history.epochs():
        rows = storage.history.epoch(epoch)
        assert sorted(rows.column("id").to_pylist()) == list(range(30))
        found[epoch] = set(rows.column("loss").to_pylist())
    return found


def test_an_embedded_run_that_goes_back_keeps_nothing_of_what_it_will_do_again(tmp_path: Path) -> None:
    selection = Selection(methods.evolved(), ratio=0.5, anneal=(0, 0), seed=2)
    config = RunConfig(selection=selection, num_samples=30, num_epochs=3, batch_size=10)
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), storage)
    selector = Selector(selection, num_samples=30, num_epochs=3, batch_size=10, exchange=exchange)

    def train(epoch: int, loss: float, stop_after: int = 3) -> None:
        for step, ids in enumerate(selector.epoch(epoch)):
            selector.select(ids, np.full(ids.size, loss))
            if step + 1 == stop_after < 3:
                return

    states = []
    for epoch in range(3):
        train(epoch, 1.0 + epoch)
        states.append(selector.state_dict())
    selector.load_state_dict(states[1])
    assert (losses_kept(storage), storage.spreads.epochs()) == ({0: {1.0}, 1: {2.0}}, [1, 2])
    assert storage.snapshots.epochs() == [1, 2]
    selector.reset()
    assert (losses_kept(storage), storage.spreads.epochs(), storage.snapshots.epochs()) == ({}, [], [])
    train(0, 6.0)
    selector.load_state_dict(states[1])  # of the first life: how it came about is not known here
    assert losses_kept(storage) == {}
    train(2, 7.0)
    assert losses_kept(storage) == {2: {7.0}}
    selector.reset()
    train(0, 8.0)
    train(1, 9.0, stop_after=1)
    inside = selector.state_dict()
    selector.load_state_dict(inside)
    train(1, 9.0)
    train(2, 10.0)
    assert losses_kept(storage).keys() == {2}  # of epoch 1 a part is missing, and nothing says what came before it


def test_several_ranks_in_one_process_do_not_each_write_a_part_of_the_history(tmp_path: Path) -> None:
    config = RunConfig(selection=Selection(methods.evolved()), num_samples=30, num_epochs=2, batch_size=10)
    with pytest.raises(errors.ConfigError, match="one rank"):
        Embedded(LocalRun(config), Position(0, 2), RunStorage(str(tmp_path), "mine"))


def test_a_history_that_cannot_be_written_is_not_the_next_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selection = Selection(methods.evolved(), ratio=0.5, anneal=(0, 0), seed=2)
    config = RunConfig(selection=selection, num_samples=30, num_epochs=2, batch_size=10)
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), storage)
    selector = Selector(selection, num_samples=30, num_epochs=2, batch_size=10, exchange=exchange)
    blocked = tmp_path / "mine" / "history"
    blocked.write_text("a file where the folder should be")
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            selector.select(ids, np.full(ids.size, 1.0 + epoch))
        if epoch == 0:
            assert "no history of epoch 0" in caplog.text
            blocked.unlink()
    assert losses_kept(storage) == {1: {2.0}}
