"""What every draw promises: its positions, its probabilities and scale, what it refuses, and that it is pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import draws, keys

PAPER = (8.0, 4.0, 2.0, 1.0, 1.0)

WITH_PROBABILITIES = sorted(set(draws.DRAWS) - {"topk"})
DISTINCT = sorted(set(draws.DRAWS) - {"replacement"})
BAD_WEIGHTS = (float("nan"), float("inf"), -float("inf"), -0.5)  # topk takes the last

all_draws = pytest.mark.parametrize("name", sorted(draws.DRAWS))
distinct_draws = pytest.mark.parametrize("name", DISTINCT)

# -- promises of every draw ---------------------------------------------------------------------------------------

weight = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))


@all_draws
@given(weights=st.lists(weight, min_size=1, max_size=40), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_every_draw_takes_b_in_all_at_distinct_positions_in_order(
    name: str, weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    uniforms = keys.uniforms(seed, keys.Purpose.DRAW, 0, np.arange(len(weights)))
    before = np.array(weights)
    drawn = draws.DRAWS[name](before, num, uniforms)
    positions = drawn.positions_b
    assert positions.dtype == np.int64
    assert drawn.times_b.dtype == np.float64
    assert drawn.times_b.shape == positions.shape
    assert drawn.times_b.sum() == num
    assert drawn.times_b.min() >= 1
    assert name == "replacement" or positions.size == num
    assert np.all(np.diff(positions) > 0)
    assert positions[0] >= 0
    assert positions[-1] < len(weights)
    assert before.tolist() == weights, "the draw wrote into its argument"
    if name == "topk":
        assert drawn.inclusion_b is None
    else:
        assert drawn.inclusion_b is not None
        assert drawn.inclusion_b.shape == positions.shape
        assert np.all((drawn.inclusion_b > 0) & (drawn.inclusion_b <= (num if name == "replacement" else 1)))


@distinct_draws
@given(weights=st.lists(weight, min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_weight_of_zero_is_taken_only_after_every_positive_one(
    name: str, weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    drawn = draws.DRAWS[name](np.array(weights), num, np.random.default_rng(seed).random(len(weights)))
    num_positive = sum(one > 0 for one in weights)
    assert sum(weights[i] > 0 for i in drawn.positions_b) == min(num, num_positive)


@given(weights=st.lists(weight, min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_replacement_takes_a_weight_of_zero_only_where_all_are(
    weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    drawn = draws.replacement(np.array(weights), num, np.random.default_rng(seed).random(len(weights)))
    assert not any(weights) or all(weights[i] > 0 for i in drawn.positions_b)
    assert drawn.inclusion_b == pytest.approx(
        [num * (weights[i] / sum(weights) if any(weights) else 1 / len(weights)) for i in drawn.positions_b]
    )


@pytest.mark.parametrize("name", ["race", "priority", "topk"])
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), data=st.data())
def test_the_order_of_the_candidates_does_not_matter(name: str, seed: int, size: int, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, size))
    rng = np.random.default_rng(seed)
    weights, uniforms, order = rng.random(size), rng.random(size), rng.permutation(size)
    straight = draws.DRAWS[name](weights, num, uniforms)
    permuted = draws.DRAWS[name](weights[order], num, uniforms[order])
    assert sorted(order[permuted.positions_b].tolist()) == straight.positions_b.tolist()


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(4, 60), num_shards=st.integers(1, 4), data=st.data())
def test_race_keys_of_shards_merge_to_the_race_of_all(
    seed: int, size: int, num_shards: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, size))
    rng = np.random.default_rng(seed)
    weights, uniforms = rng.random(size), rng.random(size)
    merged: list[tuple[float, int]] = []
    for shard in range(num_shards):
        members = np.arange(shard, size, num_shards)
        arrivals = draws.race_keys(weights[members], uniforms[members])
        merged += sorted(zip(arrivals.tolist(), members.tolist(), strict=True))[:num]
    winners = sorted(member for _, member in sorted(merged)[:num])
    assert winners == draws.race(weights, num, uniforms).positions_b.tolist()


def test_topk_takes_the_largest_whatever_the_uniforms() -> None:
    weights = np.array([0.3, 9.0, 1.0, 4.0, 0.0])
    for seed in range(20):
        assert draws.topk(weights, 2, np.random.default_rng(seed).random(5)).positions_b.tolist() == [1, 3]


def test_topk_orders_equal_weights_by_the_uniforms() -> None:
    assert draws.topk(np.ones(4), 2, np.array([0.9, 0.2, 0.5, 0.1])).positions_b.tolist() == [1, 3]
    assert draws.topk(np.ones(4), 2, np.array([0.1, 0.2, 0.5, 0.9])).positions_b.tolist() == [0, 1]


@given(weights=st.lists(st.floats(0, 1e30, allow_subnormal=False), min_size=4, max_size=8).filter(any))
@example(weights=[0.25, 0.0, 0.0, 0.0])  # the smallest uniform times this total is 0
def test_uniforms_at_either_end_take_no_weight_of_zero_by_replacement(weights: list[float]) -> None:
    ends = [1 - 2**-53, 1 - 2**-52, 2**-53, 2**-1074]
    padded = np.array([0.0, *weights, 0.0])
    drawn = draws.replacement(padded, 4, np.array(ends + [0.5] * (len(weights) - 2)))
    assert np.all(padded[drawn.positions_b] > 0)
    assert drawn.times_b.sum() == 4


def test_topk_takes_negative_weights_in_their_order() -> None:
    weights = np.array([-0.3, -9.0, 0.0, 0.5, -0.1])
    assert draws.topk(weights, 3, np.full(5, 0.5)).positions_b.tolist() == [2, 3, 4]
    assert draws.topk(-np.ones(4), 2, np.array([0.9, 0.2, 0.5, 0.1])).positions_b.tolist() == [1, 3]
    assert draws.topk(weights, 5, np.full(5, 0.5)).positions_b.tolist() == [0, 1, 2, 3, 4]


@all_draws
def test_one_candidate_is_taken_whatever_its_weight(name: str) -> None:
    for only in (0.0, 1e-30, 7.0):
        drawn = draws.DRAWS[name](np.array([only]), 1, np.array([0.3]))
        assert drawn.positions_b.tolist() == [0]
        assert drawn.times_b.tolist() == [1.0]
        assert drawn.inclusion_b is None if name == "topk" else drawn.inclusion_b == pytest.approx([1.0])


@distinct_draws
@pytest.mark.parametrize("num", [1, 2, 3, 5, 6, 8])
def test_weights_sixty_orders_apart_are_taken_heaviest_first(name: str, num: int) -> None:
    weights = np.array([1e-30, 1e30, 1e-20, 1e30, 1e-30, 1e10, 1e-10, 1e-30])
    heaviest = [1, 3, 5, 6, 2]  # then three alike
    for seed in range(20):
        drawn = draws.DRAWS[name](weights, num, np.random.default_rng(seed).random(8))
        assert drawn.positions_b.size == num
        assert set(drawn.positions_b.tolist()) <= {1, 3} if num == 1 else {*heaviest[:num]} <= {*drawn.positions_b}
        if drawn.inclusion_b is not None:
            assert np.all((drawn.inclusion_b > 0) & (drawn.inclusion_b <= 1))
            assert np.all(np.isfinite(drawn.scale(8, unbiased=True)))


def test_replacement_leaves_weights_sixty_orders_lighter_alone() -> None:
    drawn = draws.replacement(np.array([1e-30, 1e30, 1e-30]), 3, np.array([0.01, 0.5, 0.99]))
    assert drawn.positions_b.tolist() == [1]
    assert drawn.times_b.tolist() == [3.0]


@all_draws
@given(
    weights=st.lists(st.floats(0, float(np.float32(1e6)), width=32), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_the_same_arguments_give_the_same_draw_in_float32_and_float64(
    name: str, weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    uniforms = np.random.default_rng(seed).random(len(weights))
    kept = uniforms.copy()
    results = []
    for dtype in (np.float32, np.float64, np.float32):
        try:
            drawn = draws.DRAWS[name](np.array(weights, dtype=dtype), num, uniforms)
            inclusion = None if drawn.inclusion_b is None else drawn.inclusion_b.tolist()
            results.append((drawn.positions_b.tolist(), drawn.times_b.tolist(), inclusion))
        except errors.InputError as error:  # conditional Poisson may not settle
            assert name == "conditional_poisson"
            results.append(str(error))
    assert results[0] == results[1] == results[2]
    assert uniforms.tolist() == kept.tolist(), "the draw wrote into its argument"


@distinct_draws
def test_drawing_all_takes_all_with_certainty(name: str) -> None:
    drawn = draws.DRAWS[name](np.array([3.0, 0.0, 1.0]), 3, np.array([0.5, 0.2, 0.7]))
    assert drawn.positions_b.tolist() == [0, 1, 2]
    assert drawn.inclusion_b is None if name == "topk" else drawn.inclusion_b.tolist() == [1.0, 1.0, 1.0]  # type: ignore[union-attr]


@all_draws
@pytest.mark.parametrize("num", [-1, 0, 4])
def test_b_outside_the_batch_is_refused(name: str, num: int) -> None:
    with pytest.raises(errors.ConfigError, match=rf"cannot draw {num} of 3"):
        draws.DRAWS[name](np.ones(3), num, np.full(3, 0.5))


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in sorted(draws.DRAWS) for bad in BAD_WEIGHTS if name != "topk" or not np.isfinite(bad)],
)
@pytest.mark.parametrize("position", [0, 2, 4])
def test_an_unusable_weight_is_named_by_position_and_value(name: str, bad: float, position: int) -> None:
    weights = np.ones(5)
    weights[position] = bad
    if name == "topk" and np.isfinite(bad):  # it goes by the order alone
        assert position not in draws.topk(weights, 2, np.linspace(0.1, 0.9, 5)).positions_b
        return
    with pytest.raises(errors.InputError, match=rf"weight {bad} at position {position}:"):
        draws.DRAWS[name](weights, 2, np.linspace(0.1, 0.9, 5))


def test_the_first_of_several_bad_weights_is_named() -> None:
    with pytest.raises(errors.InputError, match=r"weight -1\.0 at position 1:"):
        draws.race(np.array([1.0, -1.0, np.nan, np.inf]), 1, np.full(4, 0.5))


@all_draws
def test_weights_of_two_dimensions_are_refused(name: str) -> None:
    with pytest.raises(errors.ShapeError, match=r"shape \(2, 2\)"):
        draws.DRAWS[name](np.ones((2, 2)), 1, np.full(4, 0.5))


@pytest.mark.parametrize("name", WITH_PROBABILITIES)
@pytest.mark.parametrize("heavy", [1e10, float(np.finfo(np.float32).max)])
def test_a_huge_weight_among_zeros_overflows_nothing(name: str, heavy: float) -> None:
    drawn = draws.DRAWS[name](np.array([heavy, 0.0, 0.0, 0.0], dtype=np.float32), 1, np.array([0.3, 0.4, 0.5, 0.6]))
    assert drawn.positions_b.tolist() == [0]
    assert drawn.inclusion_b is not None
    assert drawn.inclusion_b.tolist() == [1.0]


@pytest.mark.parametrize("size", [2, 3, 7, 20])
def test_systematic_takes_no_unit_twice_where_the_comb_starts_at_zero(size: int) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weights, uniforms = rng.random(size) ** 4, rng.random(size)
        uniforms[0] = 0.5  # its low bits are all zero, hence start = 0
        for num in range(1, size + 1):
            positions = draws.systematic(weights, num, uniforms).positions_b
            assert np.unique(positions).size == num


# -- scale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_PROBABILITIES)
@pytest.mark.parametrize(
    "losses", [(1.0, 1.0, 1.0, 1.0, 1.0), (0.1, -0.2, 0.5, 0.7, -0.3)], ids=["count", "unlike the weights"]
)
def test_the_unbiased_scale_estimates_the_mean_over_the_candidates(name: str, losses: Sequence[float]) -> None:
    rounds = 800 if name == "conditional_poisson" else 8000
    means = np.empty(rounds)
    for i, row in enumerate(np.random.default_rng(7).random((rounds, 5))):
        drawn = draws.DRAWS[name](np.array(PAPER), 2, row)
        means[i] = np.mean(drawn.scale(5, unbiased=True) * np.asarray(losses)[drawn.positions_b])
    error = means.std() / np.sqrt(rounds)
    assert means.mean() == pytest.approx(np.mean(losses), abs=4 * error)
    assert error < 0.05  # and tight enough for a mistake of a few percent to show


@distinct_draws
def test_without_replacement_the_scale_is_one_or_b_over_candidates_and_probability(name: str) -> None:
    drawn = draws.DRAWS[name](np.array(PAPER), 3, np.linspace(0.1, 0.9, 5))
    plain = drawn.scale(5, unbiased=False)
    assert plain.dtype == np.float32
    assert plain.tolist() == [1.0, 1.0, 1.0]
    if drawn.inclusion_b is None:
        with pytest.raises(errors.ConfigError, match="no inclusion probabilities"):
            drawn.scale(5, unbiased=True)
    else:
        unbiased = drawn.scale(5, unbiased=True)
        assert unbiased.dtype == np.float32
        assert unbiased.tolist() == (3 / (5 * drawn.inclusion_b)).astype(np.float32).tolist()


def test_with_replacement_the_plain_scale_gives_the_mean_over_the_draws() -> None:
    drawn = draws.replacement(np.array(PAPER), 4, np.array([0.1, 0.6, 0.2, 0.99, 0.5]))
    assert drawn.positions_b.tolist() == [0, 1, 4]
    assert drawn.times_b.tolist() == [2.0, 1.0, 1.0]
    losses = np.array([5.0, 7.0, 11.0])
    assert np.mean(drawn.scale(5, unbiased=False) * losses) == pytest.approx((5 + 5 + 7 + 11) / 4)
    assert np.mean(drawn.scale(5, unbiased=True) * losses) == pytest.approx(
        (5 / (8 / 16) + 5 / (8 / 16) + 7 / (4 / 16) + 11 / (1 / 16)) / (4 * 5)
    )


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 30), data=st.data())
def test_race_inclusion_is_the_chance_to_beat_the_first_left_out(seed: int, size: int, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, size - 1))
    rng = np.random.default_rng(seed)
    weights, uniforms = rng.random(size) + 0.01, rng.random(size)
    arrivals = -np.log(uniforms) / weights
    ranking = np.argsort(arrivals)
    drawn = draws.race(weights, num, uniforms)
    assert drawn.positions_b.tolist() == sorted(ranking[:num].tolist())
    expected = 1.0 - np.exp(-weights[drawn.positions_b] * arrivals[ranking[num]])
    assert drawn.inclusion_b == pytest.approx(expected)
