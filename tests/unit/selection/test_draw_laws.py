"""Laws of the draws, against exact enumeration, and the target probabilities."""

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


def pivotal_law(targets: F64, num: int) -> Law:
    """Every order of the units, and in each every outcome of every duel, exactly."""
    law: collections.defaultdict[tuple[int, ...], float] = collections.defaultdict(float)

    def duel(stakes: list[tuple[int, float]], taken: tuple[int, ...], probability: float) -> None:
        """The first two of the units still open meet; those with stake 1 are taken, those with 0 are out."""
        taken += tuple(unit for unit, stake in stakes if stake > 1 - 1e-9)
        (first, a), (second, c), *rest = [*((u, s) for u, s in stakes if 1e-9 < s < 1 - 1e-9), (-1, 0.0), (-1, 0.0)]
        if second < 0:
            assert first < 0, "a stake is left over"
            law[tuple(sorted(taken))] += probability
        elif a + c < 1:
            duel([(first, a + c), *rest], taken, probability * a / (a + c))
            duel([(second, a + c), *rest], taken, probability * c / (a + c))
        else:
            duel([(first, 1.0), (second, a + c - 1), *rest], taken, probability * (1 - c) / (2 - a - c))
            duel([(second, 1.0), (first, a + c - 1), *rest], taken, probability * (1 - a) / (2 - a - c))

    orders = list(itertools.permutations(enumerate(targets.tolist())))
    for order in orders:
        duel(list(order), (), 1.0 / len(orders))
    assert all(len(subset) == num for subset in law)
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


@pytest.mark.parametrize(("weights", "num"), [*CASES, ((4.0, 3.0, 2.0, 1.5, 1.0), 3)])
def test_pivotal_has_the_law_of_duels_in_random_order(weights: Sequence[float], num: int, p_value: FitTest) -> None:
    targets = np.array(plain_targets(weights, num))
    law = pivotal_law(targets, num)
    assert inclusions(law, targets.size) == pytest.approx(targets)
    assert p_value(sample("pivotal", weights, num, 4000, seed=10), law) > MIN_P


@pytest.mark.parametrize("name", ["systematic", "pivotal"])
def test_over_the_steps_of_a_run_the_exact_draws_have_their_laws_too(name: str, p_value: FitTest) -> None:
    ids, weights = np.array([3, 17, 256, 70_000, 19_999_999], dtype=np.int64), np.array([4.0, 3.0, 2.0, 1.5, 1.0])
    targets = np.array(plain_targets(weights.tolist(), 2))
    counts = collections.Counter(
        tuple(draws.DRAWS[name](weights, 2, keys.uniforms(5, keys.Purpose.DRAW, step, ids)).positions_b.tolist())
        for step in range(4000)
    )
    law = systematic_law(targets, 2) if name == "systematic" else pivotal_law(targets, 2)
    assert p_value(counts, law) > MIN_P


def test_pivotal_keeps_its_probabilities_where_no_law_can_be_enumerated() -> None:
    """256 units, heavy-tailed: Σ (count - R·π)² / (R·π·(1-π)) has mean 1 per open unit."""
    weights, rounds = np.random.default_rng(0).lognormal(sigma=2.0, size=256), 2000
    targets = draws.inclusion_targets(weights, 64)
    counts = np.zeros(256)
    for row in np.random.default_rng(11).random((rounds, 256)):
        counts[draws.pivotal(weights, 64, row).positions_b] += 1
    assert np.all(counts[targets == 1.0] == rounds)
    open_units = targets < 1.0
    expected = rounds * targets[open_units]
    scores = (counts[open_units] - expected) / np.sqrt(expected * (1.0 - targets[open_units]))
    assert np.mean(scores**2) == pytest.approx(1.0, abs=4 * np.sqrt(2 / scores.size))
    assert np.abs(scores).max() < 5


@pytest.mark.parametrize(("weights", "num"), [*CASES, ((2.0, 0.0, 1.0), 3)])
def test_replacement_has_the_multinomial_law(weights: Sequence[float], num: int, p_value: FitTest) -> None:
    """Keys are how often each of the B was taken, not subsets."""
    size, shares = len(weights), np.array(weights) / sum(weights)
    law: Law = {}
    for sequence in itertools.product(range(size), repeat=num):
        times = tuple(sequence.count(unit) for unit in range(size))
        law[times] = law.get(times, 0.0) + float(np.prod(shares[list(sequence)]))
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    for row in np.random.default_rng(12).random((4000, size)):
        drawn = draws.replacement(np.array(weights), num, row)
        taken = np.zeros(size, dtype=int)
        taken[drawn.positions_b] = drawn.times_b
        counts[tuple(taken.tolist())] += 1
    assert p_value(counts, law) > MIN_P


@pytest.mark.parametrize(("weights", "num"), [((4.0, 3.0, 2.0, 1.5, 1.0), 2), ((3.0, 2.5, 2.0, 1.0, 1.0, 1.0), 3)])
def test_conditional_poisson_has_the_maximum_entropy_law(weights: Sequence[float], num: int, p_value: FitTest) -> None:
    targets = np.array(plain_targets(weights, num))
    assert targets.max() < 1
    assert p_value(sample("conditional_poisson", weights, num, 1000, seed=5), entropy_law(targets, num)) > MIN_P


def test_conditional_poisson_takes_certain_units_and_spreads_the_rest(p_value: FitTest) -> None:
    rest = entropy_law(np.array([0.5, 0.25, 0.125, 0.125]), 1)
    law = {(0, *(unit + 1 for unit in subset)): probability for subset, probability in rest.items()}
    assert p_value(sample("conditional_poisson", PAPER, 2, 600, seed=6), law) > MIN_P


# -- target probabilities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["systematic", "pivotal", "conditional_poisson"])
@pytest.mark.parametrize(("weights", "num"), CASES)
def test_exact_draws_report_the_targets(name: str, weights: Sequence[float], num: int) -> None:
    drawn = draws.DRAWS[name](np.asarray(weights), num, np.random.default_rng(8).random(len(weights)))
    assert drawn.inclusion_b == pytest.approx(np.array(plain_targets(weights, num))[drawn.positions_b])


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


# -- conditional Poisson settles ----------------------------------------------------------------------------------


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
