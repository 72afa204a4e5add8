"""Streams over Ray: ids from outside, on several ranks and shards, and ids that are under way on two ranks at once."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig
from es_service.storage.table_files import encode_table

BATCH_SIZE, NUM_EPOCHS, NUM_STEPS = 32, 3, 12
SELECTION = preset("es", seed=3, anneal=(0, 0))
Batches = list[NDArray[np.int64]]


def batches(rank: int, epoch: int, *, shared: bool = False, repeated: bool = False) -> Batches:
    """Ids of a growing range, the same ones again and again; those of a rank its own unless they are shared.

    Repeated, a batch holds some of them several times, as a sampler with replacement makes it.
    """
    rng = np.random.default_rng([rank, epoch])
    ids = np.arange(600 * (epoch + 1)) * (1 if shared else 2) + (0 if shared else rank)
    weights = 1.0 / (1 + np.arange(ids.size)) if repeated else np.ones(ids.size)
    return [rng.choice(ids, BATCH_SIZE, replace=repeated, p=weights / weights.sum()) for _ in range(NUM_STEPS)]


def train(selectors: list[es.Selector], epochs: range, *, shared: bool = False, repeated: bool = False) -> list[Any]:
    """Drive the ranks in lockstep; return what each step drew."""
    drawn = []
    for epoch in epochs:
        streams = [
            selector.stream(epoch, batches(rank, epoch, shared=shared, repeated=repeated), ids=lambda batch: batch)
            for rank, selector in enumerate(selectors)
        ]
        for row in zip(*streams, strict=True):
            for selector, ids in zip(selectors, row, strict=True):
                losses = np.sqrt(1.0 + (ids * 7 + epoch + repeated * np.arange(ids.size)) % 31).astype(np.float32)
                draw = selector.select(ids, losses)
                assert draw.ids.tolist() == ids[draw.positions].tolist()
                drawn.append(draw.positions.tolist())
    return drawn


def embedded(num_samples: int | None, world_size: int) -> list[es.Selector]:
    keeper = LocalRun(RunConfig.of(SELECTION, num_samples, NUM_EPOCHS, BATCH_SIZE))
    shape: dict[str, Any] = {"num_samples": num_samples, "num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE}
    return [
        es.Selector(SELECTION, **shape, exchange=Embedded(keeper, Position(rank, world_size)))
        for rank in range(world_size)
    ]


def remote(
    run: str, storage: str, exchange: Any, num_samples: int | None, world_size: int, shards: int
) -> list[es.Selector]:
    generation = uuid.uuid4().hex
    return [
        es.connect(
            run,
            SELECTION,
            num_samples=num_samples,
            num_epochs=NUM_EPOCHS,
            batch_size=BATCH_SIZE,
            exchange=exchange,
            shards=shards,
            storage=storage,
            rank=rank,
            world_size=world_size,
            generation=generation,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(
    ("exchange", "num_samples", "shards"),
    [("sync", None, 1), ("sync", 4000, 3), ("prefetch", None, 3), ("prefetch", 4000, 1), ("leased", 4000, 1)],
)
def test_a_stream_is_selected_from_as_in_process(
    exchange: str, num_samples: int | None, shards: int, run: str, storage: str
) -> None:
    if exchange == "leased":
        [selector] = remote(run, storage, exchange, num_samples, 1, shards)
        with pytest.raises(es.ConfigError, match="nothing to lease"):
            next(selector.stream(0, batches(0, 0), ids=lambda batch: batch))
        return
    expected = train(reference := embedded(num_samples, 2), range(NUM_EPOCHS))
    selectors = remote(run, storage, exchange, num_samples, 2, shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no id is on two ranks, and none is said to be
        assert train(selectors, range(NUM_EPOCHS)) == expected
    assert encode_table(selectors[0].table()) == encode_table(reference[0].table())
    for selector in selectors:
        selector.close()


@pytest.mark.parametrize(("exchange", "shards"), [("sync", 1), ("prefetch", 3)])
def test_a_sampler_with_replacement_is_selected_from_as_in_process(
    exchange: str, shards: int, run: str, storage: str
) -> None:
    expected = train(reference := embedded(4000, 2), range(NUM_EPOCHS), repeated=True)
    selectors = remote(run, storage, exchange, 4000, 2, shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(selectors, range(NUM_EPOCHS), repeated=True) == expected
    assert encode_table(selectors[0].table()) == encode_table(reference[0].table())
    visits, selected = (selectors[0].table().column(name).to_numpy() for name in ("visits", "selected"))
    assert (selected <= visits).all()
    for selector in selectors:
        selector.close()


def test_a_stream_goes_on_after_its_server_stopped_with_another_number_of_shards(run: str, storage: str) -> None:
    expected = train(reference := embedded(None, 2), range(NUM_EPOCHS))
    first = remote(run, storage, "prefetch", None, 2, 3)
    before = train(first, range(2))
    for selector in first:
        selector.close()
    launch.stop(run)
    second = remote(run, storage, "prefetch", None, 2, 2)
    assert before + train(second, range(2, NUM_EPOCHS)) == expected
    assert encode_table(second[0].table()) == encode_table(reference[0].table())
    for selector in second:
        selector.close()


def test_ids_under_way_on_two_ranks_are_counted_told_once_and_not_lost(run: str, storage: str) -> None:
    selectors = remote(run, storage, "prefetch", None, 2, 2)
    shared = batches(0, 0, shared=True)
    streams = [selector.stream(0, shared, ids=lambda batch: batch) for selector in selectors]

    def lockstep() -> None:
        for row in zip(*streams, strict=True):
            for selector, ids in zip(selectors, row, strict=True):
                selector.select(ids, np.ones(ids.size, dtype=np.float32))

    with pytest.warns(UserWarning, match=r"rank \d: \d+ ids of this step are under way on another rank") as caught:
        lockstep()
    assert 1 <= len(caught) <= 2  # one a rank
    stats = call(launch.find(run).stats.remote(), 10.0, "read stats")
    assert stats["num_overlaps"] >= BATCH_SIZE  # the first step's for certain, later ones as reports get through
    assert stats["num_observed"] == 2 * NUM_STEPS * BATCH_SIZE
    visits = selectors[0].table().column("visits").to_numpy()
    assert visits.sum() == 2 * NUM_STEPS * BATCH_SIZE
    for selector in selectors:
        selector.close()


def test_unknown_ids_cannot_be_leased(run: str, storage: str) -> None:
    with pytest.raises(es.ConfigError, match="take 'prefetch' or 'sync'"):
        remote(run, storage, "leased", None, 1, 1)
