"""Plans: how many ids stay, who may never go, in which order, and which rank gets which."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from es_service import errors
from es_service.selection import engine, methods, plans
from es_service.selection.config import Selection
from es_service.selection.plans import Prospect
from es_service.selection.reductions import agree
from es_service.selection.shards import Shard

Law = dict[tuple[int, ...], float]
Bools = NDArray[np.bool_]


def flags(size: int, true: Sequence[int] = ()) -> Bools:
    out = np.zeros(size, dtype=np.bool_)
    out[list(true)] = True
    return out


def prune(
    weights: Sequence[float],
    num: int,
    epoch: int = 0,
    *,
    unobserved: Sequence[int] = (),
    overdue: Sequence[int] = (),
    num_shards: int = 1,
) -> list[int]:
    size = len(weights)
    columns = {
        "w": np.array(weights, dtype=np.float32),
        "visits": np.where(flags(size, unobserved), 0, 1),
        "last_step": np.where(flags(size, overdue), 0, 1),
    }
    prospect = Prospect(
        epoch=epoch,
        num_epochs=epoch + 2,
        first_epoch=0,
        is_last=False,
        epoch_starts=(1,) * (epoch + 1),
        num_samples=size,
        num_kept=num,
        max_age=0,
        prune_unobserved=False,
        seed=1,
        ids=np.arange(size),
        column=lambda name: columns[name].copy(),
    )
    shards = [
        dataclasses.replace(prospect, ids=ids, column=lambda name, ids=ids: columns[name][ids])
        for ids in (Shard(index, num_shards).ids(size) for index in range(num_shards))
    ]
    kept = plans.joined(agree([shard.pruned_by("w") for shard in shards])).ids
    assert kept.dtype == np.int64
    ids: list[int] = kept.tolist()
    return ids


def observed_engine(num_samples: int, prune_ratio: float, **settings: Any) -> engine.Engine:
    """An engine that has seen every sample once, in steps of 0..n-1."""
    made = engine.Engine(
        Selection(methods.evolved(), prune_ratio=prune_ratio, **{"anneal": (0, 0), **settings}),
        num_samples,
    )
    ids = np.arange(num_samples, dtype=np.int64)
    made.record(ids, {"loss": np.ones(num_samples, dtype=np.float32)}, np.empty(0, dtype=np.int64), 0)
    return made


# -- how many -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 20_000_000), st.integers(0, 99))
def test_a_pruned_plan_holds_n_minus_floor_rn_exactly(num_samples: int, percent: int) -> None:
    kept = Selection(methods.evolved(), prune_ratio=percent / 100).num_kept(num_samples)
    assert kept == num_samples - math.floor(Fraction(percent, 100) * num_samples)


@pytest.mark.parametrize(("ratio", "size", "dropped"), [(0.29, 100, 29), (0.57, 100, 57), (0.3, 10, 3), (0.1, 30, 3)])
def test_a_float_that_falls_just_short_still_prunes_a_whole_sample(ratio: float, size: int, dropped: int) -> None:
    assert agree([observed_engine(size, ratio).plan(1, 9, [0, 1])])[0].ids.size == size - dropped


def test_the_float_traps_are_traps() -> None:
    assert math.floor(0.29 * 100) == 28
    assert math.floor(0.57 * 100) == 56


@given(st.integers(2, 80), st.integers(1, 99), st.integers(0, 20))
def test_plans_hold_distinct_ids_of_the_set(size: int, percent: int, epoch: int) -> None:
    plan = agree([observed_engine(size, percent / 100).plan(epoch, 21, [0] * (epoch + 1))])[0].ids
    assert plan.size == size - math.floor(Fraction(percent, 100) * size)
    assert np.unique(plan).size == plan.size
    assert set(plan.tolist()) <= set(range(size))


def test_annealing_plans_hold_everything() -> None:
    plan = agree([observed_engine(50, 0.4, anneal=(0.1, 0)).plan(0, 10, [0])])[0].ids
    assert sorted(plan.tolist()) == list(range(50))


# -- who ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 10.0, width=32), min_size=1, max_size=25), st.integers(0, 1000), st.data())
def test_unobserved_stay_and_take_places_overdue_come_next(
    weights: list[float], epoch: int, data: st.DataObject
) -> None:
    size = len(weights)
    unobserved = data.draw(st.sets(st.integers(0, size - 1)))
    overdue = data.draw(st.sets(st.integers(0, size - 1))) - unobserved
    num = data.draw(st.integers(1, size))
    kept = prune(weights, num, epoch, unobserved=sorted(unobserved), overdue=sorted(overdue))
    assert kept == sorted(set(kept))
    assert len(kept) == max(num, len(unobserved))
    assert unobserved <= set(kept)
    places = len(kept) - len(unobserved)
    assert len(overdue & set(kept)) >= min(len(overdue), places)


def test_unobserved_enlarge_the_plan_only_when_they_alone_are_more() -> None:
    assert len(prune([1.0] * 10, 4, unobserved=range(3))) == 4
    assert len(prune([1.0] * 10, 4, unobserved=range(4))) == 4
    assert prune([1.0] * 10, 4, unobserved=range(7)) == list(range(7))
    assert prune([1.0] * 10, 4, unobserved=range(10)) == list(range(10))


def test_a_fresh_table_prunes_nothing_unless_asked_to() -> None:
    for ask, expected in ((False, 40), (True, 20)):
        selection = Selection(methods.evolved(), prune_ratio=0.5, anneal=(0, 0), prune_unobserved=ask)
        assert agree([engine.Engine(selection, 40).plan(0, 9, [0])])[0].ids.size == expected


def test_overdue_are_put_back_whatever_they_weigh() -> None:
    weights = [0.0, 1e-6] + [1e6] * 18
    for epoch in range(50):
        assert {0, 1} <= set(prune(weights, 5, epoch, overdue=[0, 1]))


def test_where_overdue_are_too_many_they_race_among_themselves(
    race_law: Callable[[Sequence[float], int], Law], p_value: Callable[[Mapping[tuple[int, ...], int], Law], float]
) -> None:
    weights = [4.0, 2.0, 1.0, 1.0, 500.0]
    counts = collections.Counter(tuple(prune(weights, 2, epoch, overdue=[0, 1, 2, 3])) for epoch in range(3000))
    assert p_value(counts, race_law(weights[:4], 2)) > 1e-4


@pytest.mark.parametrize(("weights", "num"), [((8.0, 4.0, 2.0, 1.0, 1.0), 2), ((3.0, 2.0, 2.0, 1.0), 3)])
def test_pruning_has_the_law_of_the_race(
    weights: Sequence[float],
    num: int,
    race_law: Callable[[Sequence[float], int], Law],
    p_value: Callable[[Mapping[tuple[int, ...], int], Law], float],
) -> None:
    counts = collections.Counter(tuple(prune(weights, num, epoch)) for epoch in range(4000))
    assert p_value(counts, race_law(weights, num)) > 1e-4


def test_pruning_goes_by_the_column_asked_for() -> None:
    """Two groups: heavy by w, heavy by s."""
    kept: dict[str, list[int]] = {}
    for prune_by in ("w", "s"):
        made = engine.Engine(
            Selection(methods.evolved(prune_by=prune_by), prune_ratio=0.5, anneal=(0, 0), max_age=None),
            20,
        )
        ids = np.arange(20, dtype=np.int64)
        records = made.table.gather(ids)
        records["visits"] = 1
        records["w"], records["s"] = np.where(ids < 10, 1e6, 1e-6), np.where(ids < 10, 1e-6, 1e6)
        made.table.scatter(ids, records)
        kept[prune_by] = sorted(agree([made.plan(0, 9, [0])])[0].ids.tolist())
    assert kept == {"w": list(range(10)), "s": list(range(10, 20))}


def test_a_pruned_sample_comes_back_after_max_age_epochs_and_only_then() -> None:
    """Sample 0 weighs nothing: pruned each epoch, put back once it has sat out max_age of them."""
    selection = Selection(methods.loss(), prune_ratio=0.25, anneal=(0, 0), max_age=3, seed=5)
    made = engine.Engine(selection, 8)
    starts, present = [0], []
    for epoch in range(12):
        plan = agree([made.plan(epoch, 12, starts)])[0].ids
        present.append(0 in plan)
        losses = np.where(plan == 0, 0.0, 1.0).astype(np.float32)
        made.record(plan, {"loss": losses}, np.empty(0, dtype=np.int64), starts[epoch])
        starts.append(starts[epoch] + 1)
    assert present == [epoch % 4 == 0 for epoch in range(12)]


# -- order --------------------------------------------------------------------------------------------------------


def test_shuffle_is_a_pure_function_of_seed_epoch_and_set() -> None:
    ids = np.arange(100, dtype=np.int64)
    first = plans.shuffle(ids, seed=1, epoch=2)
    assert sorted(first.tolist()) == ids.tolist()
    assert plans.shuffle(ids, seed=1, epoch=2).tolist() == first.tolist()
    assert plans.shuffle(ids[::-1].copy(), seed=1, epoch=2).tolist() == first.tolist()
    assert plans.shuffle(ids, seed=1, epoch=3).tolist() != first.tolist()
    assert plans.shuffle(ids, seed=2, epoch=2).tolist() != first.tolist()


def test_the_order_of_a_subset_is_the_order_of_the_whole() -> None:
    whole = plans.shuffle(np.arange(60, dtype=np.int64), seed=4, epoch=0)
    subset = plans.shuffle(np.arange(0, 60, 3, dtype=np.int64), seed=4, epoch=0)
    assert [one for one in whole.tolist() if one % 3 == 0] == subset.tolist()


def test_every_order_is_equally_likely() -> None:
    ids = np.arange(4, dtype=np.int64)
    counts = collections.Counter(tuple(plans.shuffle(ids, seed=0, epoch=epoch).tolist()) for epoch in range(4800))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_every_place_is_equally_likely_for_every_id() -> None:
    ids = np.arange(50, dtype=np.int64)
    places = np.zeros((50, 5))
    for epoch in range(1000):
        order = plans.shuffle(ids, seed=0, epoch=epoch)
        places[order, np.arange(50) // 10] += 1
    assert stats.chi2_contingency(places).pvalue > 1e-4


# -- ranks --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 500), st.data())
def test_ranks_get_equal_disjoint_shares_of_the_plan(size: int, world: int, epoch: int, data: st.DataObject) -> None:
    plan_size = data.draw(st.integers(min(world, size), size))
    if plan_size < world:
        return
    plan = plans.shuffle(
        np.sort(np.random.default_rng(epoch).permutation(size)[:plan_size]).astype(np.int64), seed=0, epoch=epoch
    )
    shares = plans.split(plan, world_size=world, num_samples=size, epoch=epoch)
    assert {share.size for share in shares} == {plan_size // world}
    together = np.concatenate(shares)
    assert np.unique(together).size == together.size
    assert set(together.tolist()) <= set(plan.tolist())
    assert 0 <= plan_size - together.size <= world - 1
    dealt = np.stack(shares, axis=1).ravel()  # in turn, in the plan's order
    assert dealt.tolist() == [one for one in plan.tolist() if one in set(together.tolist())]
    batch = data.draw(st.integers(1, 30))
    steps = {len(range(0, share.size, batch)) for share in shares}
    assert steps == {plans.num_steps(plan_size // world, batch)}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 30), st.booleans(), st.integers(0, 500))
def test_no_last_batch_is_of_one_sample_and_with_drop_last_all_are_full(
    size: int, world: int, batch: int, drop_last: bool, epoch: int
) -> None:
    size = max(size, world)
    share = plans.rank_share(size, world, batch, drop_last=drop_last)
    plan = plans.shuffle(np.arange(size, dtype=np.int64), seed=0, epoch=epoch)
    shares = plans.split(plan, world_size=world, num_samples=size, epoch=epoch, share=share)
    assert [one.size for one in shares] == [share] * world
    together = np.concatenate(shares)
    assert np.unique(together).size == together.size
    equal = size // world
    if equal <= batch:
        assert share == equal
    elif drop_last:
        assert (share % batch, share // batch) == (0, equal // batch)
    else:
        assert share == equal - (equal % batch == 1 and batch > 1)


@pytest.mark.parametrize(
    ("size", "world", "batch", "drop_last"), [(65, 1, 64, False), (130, 2, 64, False), (100, 2, 12, True)]
)
def test_everybody_sits_out_in_turn(size: int, world: int, batch: int, drop_last: bool) -> None:
    share = plans.rank_share(size, world, batch, drop_last=drop_last)
    times = np.zeros(size, dtype=np.int64)
    for epoch in range(size):
        plan = plans.shuffle(np.arange(size, dtype=np.int64), seed=0, epoch=epoch)
        shares = plans.split(plan, world_size=world, num_samples=size, epoch=epoch, share=share)
        times[np.setdiff1d(plan, np.concatenate(shares))] += 1
    assert times.min() == times.max() == size - share * world


@pytest.mark.parametrize(("size", "world"), [(101, 4), (50, 7), (23, 3), (1000, 64)])
def test_others_sit_out_than_in_the_epoch_before(size: int, world: int) -> None:
    sat_out: list[set[int]] = []
    for epoch in range(size):
        plan = plans.shuffle(np.arange(size, dtype=np.int64), seed=0, epoch=epoch)
        shares = plans.split(plan, world_size=world, num_samples=size, epoch=epoch)
        sat_out.append(set(range(size)) - set(np.concatenate(shares).tolist()))
    assert {len(one) for one in sat_out} == {size % world}
    assert all(not one & other for one, other in itertools.pairwise(sat_out))


def test_an_even_plan_lets_nobody_sit_out() -> None:
    plan = np.arange(12, dtype=np.int64)
    shares = plans.split(plan, world_size=3, num_samples=12, epoch=5)
    assert [share.tolist() for share in shares] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_one_step_of_all_ranks_covers_the_same_stretch_whatever_their_number() -> None:
    plan = plans.shuffle(np.arange(48, dtype=np.int64), seed=3, epoch=0)
    stretches = []
    for world in (1, 2, 4):
        batch = 12 // world
        shares = plans.split(plan, world_size=world, num_samples=48, epoch=0)
        stretches.append(
            [
                sorted(np.concatenate([share[k * batch : (k + 1) * batch] for share in shares]).tolist())
                for k in range(4)
            ]
        )
    assert stretches[0] == stretches[1] == stretches[2]


def test_fewer_ids_than_ranks_are_refused() -> None:
    with pytest.raises(errors.ConfigError, match="a plan of 3 ids cannot feed 4 ranks"):
        plans.split(np.arange(3, dtype=np.int64), world_size=4, num_samples=3, epoch=0)
