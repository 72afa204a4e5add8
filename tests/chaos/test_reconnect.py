"""A score server that is stopped while its ranks train, and another one started under its name."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import driving
import pytest

import es_service as es
from es_service.actors import launch
from es_service.selection.run import RunConfig

DEADLINE_S = 2.0
AWAY_S = 5.0


def stop_and_start(run: str, storage: str, selection: es.Selection, took: list[float]) -> None:
    """Stop the server and start one a while later; note this process's processor time, and how long it was away."""
    launch.stop(run)
    began, used = time.monotonic(), time.process_time()
    time.sleep(AWAY_S)  # the time that is measured
    took.append(time.process_time() - used)
    launch.start(run, RunConfig(selection=selection, **driving.SHAPE), storage)
    took.append(time.monotonic() - began)


@pytest.mark.parametrize("exchange", ["leased", pytest.param("sync", marks=pytest.mark.thorough)])
def test_a_server_started_anew_under_the_name_is_found_without_a_busy_loop(
    exchange: str, run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selection = driving.selection_of("es", seed=41)
    selectors = driving.connect(run, str(tmp_path), selection, exchange, deadline_s=DEADLINE_S, on_unavailable="wait")
    took: list[float] = []
    restarting = threading.Thread(target=stop_and_start, args=(run, str(tmp_path), selection, took))

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            restarting.start()
            if exchange == "leased":  # its steps wait for nothing, and the reporting thread has something to report
                while launch_is_up(run):
                    time.sleep(0.01)  # polling Ray's list of names

    drawn = driving.train(selectors, hook=disturb)
    restarting.join(60.0)
    said = [record for record in caplog.records if record.name == "es_service.actors.calls"]
    num_threads = 2 if exchange == "leased" else 1  # that wait
    assert 1 <= len(said) <= num_threads * (took[1] / DEADLINE_S + 2)
    assert "Still retrying (on_unavailable='wait')" in said[0].getMessage()
    assert took[0] < AWAY_S / 3
    assert driving.outcome(selectors, drawn) == driving.undisturbed(selection)


def launch_is_up(run: str) -> bool:
    try:
        launch.find(run)
    except es.RunNotFoundError:
        return False
    return True


def test_a_server_that_is_gone_is_an_error_at_once_by_default(run: str, tmp_path: Path) -> None:
    """Nobody is known to start another one."""
    selectors = driving.connect(run, str(tmp_path), driving.selection_of("es", seed=42), "sync")

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (0, 3):
            launch.stop(run)

    began = time.monotonic()
    with pytest.raises(es.ServerUnavailableError, match="gone for good"):
        driving.train(selectors, hook=disturb)
    assert time.monotonic() - began < 30
    selectors[0].close()
