"""Shards: which rows are whose, what they agree on, and plans that do not depend on how many there are."""

from __future__ import annotations

import math
from collections.abc import Generator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import methods, reductions
from es_service.selection.engine import Engine
from es_service.selection.named import preset
from es_service.selection.plans import Plan, joined
from es_service.selection.reductions import Sum, agree, merge
from es_service.selection.run import RunConfig
from es_service.selection.shards import Shard, pieces

COUNTS = [1, 2, 4, 7]


# -- whose is it --------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 9))
def test_every_sample_has_one_row_of_one_shard(num_samples: int, count: int) -> None:
    owned = [Shard(index, count).ids(num_samples) for index in range(count)]
    assert sorted(np.concatenate(owned).tolist()) == list(range(num_samples))
    for index, ids in enumerate(owned):
        shard = Shard(index, count)
        assert ids.size == shard.num_rows(num_samples)
        assert shard.rows(ids).tolist() == list(range(ids.size))
        assert (ids % count == index).all()


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 2**62)), st.integers(1, 5), st.integers(1, 9))
def test_pieces_cover_every_position_once(ids: NDArray[np.int64], count: int, limit: int) -> None:
    positions = np.arange(ids.size)
    seen: list[int] = []
    cut = pieces(ids, count, limit)
    assert len(cut) == count
    for shard, parts in enumerate(cut):
        for where in parts:
            assert 0 < positions[where].size <= limit
            assert (ids[where] % count == shard).all()
            assert (np.diff(positions[where]) > 0).all()
            seen += positions[where].tolist()
    assert sorted(seen) == positions.tolist()


def test_more_shards_than_samples_are_refused() -> None:
    config = RunConfig(selection=preset("es"), num_samples=6, num_epochs=1, batch_size=2)
    for good in (1, 4, 6):
        config.check_shards(good)
    for bad in (0, -1, 7):
        with pytest.raises(errors.ConfigError, match=rf"shards must lie in \[1, num_samples=6\], got {bad}"):
            config.check_shards(bad)


# -- what they agree on -------------------------------------------------------------------------------------------

odd_keys = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 5e-324, 0.5, 1.0, 1.0 + 2**-52, 1e300, math.inf])


@given(st.lists(odd_keys | st.floats(allow_nan=False), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_the_lowest_are_those_of_a_sort_ties_by_id(keys: list[float], count: int, data: st.DataObject) -> None:
    among = np.array(data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys))), dtype=np.bool_)
    num = data.draw(st.integers(0, int(among.sum())))
    expected = sorted(np.flatnonzero(among).tolist(), key=lambda position: (keys[position], position))[:num]
    assert lowest(np.array(keys), among, num, count) == sorted(expected)


def lowest(keys: NDArray[np.float64], among: NDArray[np.bool_], num: int, count: int) -> list[int]:
    owned = [Shard(index, count).ids(keys.size) for index in range(count)]
    chosen = agree([reductions.lowest(keys[ids], ids, num, among[ids]) for ids in owned])
    return sorted(np.concatenate([ids[mask] for ids, mask in zip(owned, chosen, strict=True)]).tolist())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["all equal", "few values", "all different"])
def test_the_lowest_of_many(kind: str, count: int) -> None:
    """More than are compared one by one, so that the bits of the id decide as well."""
    size, num = 30_000, 12_345
    rng = np.random.default_rng(3)
    keys = {
        "all equal": np.full(size, 0.25),
        "few values": rng.integers(0, 3, size).astype(np.float64),
        "all different": rng.exponential(size=size),
    }[kind]
    expected = np.sort(np.lexsort((np.arange(size), keys))[:num])
    assert lowest(keys, np.ones(size, dtype=np.bool_), num, count) == expected.tolist()


def test_what_is_said_does_not_grow_with_the_rows() -> None:
    """No shard is asked for its keys: histograms of 4,096 counts, and once at most as many candidates."""
    said = {size: spoken(size) for size in (10_000, 200_000)}
    for messages in said.values():
        assert all(size <= 8 * 4096 for kind, size in messages if kind is Sum)
        assert sum(size <= 2 * 8 * 4096 for kind, size in messages if kind is not Sum) <= 1
    assert abs(len(said[10_000]) - len(said[200_000])) <= 2


def spoken(size: int) -> list[tuple[type, int]]:
    """Run `lowest` on two shards, and return the kind and bytes of all that the first said."""
    keys = np.random.default_rng(4).exponential(size=size)
    messages = []

    def overheard(shard: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        answer = None
        while True:
            try:
                question = shard.send(answer)
            except StopIteration as done:
                return done.value
            messages.append((type(question), question.values.nbytes))
            answer = yield question

    first, second = (
        reductions.lowest(keys[ids], ids, size // 2, np.ones(ids.size, dtype=np.bool_))
        for ids in (Shard(0, 2).ids(size), Shard(1, 2).ids(size))
    )
    assert sum(mask.sum() for mask in agree([overheard(first), second])) == size // 2
    return messages


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**59), 2.0**59, width=32)),
    st.sampled_from(COUNTS),
)
def test_the_mean_is_exact_and_the_same_over_any_number_of_shards(values: NDArray[np.float32], count: int) -> None:
    exact = float(sum(map(Fraction, values.tolist()), Fraction(0)) / values.size)
    assert agree([reductions.exact_mean(values[index::count]) for index in range(count)]) == [exact] * count


def test_counts_are_totals() -> None:
    flags = np.array([True, False, True, True])
    assert agree([reductions.count(flags, ~flags), reductions.count(flags[:1], flags[:0])]) == [[4, 1], [4, 1]]
    assert merge([Sum(np.array([1, 2])), Sum(np.array([3, 4]))]).tolist() == [4, 6]


# -- plans ----------------------------------------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "eswp": {"prune_ratio": 0.3, "max_age": 2, "score_share": 0.5},
    "random_subset": {},
    "infobatch": {},
    "kakurenbo": {},
    "ordered": {"prune_ratio": 0.2},
    "ucb": {"max_age": None},
    "epsilon_greedy": {"epsilon": 0.4, "max_age": 2},
    "auto": {},
    "es": {"guard": True},
}


def test_every_method_that_plans_has_a_case() -> None:
    own = {preset(name).method.name for name in PLANS} | {"evolved"}
    by_default = {name for name, make in methods.METHODS.items() if type(make()).plan is methods.Method.plan}
    assert own | by_default == set(methods.METHODS)


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_the_same_whatever_the_number_of_shards(name: str, count: int) -> None:
    selection = preset(name, seed=5, anneal=(0, 0), **PLANS[name])
    num_samples, rng, starts = 997, np.random.default_rng(8), [0]
    whole = Engine(selection, num_samples)
    shards = [Engine(selection, num_samples, Shard(index, count)) for index in range(count)]
    for epoch in range(5):
        [expected] = agree([whole.plan(epoch, 6, starts)])
        plan = joined(agree([shard.plan(epoch, 6, starts) for shard in shards]))
        assert same(plan, expected)
        assert epoch == 0 or expected.decision or expected.ids.size < num_samples
        ids = rng.permutation(expected.ids[rng.random(expected.ids.size) < 0.9])
        seen = {
            "loss": np.round(rng.exponential(size=ids.size), 1).astype(np.float32),  # with ties
            "correct": (rng.random(ids.size) < 0.93).astype(np.float32),
            "confidence": rng.uniform(0.5, 1, ids.size).astype(np.float32),
        }
        whole.record(ids, seen, ids[::3], starts[-1])
        for index, shard in enumerate(shards):
            own = ids % count == index
            drawn = ids[::3]
            part = {signal: values[own] for signal, values in seen.items()}
            shard.record(ids[own], part, drawn[drawn % count == index], starts[-1])
        starts.append(starts[-1] + 10)
    records = whole.table.copy_records()
    assert all(
        shard.table.copy_records().tobytes() == records[index::count].tobytes() for index, shard in enumerate(shards)
    )


def same(one: Plan, other: Plan) -> bool:
    scales = [None if plan.scale is None else plan.scale.tolist() for plan in (one, other)]
    stale = [None if plan.staleness is None else plan.staleness.tolist() for plan in (one, other)]
    return (
        one.ids.tolist() == other.ids.tolist()
        and one.hidden.tolist() == other.hidden.tolist()
        and scales[0] == scales[1]
        and stale[0] == stale[1]
        and (one.ratio, one.learning_rate_factor) == (other.ratio, other.learning_rate_factor)
        and one.decision == other.decision
    )
