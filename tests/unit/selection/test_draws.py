"""Draws: their laws against exact enumeration, their probabilities, and what every draw promises."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, optimize

from es_service import errors
from es_service.selection import draws, keys

Law = dict[tuple[int, ...], float]
RaceLaw = Callable[[Sequence[float], int], Law]
FitTest = Callable[[Mapping[tuple[int, ...], int], Law], float]
F64 = NDArray[np.float64]

PAPER = (8.0, 4.0, 2.0, 1.0, 1.0)
CASES = [
    (PAPER, 2),
    (PAPER, 3),
    ((3.0, 3.0, 2.0, 1.0), 1),
    ((1.0, 1.0, 1.0, 1.0), 2),
    ((5.0, 4.0, 3.0, 2.0, 1.0, 0.5), 4),
]
MIN_P = 1e-4

all_draws = pytest.mark.parametrize("name", sorted(draws.DRAWS))


def sample(
    name: str, weights: Sequence[float], num: int, rounds: int, seed: int
) -> collections.Counter[tuple[int, ...]]:
    uniforms = np.random.default_rng(seed).random((rounds, len(weights)))
    array = np.asarray(weights)
    return collections.Counter(tuple(draws.DRAWS[name](array, num, row).positions_b.tolist()) for row in uniforms)


def inclusions(law: Law, size: int) -> F64:
    totals = np.zeros(size)
    for subset, probability in law.items():
        totals[list(subset)] += probability
    return totals


def systematic_law(targets: F64, num: int) -> Law:
    """Every order of the units, and in each the whole range of the comb's start, exactly."""
    law: collections.defaultdict[tuple[int, ...], float] = collections.defaultdict(float)
    orders = list(itertools.permutations(range(targets.size)))
    for order in orders:
        edges = np.cumsum(targets[list(order)])
        breaks = sorted({0.0, 1.0, *(float(edge % 1.0) for edge in edges)})
        for low, high in itertools.pairwise(breaks):
            if high - low < 1e-12:
                continue
            teeth = (low + high) / 2 + np.arange(num)
            subset = tuple(sorted(order[i] for i in np.searchsorted(edges, teeth, side="right")))
            law[subset] += (high - low) / len(orders)
    return dict(law)


def priority_law(weights: Sequence[float], num: int) -> Law:
    """P(S) = ∫ P(the last of S arrives at t) · P(all others later) dt, with arrival u/w uniform on (0, 1/w)."""
    law: Law = {}
    breaks = sorted({1.0 / weight for weight in weights})

    def density(t: float, subset: tuple[int, ...]) -> float:
        others = float(np.prod([max(0.0, 1.0 - w * t) for i, w in enumerate(weights) if i not in subset]))
        last = 0.0
        for unit in subset:
            if weights[unit] * t < 1.0:
                last += weights[unit] * float(np.prod([min(1.0, weights[i] * t) for i in subset if i != unit]))
        return last * others

    for subset in itertools.combinations(range(len(weights)), num):
        edges = [0.0, *breaks]
        law[subset] = sum(
            integrate.quad(density, low, high, args=(subset,))[0] for low, high in itertools.pairwise(edges)
        )
    return law


def entropy_law(targets: F64, num: int) -> Law:
    """The maximum-entropy law with these inclusions: P(S) ∝ Π θ_i, solved for θ by a general root finder."""
    subsets = list(itertools.combinations(range(targets.size), num))
    members = np.array([[i in subset for i in range(targets.size)] for subset in subsets], dtype=float)

    def law_of(thetas: F64) -> F64:
        weights = np.exp(members @ np.append(thetas, 0.0))
        law: F64 = weights / weights.sum()
        return law

    def gap(thetas: F64) -> F64:
        reached: F64 = members.T @ law_of(thetas)
        short: F64 = (reached - targets)[:-1]
        return short

    solved = optimize.root(gap, np.zeros(targets.size - 1), tol=1e-12)
    assert solved.success
    return dict(zip(subsets, law_of(solved.x).tolist(), strict=True))


def plain_targets(weights: Sequence[float], num: int) -> list[float]:
    """min(1, b·w/Σw), iterated, the slow way: one certain unit after the other."""
    certain: set[int] = set()
    while True:
        left = num - len(certain)
        total = sum(w for i, w in enumerate(weights) if i not in certain)
        over = [i for i, w in enumerate(weights) if i not in certain and left * w > total * (1 + 1e-12)]
        if not over:
            return [1.0 if i in certain else left * w / total for i, w in enumerate(weights)]
        certain.add(max(over, key=lambda i: weights[i]))


# -- the figures of METHODS.md, section 4 -------------------------------------------------------------------------


def test_targets_have_the_figures_of_the_enumeration() -> None:
    assert draws.inclusion_targets(np.array(PAPER), 2).tolist() == [1.0, 0.5, 0.25, 0.125, 0.125]


def test_targets_iterate_until_no_unit_is_more_than_certain() -> None:
    assert draws.inclusion_targets(np.array(PAPER), 3).tolist() == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_targets_keep_the_order_of_the_weights_given() -> None:
    assert draws.inclusion_targets(np.array([1.0, 8.0, 2.0, 1.0, 4.0]), 2).tolist() == [0.125, 1.0, 0.25, 0.125, 0.5]


def test_race_inclusions_have_the_figures_of_the_enumeration(race_law: RaceLaw) -> None:
    exact = inclusions(race_law(PAPER, 2), 5)
    assert exact == pytest.approx([0.8048, 0.5690, 0.3083, 0.1589, 0.1589], abs=5e-5)
    rounds = 6000
    counts = sample("race", PAPER, 2, rounds, seed=1)
    seen = inclusions({subset: count / rounds for subset, count in counts.items()}, 5)
    assert np.all(np.abs(seen - exact) < 4 * np.sqrt(exact * (1 - exact) / rounds))


# -- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "num"), CASES)
def test_race_has_the_law_of_successive_draws(
    weights: Sequence[float], num: int, race_law: RaceLaw, p_value: FitTest
) -> None:
    assert p_value(sample("race", weights, num, 4000, seed=2), race_law(weights, num)) > MIN_P


def test_race_over_the_steps_of_a_run_has_that_law_too(race_law: RaceLaw, p_value: FitTest) -> None:
    ids = np.array([3, 17, 256, 70_000, 19_999_999], dtype=np.int64)
    counts = collections.Counter(
        tuple(draws.race(np.array(PAPER), 2, keys.uniforms(5, keys.Purpose.DRAW, step, ids)).positions_b.tolist())
        for step in range(4000)
    )
    assert p_value(counts, race_law(PAPER, 2)) > MIN_P


@pytest.mark.parametrize(("weights", "num"), CASES[:4])
def test_priority_has_the_law_of_the_largest_ratios(weights: Sequence[float], num: int, p_value: FitTest) -> None:
    law = priority_law(weights, num)
    assert sum(law.values()) == pytest.approx(1.0)
    assert p_value(sample("priority", weights, num, 4000, seed=3), law) > MIN_P


@pytest.mark.parametrize(("weights", "num"), CASES[:4])
def test_systematic_has_the_law_of_a_comb_over_random_orders(
    weights: Sequence[float], num: int, p_value: FitTest
) -> None:
    targets = np.array(plain_targets(weights, num))
    law = systematic_law(targets, num)
    assert inclusions(law, targets.size) == pytest.approx(targets)
    assert p_value(sample("systematic", weights, num, 4000, seed=4), law) > MIN_P


@pytest.mark.parametrize(("weights", "num"), [((4.0, 3.0, 2.0, 1.5, 1.0), 2), ((3.0, 2.5, 2.0, 1.0, 1.0, 1.0), 3)])
def test_conditional_poisson_has_the_maximum_entropy_law(weights: Sequence[float], num: int, p_value: FitTest) -> None:
    targets = np.array(plain_targets(weights, num))
    assert targets.max() < 1
    assert p_value(sample("conditional_poisson", weights, num, 1000, seed=5), entropy_law(targets, num)) > MIN_P


def test_conditional_poisson_takes_certain_units_and_spreads_the_rest(p_value: FitTest) -> None:
    rest = entropy_law(np.array([0.5, 0.25, 0.125, 0.125]), 1)
    law = {(0, *(unit + 1 for unit in subset)): probability for subset, probability in rest.items()}
    assert p_value(sample("conditional_poisson", PAPER, 2, 600, seed=6), law) > MIN_P


# -- inclusion probabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["race", "priority", "systematic", "conditional_poisson"])
@pytest.mark.parametrize(
    "values", [(1.0, 1.0, 1.0, 1.0, 1.0), (0.1, -0.2, 0.5, 0.7, -0.3)], ids=["count", "unlike the weights"]
)
def test_weighting_by_the_inverse_inclusion_is_unbiased(name: str, values: Sequence[float]) -> None:
    rounds = 800 if name == "conditional_poisson" else 8000
    uniforms = np.random.default_rng(7).random((rounds, 5))
    totals = np.empty(rounds)
    for i, row in enumerate(uniforms):
        drawn = draws.DRAWS[name](np.array(PAPER), 2, row)
        assert drawn.inclusion_b is not None
        totals[i] = np.sum(np.asarray(values)[drawn.positions_b] / drawn.inclusion_b)
    error = totals.std() / np.sqrt(rounds)
    assert totals.mean() == pytest.approx(sum(values), abs=4 * error)
    assert error < 0.25  # and tight enough for a mistake of a few percent to show


@pytest.mark.parametrize("name", ["systematic", "conditional_poisson"])
@pytest.mark.parametrize(("weights", "num"), CASES)
def test_exact_draws_report_the_targets(name: str, weights: Sequence[float], num: int) -> None:
    drawn = draws.DRAWS[name](np.asarray(weights), num, np.random.default_rng(8).random(len(weights)))
    assert drawn.inclusion_b == pytest.approx(np.array(plain_targets(weights, num))[drawn.positions_b])


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


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.data())
def test_targets_sum_to_b_and_agree_with_the_slow_way(weights: list[float], data: st.DataObject) -> None:
    num = data.draw(st.integers(1, len(weights)))
    targets = draws.inclusion_targets(np.array(weights), num)
    assert targets.sum() == pytest.approx(num)
    assert targets.max() <= 1.0
    assert targets.tolist() == pytest.approx(plain_targets(weights, num), rel=1e-6)


def test_targets_share_the_rest_among_zero_weights() -> None:
    assert draws.inclusion_targets(np.array([0.0, 3.0, 0.0, 0.0, 1.0]), 3).tolist() == pytest.approx(
        [1 / 3, 1.0, 1 / 3, 1 / 3, 1.0]
    )
    assert draws.inclusion_targets(np.array([0.0, 3.0, 1.0]), 2).tolist() == [0.0, 1.0, 1.0]
    assert draws.inclusion_targets(np.zeros(4), 1).tolist() == [0.25] * 4


# -- promises of every draw ---------------------------------------------------------------------------------------

weight = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))


@all_draws
@given(weights=st.lists(weight, min_size=1, max_size=40), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_every_draw_takes_exactly_b_distinct_positions_in_order(
    name: str, weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    uniforms = keys.uniforms(seed, keys.Purpose.DRAW, 0, np.arange(len(weights)))
    before = np.array(weights)
    drawn = draws.DRAWS[name](before, num, uniforms)
    positions = drawn.positions_b
    assert positions.dtype == np.int64
    assert positions.size == num
    assert np.all(np.diff(positions) > 0)
    assert positions[0] >= 0
    assert positions[-1] < len(weights)
    assert before.tolist() == weights, "the draw wrote into its argument"
    if name == "topk":
        assert drawn.inclusion_b is None
    else:
        assert drawn.inclusion_b is not None
        assert drawn.inclusion_b.shape == (num,)
        assert np.all((drawn.inclusion_b > 0) & (drawn.inclusion_b <= 1))


@all_draws
@given(weights=st.lists(weight, min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_weight_of_zero_is_taken_only_after_every_positive_one(
    name: str, weights: list[float], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(weights)))
    drawn = draws.DRAWS[name](np.array(weights), num, np.random.default_rng(seed).random(len(weights)))
    num_positive = sum(one > 0 for one in weights)
    assert sum(weights[i] > 0 for i in drawn.positions_b) == min(num, num_positive)


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


@all_draws
def test_drawing_all_takes_all_with_certainty(name: str) -> None:
    drawn = draws.DRAWS[name](np.array([3.0, 0.0, 1.0]), 3, np.array([0.5, 0.2, 0.7]))
    assert drawn.positions_b.tolist() == [0, 1, 2]
    assert drawn.inclusion_b is None if name == "topk" else drawn.inclusion_b.tolist() == [1.0, 1.0, 1.0]  # type: ignore[union-attr]


@all_draws
@pytest.mark.parametrize("num", [-1, 0, 4])
def test_b_outside_the_batch_is_refused(name: str, num: int) -> None:
    with pytest.raises(errors.ConfigError, match=rf"cannot draw {num} of 3"):
        draws.DRAWS[name](np.ones(3), num, np.full(3, 0.5))


@all_draws
@pytest.mark.parametrize("bad", [float("nan"), -0.5, float("inf"), -float("inf")])
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


@pytest.mark.parametrize("name", ["race", "priority", "systematic", "conditional_poisson"])
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


@pytest.mark.parametrize(("weights", "num"), [((1.0, 2.0), 1), ((100.0, 2.0, 1.0), 2), ((3.0, 2.0, 1.0), 1)])
def test_conditional_poisson_settles_for_a_handful_of_units(weights: Sequence[float], num: int) -> None:
    rounds = 200
    targets = np.array(plain_targets(weights, num))
    counts = sample("conditional_poisson", weights, num, rounds, seed=9)
    seen = inclusions({subset: count / rounds for subset, count in counts.items()}, targets.size)
    assert np.all(np.abs(seen - targets) <= 4 * np.sqrt(targets * (1 - targets) / rounds))


@pytest.mark.parametrize("num_light", [30, 300])
def test_conditional_poisson_copes_with_one_sample_far_above_the_rest(num_light: int) -> None:
    weights = np.array([1e6] + [1e-3] * num_light)
    drawn = draws.conditional_poisson(weights, 1, np.random.default_rng(0).random(weights.size))
    assert drawn.positions_b.size == 1


def test_conditional_poisson_names_the_way_out_where_it_cannot_settle() -> None:
    weights = np.array([1.0] + [1e-12] * 300)  # a span that no loss should have
    try:
        drawn = draws.conditional_poisson(weights, 1, np.random.default_rng(0).random(301))
    except errors.InputError as error:
        assert "draw='systematic'" in str(error)  # noqa: PT017 - either outcome will do, a bare ZeroDivision will not
    else:
        assert drawn.positions_b.tolist() == [0]
