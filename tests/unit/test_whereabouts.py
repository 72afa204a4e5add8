"""Which of several processes this one is: groups of torch.distributed, launchers, and what a Selector makes of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.whereabouts import whereabouts

SELECTION = es.Selection(es.methods.evolved(), anneal=(0, 0))
SIZES: dict[str, Any] = {"num_samples": 40, "num_epochs": 2, "batch_size": 10}


@contextlib.contextmanager
def group(rank: int, world_size: int) -> Iterator[None]:
    """A group of torch.distributed, of whose ranks this process is one and the others are not there."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_selector_of_its_own_is_refused_in_a_group_of_several(rank: int) -> None:
    with (
        group(rank, 2),
        pytest.raises(errors.ConfigError, match=rf"rank {rank} of 2, .* take es\.connect\(run") as told,
    ):
        es.Selector(SELECTION, **SIZES)
    assert "world_size=1" in str(told.value)


def test_a_group_that_comes_into_being_later_is_seen_when_an_epoch_opens() -> None:
    selector = es.Selector(SELECTION, **SIZES)
    with group(0, 2), pytest.raises(errors.ConfigError, match="rank 0 of 2"):
        next(selector.epoch(0))
    assert next(selector.epoch(0)).size == 10  # nothing was opened


def test_what_is_meant_stays_possible() -> None:
    """A group of one; a rank that selects for all; ranks that share a table by an exchange of their own."""
    with group(0, 1):
        assert next(es.Selector(SELECTION, **SIZES).epoch(0)).size == 10
    with group(1, 2):
        assert next(es.Selector(SELECTION, **SIZES, world_size=1).epoch(0)).size == 10
        keeper = LocalRun(RunConfig(selection=SELECTION, **SIZES))
        assert next(es.Selector(SELECTION, **SIZES, exchange=Embedded(keeper, Position(0, 1))).epoch(0)).size == 10


@pytest.mark.parametrize("world_size", [0, 2, 1.5, True])
def test_a_selector_is_one_rank(world_size: Any) -> None:
    with pytest.raises(errors.ConfigError, match="world_size"):
        es.Selector(SELECTION, **SIZES, world_size=world_size)


def launched(monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)


def test_ranks_that_connect_before_their_group_exists_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "1", "2")
    with pytest.raises(
        errors.ConfigError, match=r"rank 1 of 2 .*call torch\.distributed\.init_process_group\(\) before"
    ):
        es.connect("run", SELECTION, **SIZES)
    assert whereabouts(None, "one").position == Position(1, 2)  # who names the generation need not wait for a group
    assert whereabouts(Position(0, 1), None).position == Position(0, 1)  # who is alone says so


@pytest.mark.parametrize(("rank", "world_size"), [("0", "1"), ("", "2"), ("2", "2"), ("a", "b")])
def test_an_environment_that_names_no_group_says_nothing(
    rank: str, world_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, rank, world_size)
    assert whereabouts(None, None).position == Position(0, 1)


def test_ranks_of_a_group_need_one_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would start its own, and a score server of its own."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(errors.ConfigError, match="rank 1 of 2 would start a Ray of its own") as told:
        es.connect("run", SELECTION, **SIZES, rank=1, world_size=2, generation="one")
    assert "RAY_ADDRESS" in str(told.value)
    assert "exchange='collective'" in str(told.value)
    with group(0, 2), pytest.raises(errors.ConfigError, match="rank 0 of 2 would start a Ray of its own"):
        es.connect("run", SELECTION, **SIZES, generation="one")


def test_a_word_that_is_none_is_refused_before_anything_is_started() -> None:
    with pytest.raises(errors.ConfigError, match="unknown resume='atuo'; did you mean 'auto'"):
        es.connect("run", SELECTION, **SIZES, resume="atuo")  # type: ignore[arg-type]


def test_where_a_run_stands_can_be_asked_in_process() -> None:
    selector = es.Selector(SELECTION, **SIZES)
    assert selector.next_epoch == 0
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            assert selector.next_epoch == epoch
            selector.select(ids, np.ones(10))
        assert selector.next_epoch == epoch + 1
    state = selector.state_dict()
    with pytest.raises(errors.EpochOrderError, match=r"opens epoch 0, but the run is finished: all its 2 epochs"):
        next(selector.epoch(0))
    other = es.Selector(SELECTION, **SIZES)
    other.load_state_dict(state)
    with pytest.warns(UserWarning, match="the run is finished: all its 2 epochs are made"):
        assert other.next_epoch == 2
    other.reset()
    assert other.next_epoch == 0


def test_looking_for_a_group_imports_nothing() -> None:
    import subprocess

    code = (
        "import sys, es_service as es\n"
        "es.Selector(es.Selection(es.methods.evolved()), num_samples=40, num_epochs=2, batch_size=10)\n"
        "print([name for name in ('ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
