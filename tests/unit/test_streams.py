"""Streams: ids that nobody knows beforehand, and a table that grows with them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import es_service as es
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.ledger import Ledger
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.repeats import Repeats
from es_service.selection.run import RunConfig

Batches = list[NDArray[np.int64]]
BATCH_SIZE = 8


def losses_of(ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
    return np.sqrt(1.0 + (ids * 7 + epoch) % 31).astype(np.float32)


def train(selector: es.Selector, epochs: dict[int, Batches]) -> list[list[int]]:
    return [
        selector.select(ids, losses_of(ids, epoch)).ids.tolist()
        for epoch, batches in epochs.items()
        for ids in selector.stream(epoch, batches, ids=lambda batch: batch)
    ]


def stream(num_samples: int | None = None, method: str = "es", **settings: Any) -> es.Selector:
    selection = preset(method, **{"anneal": (0, 0), "seed": 3, **settings})
    return es.Selector(selection, num_samples=num_samples, num_epochs=4, batch_size=BATCH_SIZE)


def batches_up_to(end: int, seed: int, num: int = 5) -> Batches:
    rng = np.random.default_rng(seed)
    return [rng.choice(end, BATCH_SIZE, replace=False) for _ in range(num)]


def test_a_sampler_of_one_s_own_is_served_as_the_plan_is() -> None:
    selection = preset("es", anneal=(0, 0), seed=3)
    planned = es.Selector(selection, num_samples=100, num_epochs=2, batch_size=BATCH_SIZE)
    expected: list[list[int]] = []
    epochs: dict[int, Batches] = {0: [], 1: []}
    for epoch, batches in epochs.items():
        for ids in planned.epoch(epoch):
            expected.append(planned.select(ids, losses_of(ids, epoch)).ids.tolist())
            batches.append(ids.copy())
    own = es.Selector(selection, num_samples=100, num_epochs=2, batch_size=BATCH_SIZE)
    assert train(own, epochs) == expected
    assert repr(own.table().to_pydict()) == repr(planned.table().to_pydict())
    assert (own.ledger.trained, own.ledger.full) == (planned.ledger.trained, planned.ledger.full)


@given(st.lists(st.integers(BATCH_SIZE, 40_000), min_size=1, max_size=4))
def test_the_table_grows_with_the_ids_and_forgets_nothing(ends: list[int]) -> None:
    selector = stream()
    epochs = {epoch: batches_up_to(end, epoch) for epoch, end in enumerate(ends)}
    train(selector, epochs)
    table = selector.table()
    highest = max(int(ids.max()) for batches in epochs.values() for ids in batches)
    assert table.num_rows == max(1024, highest + 1)
    visits = np.zeros(table.num_rows, dtype=np.int64)
    for batches in epochs.values():
        for ids in batches:
            visits[ids] += 1
    assert table.column("visits").to_numpy().tolist() == visits.tolist()
    seen = visits > 0
    assert np.isnan(table.column("last_loss").to_numpy()).tolist() == (~seen).tolist()


def test_growing_changes_no_draw() -> None:
    """Early ids alone, and with a huge one behind them."""
    small = {0: batches_up_to(500, 1), 1: batches_up_to(500, 2)}
    grown = {0: [*small[0], np.array([200_000, 7])], 1: small[1]}
    one, other = stream(), stream()
    assert train(other, grown)[:5] == train(one, small)[:5]
    assert (one.table().num_rows, other.table().num_rows) == (1024, 200_001)


def test_batches_are_handed_through_and_ids_found_by_key() -> None:
    selector = stream()
    rows = [{"id": ids, "text": ["x"] * ids.size} for ids in batches_up_to(100, 4)]
    for row, batch in zip(rows, selector.stream(0, iter(rows)), strict=True):
        assert batch is row
        draw = selector.select(batch["id"], losses_of(batch["id"], 0))
        assert draw.positions.size == 2
    assert selector.ledger.full == 5 * BATCH_SIZE


def test_a_stream_is_read_no_faster_than_it_is_used() -> None:
    read = []

    def source() -> Iterator[NDArray[np.int64]]:
        for ids in batches_up_to(100, 4):
            read.append(ids)
            yield ids

    selector = stream()
    for steps, ids in enumerate(selector.stream(0, source(), ids=lambda batch: batch), start=1):
        assert len(read) == steps
        selector.select(ids, losses_of(ids, 0))


@pytest.mark.parametrize("num_samples", [None, 3000])
def test_a_state_between_epochs_carries_what_has_grown(num_samples: int | None) -> None:
    epochs = {epoch: batches_up_to(3000, epoch) for epoch in range(4)}
    whole = stream(num_samples)
    expected = train(whole, epochs)
    first = stream(num_samples)
    before = train(first, {epoch: epochs[epoch] for epoch in (0, 1)})
    second = stream(num_samples)
    assert second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict()))) == 2
    assert before + train(second, {epoch: epochs[epoch] for epoch in (2, 3)}) == expected
    assert repr(second.table().to_pydict()) == repr(whole.table().to_pydict())
    second.reset()
    assert train(second, epochs) == expected


def test_ranks_may_make_different_numbers_of_steps() -> None:
    """The next epoch's steps begin behind the longest, so no two steps of a run share their random numbers."""
    keeper = LocalRun(RunConfig.of(preset("es", anneal=(0, 0)), None, 4, BATCH_SIZE))
    ranks = [Embedded(keeper, Position(rank, 2)) for rank in range(2)]
    for rank, steps in zip(ranks, (3, 5), strict=True):
        assert rank.open_epoch(0, streamed=True).first_step == 0
        rank.close_epoch(0, steps, Ledger())
    assert ranks[0].open_epoch(1, streamed=True).first_step == 5


# -- samplers with replacement ------------------------------------------------------------------------------------


def noisy(ids: NDArray[np.int64], step: int) -> NDArray[np.float32]:
    """Losses of which two copies of a sample differ, as augmented ones do."""
    return (1 + (ids * 7 + np.arange(ids.size) * 3 + step) % 11).astype(np.float32)


def with_replacement(num_samples: int, num_batches: int, seed: int = 1) -> Batches:
    """What a DataLoader with torch's own sampler hands out."""
    torch = pytest.importorskip("torch")
    weights = torch.arange(1, num_samples + 1).double() ** -1
    sampler = torch.utils.data.WeightedRandomSampler(
        weights, num_batches * BATCH_SIZE, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    loader = torch.utils.data.DataLoader(torch.arange(num_samples), batch_size=BATCH_SIZE, sampler=sampler)
    return [batch.numpy() for batch in loader]


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
@pytest.mark.parametrize("settings", [{}, {"draw": "systematic"}, {"reweight": "unbiased"}, {"ratio": 1.0}])
def test_a_sampler_with_replacement_is_observed_once_and_trained_as_often_as_drawn(settings: dict[str, Any]) -> None:
    batches = with_replacement(30, 40)
    assert any(np.unique(ids).size < ids.size for ids in batches)
    selector = stream(30, **settings)
    visits, selected, last = np.zeros(30), np.zeros(30), np.full(30, np.nan)
    copies_drawn = set()
    for step, ids in enumerate(selector.stream(0, batches, ids=lambda batch: batch)):
        losses = noisy(ids, step)
        draw = selector.select(ids, losses)
        assert draw.positions.size == selector.config.selection.num_selected(BATCH_SIZE)  # of the batch, copies and all
        assert draw.positions.tolist() == sorted(set(draw.positions.tolist()))
        assert draw.ids.tolist() == ids[draw.positions].tolist()
        assert draw.scale.size == draw.positions.size
        visits[np.unique(ids)] += 1
        selected[np.unique(draw.ids)] += 1
        copies_drawn.add(int(np.unique(draw.ids, return_counts=True)[1].max()))
        for one in np.unique(ids):
            last[one] = np.float32(losses[ids == one].astype(np.float64).mean())
    table = selector.table()
    assert table.column("visits").to_pylist() == visits.tolist()
    assert table.column("selected").to_pylist() == selected.tolist()
    assert np.array_equal(table.column("last_loss").to_numpy(), last, equal_nan=True)
    assert copies_drawn > {1}  # the same sample twice in one mini-batch, now and then
    assert (selector.ledger.scored, selector.ledger.full) == (40 * BATCH_SIZE, 40 * BATCH_SIZE)


def test_copies_are_drawn_as_different_samples_of_the_same_weight_are(race_law: Any, p_value: Any) -> None:
    ids, losses = np.array([4, 9, 4, 2, 4]), np.array([3, 1, 3, 2, 3], dtype=np.float32)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1500):
        selector = stream(10, method="loss", ratio=0.4, seed=seed)
        next(selector.stream(0, [ids], ids=lambda batch: batch))
        drawn = tuple(selector.select(ids, losses).positions.tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert p_value(counts, race_law(losses.tolist(), 2)) > 1e-3


@pytest.mark.parametrize("draw", ["race", "systematic", "priority", "replacement"])
def test_the_unbiased_scale_of_a_batch_with_copies_is_unbiased(draw: str) -> None:
    ids = np.array([4, 9, 4, 2, 4, 2, 7, 1])
    losses = noisy(ids, 0).astype(np.float64) ** 2
    estimates = []
    for seed in range(400):
        selector = stream(10, method="loss", draw=draw, reweight="unbiased", seed=seed)
        next(selector.stream(0, [ids], ids=lambda batch: batch))
        drawn = selector.select(ids, losses)
        estimates.append(float(np.mean(drawn.scale * losses[drawn.positions])))
    error = float(np.std(estimates)) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(losses.mean(), abs=4 * error)


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
def test_copies_that_are_not_finite_are_left_out_of_the_mean() -> None:
    selector = stream(10, on_bad_loss="skip", ratio=1.0)
    ids = np.array([4, 9, 4, 2, 4])
    next(selector.stream(0, [ids], ids=lambda batch: batch))
    draw = selector.select(ids, [1.0, np.nan, np.inf, 2.0, 3.0])
    assert draw.positions.tolist() == [0, 3, 4]
    assert draw.ids.tolist() == [4, 2, 4]
    table = selector.table()
    assert table.column("last_loss").to_numpy()[[2, 4]].tolist() == [2.0, 2.0]
    assert (table.column("visits").to_pylist()[4], selector.ledger.skipped) == (1, 2)


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
@pytest.mark.parametrize("observes", [True, False])
@pytest.mark.parametrize("settings", [{"method": "random", "ratio": 0.5}, {"anneal": (1, 0)}])
def test_draws_without_losses_take_copies_too(settings: dict[str, Any], observes: bool) -> None:
    selector = stream(30, **settings)
    selected, visits = np.zeros(30), np.zeros(30)
    for ids in selector.stream(0, with_replacement(30, 20), ids=lambda batch: batch):
        draw = selector.select(ids)
        selected[np.unique(draw.ids)] += 1
        if observes:
            selector.observe(noisy(draw.ids, 0))
            visits[np.unique(draw.ids)] += 1
    assert selector.table().column("selected").to_pylist() == selected.tolist()
    assert selector.table().column("visits").to_pylist() == visits.tolist()


def test_stale_draws_go_by_what_is_known_of_copies() -> None:
    selector = stream(10, method="loss", score_every=2, draw="topk", ratio=0.5)
    ids = np.array([4, 9, 4, 2, 4, 1, 0, 3])
    for epoch in range(2):
        next(batches := selector.stream(epoch, [ids], ids=lambda batch: batch))
        draw = selector.select(ids, ids.astype(np.float32) if epoch == 0 else None)
        assert draw.positions.tolist() == [0, 1, 2, 4]
        list(batches)
    assert selector.ledger.scored == 8


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_repeats_by_hand(ids: list[int]) -> None:
    found = Repeats.of(np.array(ids))
    if len(set(ids)) == len(ids):
        assert found is None
        return
    assert found is not None
    assert found.ids_u.tolist() == sorted(set(ids))
    assert found.ids_u[found.of_B].tolist() == ids
    assert found.copy_B.tolist() == [ids[:place].count(one) for place, one in enumerate(ids)]
    assert len(set(found.keys_B.tolist())) == len(ids)
    assert found.keys_B[found.copy_B == 0].tolist() == list(dict.fromkeys(ids))
    values = np.arange(len(ids), dtype=np.float32)
    expected = [np.float32(np.mean([place for place, one in enumerate(ids) if one == of])) for of in sorted(set(ids))]
    assert found.means(values).tolist() == expected


def test_the_plan_of_an_epoch_holds_no_id_twice_and_none_may_be_reported_twice() -> None:
    planned = es.Selector(preset("es", anneal=(0, 0)), num_samples=100, num_epochs=2, batch_size=BATCH_SIZE)
    next(planned.epoch(0))
    with pytest.raises(es.IdError, match="position 2 stands twice"):
        planned.select(np.array([3, 4, 3]), np.ones(3))


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["infobatch", "kakurenbo", "random_subset", "ucb", "ordered", "eswp"])
def test_methods_that_plan_are_refused(name: str) -> None:
    with pytest.raises(es.ConfigError, match="not known beforehand"):
        es.Selector(preset(name), num_samples=None, num_epochs=2, batch_size=BATCH_SIZE)
    known = es.Selector(preset(name), num_samples=100, num_epochs=2, batch_size=BATCH_SIZE)
    with pytest.raises(es.ConfigError, match="not known beforehand"):
        next(known.stream(0, batches_up_to(100, 0)))
    assert next(known.epoch(0)).size == BATCH_SIZE  # nothing was opened


def test_what_a_stream_cannot_say_is_refused() -> None:
    selector = stream()
    with pytest.raises(es.ConfigError, match=r"selector\.stream"):
        next(selector.epoch(0))
    with pytest.raises(es.EpochOrderError, match="undefined for a stream"):
        selector.steps(0)
    with pytest.raises(es.ConfigError, match="irreducible_losses need num_samples"):
        es.Selector(preset("rho"), num_samples=None, num_epochs=1, batch_size=4, irreducible_losses=[1.0])
    next(selector.stream(0, batches_up_to(100, 0), ids=lambda batch: batch))
    with pytest.raises(es.EpochOrderError, match="epoch 0 is a stream"):
        selector.state_dict()


def test_ranks_that_disagree_are_refused() -> None:
    keeper = LocalRun(RunConfig.of(preset("es"), 100, 4, BATCH_SIZE))
    first, second = (Embedded(keeper, Position(rank, 2)) for rank in range(2))
    first.open_epoch(0, streamed=True)
    with pytest.raises(es.EpochOrderError, match="rank 1 opens epoch 0 by its plan"):
        second.open_epoch(0)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([3, -1], es.IdError, "id -1 at position 1"),
        ([0.5, 1.0], es.ShapeError, "integers"),
        ([], es.ShapeError, "not empty"),
        ([1, 2**40], es.IdError, "outside"),
    ],
)
def test_ids_that_cannot_be_used_change_nothing(ids: list[Any], error: type[Exception], message: str) -> None:
    selector = stream()
    with pytest.raises(error, match=message):
        next(selector.stream(0, [np.array(ids)], ids=lambda batch: batch))
    assert selector.table().num_rows == 1024


KEYS = ["b.png", "a.png", "c.png", "d.png"]


def as_strings() -> dict[str, Any]:
    import pandas as pd
    import pyarrow as pa

    return {
        "list": KEYS,
        "numpy": np.array(KEYS),
        "bytes": np.array(KEYS, dtype="S"),
        "objects": np.array(KEYS, dtype=object),
        "numpy's strings": np.array(KEYS, dtype=np.dtypes.StringDType()),
        "pandas": pd.Series(KEYS),
        "pandas' strings": pd.Series(KEYS, dtype="string"),
        "arrow": pa.array(KEYS),
        "arrow's chunks": pa.chunked_array([KEYS[:2], KEYS[2:]]),
        "a missing one": np.array([None, *KEYS[1:]], dtype=object),
        "times": np.array(["2026-01-01"] * 4, dtype="datetime64[D]"),
    }


ENTRIES: dict[str, Any] = {
    "select": lambda selector, keys: (next(selector.epoch(0)), selector.select(keys, np.ones(4))),
    "select without losses": lambda selector, keys: (next(selector.epoch(0)), selector.select(keys)),
    "stream by key": lambda selector, keys: next(selector.stream(0, [{"url": keys}], ids="url")),
    "stream by function": lambda selector, keys: next(selector.stream(0, [keys], ids=lambda batch: batch)),
    "select in a stream": lambda selector, keys: (
        next(selector.stream(0, batches_up_to(100, 0), ids=lambda batch: batch)),
        selector.select(keys, np.ones(4)),
    ),
    "refresh": lambda selector, keys: (next(selector.epoch(0)), selector.refresh(keys, np.ones(4))),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", as_strings())
def test_keys_instead_of_ids_are_told_how_to_be_numbered(entry: str, kind: str) -> None:
    selector, keys = stream(100), as_strings()[kind]
    with pytest.raises(es.ShapeError, match="ids must be integers that number the samples from 0, got ") as told:
        ENTRIES[entry](selector, keys)
    assert "numbers = {key: number for number, key in enumerate(sorted(set(all_keys)))}" in str(told.value)
    assert selector.table().column("visits").to_numpy().max() == 0


def test_what_the_message_says_numbers_keys_the_same_whatever_came_first() -> None:
    with pytest.raises(es.ShapeError) as told:
        next(stream(100).stream(0, [{"url": KEYS}], ids="url"))
    recipe = "\n".join(line.strip() for line in str(told.value).splitlines()[1:])
    found = []
    for all_keys in (KEYS, KEYS[::-1], [*KEYS, *KEYS]):
        names: dict[str, Any] = {"all_keys": all_keys, "keys_of_the_batch": ["d.png", "a.png"]}
        exec(recipe, names)
        assert next(stream(100).stream(0, [names["ids"]], ids=lambda batch: batch)) == names["ids"]
        found.append(names["ids"])
    assert found == [[3, 0]] * 3


@pytest.mark.parametrize(("batch", "has"), [({"url": [1], "x": [2]}, "has the keys url, x"), ([[1], [2]], "is <class")])
def test_a_batch_without_ids_is_told_where_to_look(batch: Any, has: str) -> None:
    with pytest.raises(es.ShapeError, match=f"has no 'id', it {has}.*say where its ids are"):
        next(stream().stream(0, [batch]))


def test_an_id_beyond_a_huge_gap_is_refused_and_changes_nothing() -> None:
    selector = stream()
    ids = next(selector.stream(0, [np.array([1, 2**39])], ids=lambda batch: batch))
    with pytest.raises(es.IdError, match="far beyond the 1,024 samples so far"):
        selector.select(ids, losses_of(ids, 0))
    assert selector.table().num_rows == 1024
    assert selector.table().column("visits").to_numpy().max() == 0
