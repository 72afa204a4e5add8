"""Ranks that are late or ahead, a second job under the run's name, and a folder that is deleted: who hears what.

No Ray here, see `local`.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driving
import local
import pytest

import es_service as es
from es_service.selection.run import RunConfig
from es_service.storage import runs

SELECTION = driving.selection_of("es", seed=51)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[local.Local]:
    made = local.Local(str(tmp_path), RunConfig(selection=SELECTION, **driving.SHAPE))
    yield made
    made.finish()


def train_epoch(selector: es.Selector, epoch: int) -> None:
    for ids in selector.epoch(epoch):
        selector.select(ids, driving.losses_of(51, epoch, ids))


@pytest.mark.parametrize("exchange", ["sync", "leased"])
def test_a_checkpoint_waits_for_ranks_that_are_late(exchange: str, server: local.Local) -> None:
    early, late = local.connect(server, SELECTION, exchange, 2)
    halfway = late.epoch(0)
    next(halfway)
    train_epoch(early, 0)
    states: list[dict[str, Any]] = []
    saving = threading.Thread(target=lambda: states.append(early.state_dict()))
    saving.start()
    saving.join(0.3)
    assert saving.is_alive()
    assert list(halfway)
    saving.join(30.0)
    assert states == [late.state_dict() | {name: states[0][name] for name in ("ledger", "sha256")}]


def test_a_checkpoint_names_the_rank_that_does_not_close(server: local.Local) -> None:
    early, late = local.connect(server, SELECTION, "sync", 2, deadline_s=0.3)
    next(late.epoch(0))
    train_epoch(early, 0)
    with pytest.raises(
        es.ServerUnavailableError, match=r"waited 0\.3 s for the state of the end of epoch 0: rank\(s\) \[1\]"
    ):
        early.state_dict()
    with pytest.raises(es.EpochOrderError, match="epoch 0 is open"):
        late.state_dict()


def test_a_checkpoint_is_the_epochs_end_although_another_rank_is_ahead(server: local.Local) -> None:
    first, second = local.connect(server, SELECTION, "sync", 2)
    closing = threading.Thread(target=lambda: train_epoch(second, 0))
    closing.start()
    train_epoch(first, 0)
    closing.join(30.0)
    expected = first.state_dict()
    ahead = second.epoch(1)
    ids = next(ahead)
    second.select(ids, driving.losses_of(51, 1, ids))
    assert first.state_dict() == expected


def test_a_second_job_that_starts_later_is_refused_and_the_first_goes_on(server: local.Local) -> None:
    [first] = local.connect(server, SELECTION, "leased")
    drawn = local.train([first], 0, 2)

    def disturb(epoch: int, step: int) -> None:
        if step == 3:
            [second] = local.connect(server, SELECTION, "leased", generation="0f" * 16)
            with pytest.raises(es.EpochOrderError, match=f"opens epoch 0, but the run stands before epoch {epoch}"):
                next(second.epoch(0))
            second.close()

    drawn += local.train([first], 2, hook=disturb)
    assert driving.outcome([first], drawn) == driving.undisturbed(SELECTION)


@pytest.mark.filterwarnings("ignore:.*cannot write its storage")
@pytest.mark.parametrize("on_unavailable", ["raise", "continue"])
def test_a_run_whose_folder_is_deleted_is_told_so(on_unavailable: str, server: local.Local, tmp_path: Path) -> None:
    selectors = local.connect(server, SELECTION, "leased", deadline_s=1.0, on_unavailable=on_unavailable)

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            while runs.RunStorage(str(tmp_path), "mine").history.epochs() != [0]:
                time.sleep(0.01)  # polling a folder
            (tmp_path / "mine").rename(tmp_path / "trash")  # at once: what is being written meanwhile goes with it
            shutil.rmtree(tmp_path / "trash", ignore_errors=True)

    if on_unavailable == "raise":
        with pytest.raises(
            es.StorageError, match=rf"epoch 1 of run 'mine' is over.*{tmp_path}/mine is gone.*Put it back"
        ):
            local.train(selectors, hook=disturb)
    else:
        with pytest.warns(UserWarning, match="Training continues \\(on_unavailable='continue'\\)"):
            drawn = local.train(selectors, hook=disturb)
        assert driving.outcome(selectors, drawn) == driving.undisturbed(SELECTION)
    assert not (tmp_path / "mine").exists()
