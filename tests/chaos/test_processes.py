"""Servers that freeze or die, and what a training does meanwhile: `on_unavailable`."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import pytest

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call_patiently
from es_service.storage.table_files import encode_table


@pytest.fixture
def frozen(run: str) -> Iterator[list[int]]:
    """Processes that were stopped; they go on, at the latest, when the test ends."""
    stopped: list[int] = []
    yield stopped
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)


def freeze(run: str, stopped: list[int]) -> None:
    pid = driving.pid_of(run)
    stopped.append(pid)
    os.kill(pid, signal.SIGSTOP)


def thaw(stopped: list[int]) -> None:
    while stopped:
        os.kill(stopped.pop(), signal.SIGCONT)


def test_a_frozen_server_is_an_error_past_the_deadline_by_default(run: str, tmp_path: Path, frozen: list[int]) -> None:
    selection = driving.selection_of("es", seed=1)
    selectors = driving.connect(run, str(tmp_path), selection, "sync", deadline_s=2.0)

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (0, 3):
            freeze(run, frozen)

    begin = time.monotonic()
    with pytest.raises(es.ServerUnavailableError, match="no answer from the score server within"):
        driving.train(selectors, hook=disturb)
    assert time.monotonic() - begin < 60
    thaw(frozen)
    selectors[0].close()


@pytest.mark.parametrize("exchange, at", [("sync", (1, 3)), ("leased", (1, 3)), ("leased", (1, -1))])
def test_a_training_that_waits_ends_as_if_nothing_had_been(
    exchange: str, at: tuple[int, int], run: str, tmp_path: Path, frozen: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    selection = driving.selection_of("eswp", seed=2)
    selectors = driving.connect(run, str(tmp_path), selection, exchange, deadline_s=2.0, on_unavailable="wait")

    retries = threading.Event()
    thawing = threading.Thread(target=_thaw_when_said, args=(caplog, frozen, retries))

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == at:
            freeze(run, frozen)
            thawing.start()

    drawn = driving.train(selectors, hook=disturb)
    thawing.join()
    assert retries.is_set()
    assert driving.outcome(selectors, drawn) == driving.undisturbed(selection)


def _thaw_when_said(caplog: pytest.LogCaptureFixture, stopped: list[int], retries: threading.Event) -> None:
    give_up = time.monotonic() + 60
    while not retries.is_set() and time.monotonic() < give_up:
        if "Still retrying (on_unavailable='wait')" in caplog.text:
            retries.set()
        time.sleep(0.01)  # polling a log
    thaw(stopped)


@pytest.mark.parametrize("exchange", ["leased", "sync", pytest.param("prefetch", marks=pytest.mark.thorough)])
def test_a_training_that_continues_loses_no_step_and_comes_back(
    exchange: str, run: str, tmp_path: Path, frozen: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Away from inside epoch 1 to the beginning of epoch 3: epoch 2 is trained without the server."""
    selection = driving.selection_of("es", seed=3)
    selectors = driving.connect(run, str(tmp_path), selection, exchange, deadline_s=4.0, on_unavailable="continue")
    server = launch.find(run)

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            freeze(run, frozen)
        if (epoch, step) == (3, -1):
            thaw(frozen)
            driving.pid_of(run)  # it answers again
            selectors[0].exchange._is_back()  # type: ignore[attr-defined]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        drawn = driving.train(selectors, hook=disturb)
    said = [str(one.message) for one in warned if "training continues without it" in str(one.message)]
    assert len(said) == 1
    steps = [(epoch, step) for epoch, step, _, _ in drawn]
    assert steps == [(epoch, step) for epoch in range(4) for step in range(19)]
    assert all(len(set(ids)) == len(ids) for *_, ids in drawn)
    expected = driving.undisturbed(selection).drawn
    assert drawn[:22] == expected[:22]  # until it was away
    stats = call_patiently(server.stats.remote, 30.0, "ask how it is")
    assert stats["finished_epochs"] == 4
    lacking = selectors[0].exchange.num_dropped  # type: ignore[attr-defined]
    assert lacking >= 600  # all of epoch 2, and with sync what could not be asked in epoch 1
    assert f"is back: its table lacks {lacking} observations of this rank, which made epochs [2]" in caplog.text
    visits = selectors[0].table().column("visits").to_pylist()
    assert 2 <= max(visits) <= 4
    selectors[0].close()


def until_frozen(selector: es.Selector, run: str, stopped: list[int], where: str) -> Callable[[], object]:
    """Train up to a call between two epochs, and freeze the server right before it; return that call."""
    driving.pid_of(run)  # it is up: the deadline is short
    driving.train([selector], 0, 1)
    exchange: Any = selector.exchange
    if where == "close":
        steps = selector.epoch(1)
        for _ in range(18):
            ids = next(steps)
            selector.select(ids, driving.losses_of(selector.config.selection.seed, 1, ids))
        for send_queue in getattr(exchange, "_inner", exchange)._send_queues:
            send_queue.flush()
    freeze(run, stopped)
    return {
        "open": lambda: driving.train([selector], 1, 2),
        "close": lambda: exchange.close_epoch(1, 18, selector.ledger),
        "log": lambda: selector.log(accuracy=0.5),
    }[where]


def seconds_of(act: Callable[[], object], stopped: list[int]) -> float:
    """Return how long a call takes; the server thaws after 15 s, so that one which never gives up returns too."""
    thawing = threading.Timer(15.0, thaw, [stopped])
    thawing.start()
    begin = time.monotonic()
    try:
        act()
    finally:
        thawing.cancel()
    return time.monotonic() - begin


@pytest.mark.parametrize(
    "exchange, where",
    [
        ("leased", "open"),
        ("leased", "close"),
        pytest.param("prefetch", "open", marks=pytest.mark.thorough),
        pytest.param("sync", "open", marks=pytest.mark.thorough),
        pytest.param("leased", "log", marks=pytest.mark.thorough),
    ],
)
def test_a_training_that_continues_waits_between_two_epochs_for_a_deadline_only(
    exchange: str, where: str, run: str, tmp_path: Path, frozen: list[int]
) -> None:
    selection = driving.selection_of("es", seed=8)
    [selector] = driving.connect(run, str(tmp_path), selection, exchange, deadline_s=3.0, on_unavailable="continue")
    act = until_frozen(selector, run, frozen, where)
    with pytest.warns(UserWarning, match="training continues without it") as warned:
        assert seconds_of(act, frozen) < 12.0
    assert len(warned) == 1
    thaw(frozen)
    driving.pid_of(run)  # it answers again
    selector.exchange._is_back()  # type: ignore[attr-defined]
    if where == "close":
        selector.close()
        return
    drawn = driving.train([selector], 1 if where == "log" else 2)
    assert len(drawn) == 19 * (3 if where == "log" else 2)
    stats = call_patiently(launch.find(run).stats.remote, 30.0, "ask how it is")
    assert stats["finished_epochs"] == 4
    if where == "log":
        assert [one["accuracy"] for one in stats["progress"]["history"]] == [0.5, None, None, None]
    selector.close()


@pytest.mark.parametrize(
    "where", ["open", *(pytest.param(where, marks=pytest.mark.thorough) for where in ("close", "log"))]
)
def test_a_server_that_is_frozen_between_two_epochs_is_an_error_past_the_deadline(
    where: str, run: str, tmp_path: Path, frozen: list[int]
) -> None:
    selection = driving.selection_of("es", seed=9)
    [selector] = driving.connect(run, str(tmp_path), selection, "leased", deadline_s=3.0)
    act = until_frozen(selector, run, frozen, where)

    def refused() -> None:
        with pytest.raises(es.ServerUnavailableError, match="no answer from the score server within"):
            act()

    assert seconds_of(refused, frozen) < 12.0
    thaw(frozen)
    selector.close()


def test_a_worker_that_dies_costs_its_epoch_and_nothing_else(run: str, tmp_path: Path) -> None:
    """A second life of the group, after a SIGKILL of both the ranks' process and the server."""
    selection = driving.selection_of("eswp", seed=4)
    first = driving.connect(run, str(tmp_path), selection, "leased", 2)
    drawn = driving.train(first, 0, 2)
    state = first[0].state_dict()
    halfway = [selector.epoch(2) for selector in first]
    for selector, steps in zip(first, halfway, strict=True):
        ids = next(steps)
        selector.select(ids, driving.losses_of(4, 2, ids))
    driving.kill(run)
    second = driving.connect(run, str(tmp_path), selection, "leased", 2)
    for selector in second:
        assert selector.load_state_dict(state) == 2
    drawn += driving.train(second, 2)
    assert driving.outcome(second, drawn) == driving.undisturbed(selection, 2)
    for selector in first:
        selector.close()


def test_a_second_server_for_a_run_is_refused(run: str, tmp_path: Path) -> None:
    """One of another cluster, or a hand-made one: whoever is not the actor that writes the run."""
    from es_service.actors.score_server import ScoreServer
    from es_service.storage import runs

    selection = driving.selection_of("es", seed=6)
    selectors = driving.connect(run, str(tmp_path), selection, "sync")
    driving.train(selectors, 0, 1)
    second = ScoreServer(str(tmp_path), run, runs.config_to_dict(selectors[0].config), actor="another")
    failure = second.identity()[0]
    assert isinstance(failure, es.RunExistsError)
    assert f"another score server (process {driving.pid_of(run)} on " in str(failure)
    drawn = driving.train(selectors, 1)
    assert [one[0] for one in drawn[::19]] == [1, 2, 3]
    selectors[0].close()


def test_a_server_that_was_taken_for_dead_writes_no_more(run: str, tmp_path: Path, frozen: list[int]) -> None:
    """It was frozen, another took its place; when it wakes it refuses its ranks instead of spoiling the run's files."""
    from es_service.actors.score_server import ScoreServer
    from es_service.storage import runs

    selection = driving.selection_of("es", seed=7)
    selectors = driving.connect(run, str(tmp_path), selection, "sync", deadline_s=20.0)
    driving.train(selectors, 0, 1)
    freeze(run, frozen)
    second = ScoreServer(str(tmp_path), run, runs.config_to_dict(selectors[0].config), actor="another")
    assert second.identity()[0] is None
    before = second.snapshot()
    thaw(frozen)
    with pytest.raises(es.EsServiceError, match="another score server"):
        driving.train(selectors, 1)
    assert encode_table(second.snapshot()) == encode_table(before)
    second.finish()
    selectors[0].close()
