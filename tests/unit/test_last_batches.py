"""The last batch of an epoch: never a single sample, and a full one with `drop_last`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig

SIZE, EPOCHS = 16, 4
METHODS = ["full", "random", "es", "eswp", "ordered", "infobatch", "kakurenbo", "ucb", "selective_backprop"]
LOSSES = np.random.default_rng(1).exponential(size=(EPOCHS, 400)).astype(np.float32)


def ranks(selection: es.Selection, num_samples: int, world_size: int, batch_size: int = SIZE) -> list[es.Selector]:
    shape = {"num_samples": num_samples, "num_epochs": EPOCHS, "batch_size": batch_size}
    keeper = LocalRun(RunConfig(selection=selection, **shape))
    exchanges = [Embedded(keeper, Position(rank, world_size)) for rank in range(world_size)]
    return [es.Selector(selection, **shape, exchange=exchange) for exchange in exchanges]


def signals(epoch: int, ids: Any) -> dict[str, Any]:
    losses = LOSSES[epoch, ids]
    return {"loss": losses, "correct": losses < 1, "confidence": np.exp(-losses)}


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_samples, world_size", [(65, 1), (68, 1), (80, 1), (98, 2), (105, 2), (147, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_has_a_single_sample_and_the_schedule_knows_them_all(
    method: str, num_samples: int, world_size: int, drop_last: bool
) -> None:
    group = ranks(preset(method, anneal=(0.25, 0), drop_last=drop_last), num_samples, world_size)
    for epoch in range(EPOCHS):
        before = group[0].steps(epoch)
        num_steps = 0
        for row in itertools.zip_longest(*(selector.epoch(epoch) for selector in group)):
            num_steps += 1
            planned = [selector.steps(epoch) for selector in group]
            for selector, ids in zip(group, row, strict=True):
                draw = selector.select(ids, signals(epoch, ids))
                assert ids.size >= 2
                assert draw.ids.size >= 2
                if drop_last and planned[0] > 1:
                    assert ids.size == SIZE
        assert planned == [num_steps] * world_size
        if group[0].config.selection.method.name not in ("infobatch", "kakurenbo"):  # they decide by the losses
            assert num_steps == before
        for selector in group:
            for ids in selector.hidden_batches():
                selector.refresh(ids, signals(epoch, ids))


def test_what_sits_out_is_no_saving() -> None:
    [selector] = ranks(preset("full", drop_last=True), 100, 1)
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            selector.select(ids, signals(epoch, ids))
    assert (selector.ledger.trained, selector.ledger.full) == (192, 192)
    assert selector.ledger.saving()["samples"] == 0


@pytest.mark.parametrize("batch_size, sizes", [(4, [1, 1, 1]), (8, [2, 2]), (12, [3]), (9, [3, 2])])
def test_a_draw_of_one_stays_where_full_batches_give_no_more(batch_size: int, sizes: list[int]) -> None:
    [selector] = ranks(preset("es", anneal=(0, 0), ratio=0.25), 12, 1, batch_size)
    assert [selector.select(ids, signals(0, ids)).ids.size for ids in selector.epoch(0)] == sizes


def test_hidden_samples_come_in_even_batches() -> None:
    """33 of them, in batches of 16 at most: BatchNorm could not score the one that is left."""
    [selector] = ranks(preset("kakurenbo", fraction=0.165), 200, 1)
    sizes: list[list[int]] = []
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            selector.select(
                ids, {"loss": LOSSES[0, ids], "correct": np.ones(ids.size), "confidence": np.ones(ids.size)}
            )
        sizes.append([ids.size for ids in selector.hidden_batches()])
    assert sizes == [[], [11, 11, 11]]


def test_a_stream_has_its_batches_from_outside() -> None:
    selection = preset("es", drop_last=True)
    with pytest.raises(errors.ConfigError, match="drop_last=True is for epochs that this package plans"):
        es.Selector(selection, num_samples=None, num_epochs=1, batch_size=8)
    with pytest.raises(errors.ConfigError, match="drop_last must be true or false, got 1"):
        preset("es", drop_last=1)
