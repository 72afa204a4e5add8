"""Settings that select nothing: found before anything runs, and said with what to change."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.idle import why_idle
from es_service.selection.local_run import LocalRun
from es_service.selection.named import PRESETS, preset
from es_service.selection.run import RunConfig
from es_service.selector import Selector
from es_service.storage import runs


def config(name: str, *, epochs: int = 2, batch_size: int = 20, **settings: Any) -> RunConfig:
    return RunConfig(selection=preset(name, **settings), num_samples=400, num_epochs=epochs, batch_size=batch_size)


@pytest.mark.parametrize("epochs", [1, 2, 3, 8])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_selects_but_those_that_go_by_earlier_epochs(name: str, epochs: int) -> None:
    by_epochs = name in ("infobatch", "kakurenbo", "ucb", "epsilon_greedy")
    assert (why_idle(config(name, epochs=epochs)) is not None) == (by_epochs and epochs == 1)


@pytest.mark.parametrize(
    ("name", "settings", "change"),
    [
        ("es", {"anneal": (0.5, 0.5)}, "anneal=(0, 0)"),
        ("es", {"anneal": (1, 0)}, "anneal=(0, 0)"),
        ("es", {"anneal_by": "epochs"}, "anneal=(0, 0)"),
        ("es", {"ratio": 1.0}, "lower ratio"),
        ("random", {"ratio": 0.99}, "lower ratio"),
        ("random_subset", {"prune_ratio": 0.0}, "raise it"),
        ("ucb", {"prune_ratio": 0.0}, "raise it"),
        ("infobatch", {"epochs": 1}, "more epochs"),
        ("infobatch", {"anneal": (0.5, 0.5)}, "more epochs"),
    ],
)
def test_what_never_selects_is_said_when_it_is_made(name: str, settings: dict[str, Any], change: str) -> None:
    made = config(name, **settings)
    reason = why_idle(made)
    assert reason is not None
    assert change in reason
    with pytest.warns(es.NothingSelectedWarning, match="never selects"):
        Selector(made.selection, num_samples=400, num_epochs=made.num_epochs, batch_size=made.batch_size)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_short_fine_tune_with_the_defaults_selects(epochs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selector = Selector(es.Selection(es.methods.evolved()), num_samples=400, num_epochs=epochs, batch_size=20)
    sizes = [
        selector.select(ids_B, np.ones(20, dtype=np.float32)).ids.size
        for epoch in range(epochs)
        for ids_B in selector.epoch(epoch)
    ]
    whole = epochs  # 0.05 of 20·E steps at each end
    assert sizes == [20] * whole + [5] * (18 * epochs) + [20] * whole


def test_a_run_of_before_keeps_whole_epochs_and_may_be_continued() -> None:
    """What was written without `anneal_by` annealed whole epochs; from 4 epochs on nothing changed."""
    for epochs, same in ((8, True), (2, False)):
        now = RunConfig(selection=es.Selection(es.methods.evolved()), num_samples=400, num_epochs=epochs, batch_size=20)
        written = runs.config_to_dict(now)
        del written["selection"]["anneal_by"]
        before = runs.config_from_dict(written)
        assert (before == now) is same
        assert before.is_annealing(0)
        assert before.is_annealing(epochs - 1)
        if not same:
            with pytest.raises(errors.RunMismatchError, match="anneal_by: run 'epochs', yours 'steps'"):
                runs.check_same("old", before, now)
            kept = es.Selection(es.methods.evolved(), anneal_by="epochs")
            runs.check_same("old", before, RunConfig(selection=kept, num_samples=400, num_epochs=epochs, batch_size=20))


@pytest.mark.parametrize("cut", [1, 2, 10, 18, 19])
def test_a_short_training_taken_up_inside_its_epoch_anneals_the_same_steps(cut: int) -> None:
    def made() -> Selector:
        selection = es.Selection(es.methods.evolved(), anneal=(0.1, 0.1), seed=3)
        return Selector(selection, num_samples=400, num_epochs=1, batch_size=20)

    def drawn(selector: Selector, num: int) -> list[list[int]]:
        found = []
        for ids_B in selector.epoch(0):
            found.append(selector.select(ids_B, (1 + ids_B % 7).astype(np.float32)).ids.tolist())
            if len(found) == num:
                break
        return found

    whole = drawn(made(), 20)
    assert [len(ids) for ids in whole] == [20] * 2 + [5] * 16 + [20] * 2
    first, second = made(), made()
    begun = drawn(first, cut)
    second.load_state_dict(first.state_dict())
    assert begun + drawn(second, 20 - cut) == whole


def test_ranks_of_a_short_training_anneal_the_same_steps() -> None:
    run = RunConfig(selection=es.Selection(es.methods.evolved()), num_samples=401, num_epochs=2, batch_size=20)
    keeper = LocalRun(run)
    ranks = [
        Selector(
            run.selection,
            num_samples=401,
            num_epochs=2,
            batch_size=20,
            exchange=Embedded(keeper, Position(rank, 2)),
        )
        for rank in range(2)
    ]
    for epoch in range(2):
        for parts in zip(*(one.epoch(epoch) for one in ranks), strict=True):
            sizes = {
                one.select(ids_B, np.ones(ids_B.size, dtype=np.float32)).ids.size
                for one, ids_B in zip(ranks, parts, strict=True)
            }
            assert len(sizes) == 1
