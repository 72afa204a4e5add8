"""The statistics of a comparison, against scipy and against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from es_service.experiments.statistics import Difference, detectable, holm, paired_difference

OURS = {0: 0.91, 1: 0.93, 2: 0.90, 3: 0.95, 4: 0.92}
THEIRS = {0: 0.90, 1: 0.90, 2: 0.89, 3: 0.93, 4: 0.93, 9: 0.5}


def test_a_paired_difference_is_what_scipy_makes_of_it() -> None:
    found = paired_difference(OURS, THEIRS)
    assert found is not None
    expected = stats.ttest_rel([OURS[seed] for seed in OURS], [THEIRS[seed] for seed in OURS])
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.pairs) == (pytest.approx(0.012), 5)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_by_hand_three_pairs() -> None:
    """Differences 1, 2, 3: t = 2√3 with two degrees of freedom, where p = 1 - t/√(t² + 2)."""
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    assert (found.mean, found.std) == (2.0, 1.0)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_one_pair_equal_differences_and_what_is_not_finite() -> None:
    one = paired_difference({0: 0.9, 5: 0.1}, {0: 0.5})
    assert one is not None
    assert (one.pairs, one.low, one.std, one.p, detectable(one, 1)) == (1, None, None, None, None)
    assert paired_difference({0: 0.9}, {1: 0.5}) is None
    for difference, p in ((0.0, 1.0), (0.5, 0.0), (-0.5, 0.0)):
        same = paired_difference({0: 1 + difference, 1: difference}, {0: 1.0, 1: 0.0})
        assert same is not None
        assert (same.p, same.low, same.high, detectable(same, 3)) == (p, difference, difference, 0.0)
    for strange in (math.inf, -math.inf, math.nan):
        found = paired_difference({0: strange, 1: 0.5, 2: -strange}, {0: 0.1, 1: 0.1, 2: 0.1})
        assert found is not None
        assert (found.pairs, found.low, found.p) == (3, None, None)


def test_holm_by_hand() -> None:
    """0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not be below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.03, 0.9]) == pytest.approx([0.8, 0.09, 0.9])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def difference(pairs: int, std: float) -> Difference:
    return Difference(mean=0.0, low=-1.0, high=1.0, pairs=pairs, std=std, p=1.0)


@pytest.mark.parametrize(("pairs", "tests"), [(2, 1), (3, 1), (5, 1), (5, 6), (8, 20), (30, 100)])
def test_what_is_detectable_is_found_in_four_of_five_cases(pairs: int, tests: int) -> None:
    found = detectable(difference(pairs, 0.02), tests)
    assert found is not None
    threshold = stats.t.isf(0.05 / tests / 2, pairs - 1)
    center = found / (0.02 / math.sqrt(pairs))
    assert stats.nct.sf(threshold, pairs - 1, center) == pytest.approx(0.8, abs=1e-4)
    other_tail = stats.nct.sf(threshold, pairs - 1, -center)
    assert not other_tail > 1e-3


def test_five_seeds_detect_1_68_deviations() -> None:
    """What tables of power have for n = 5; more seeds see less, more tests need more."""
    assert detectable(difference(5, 1.0), 1) == pytest.approx(1.682, abs=1e-3)
    seen = [detectable(difference(pairs, 1.0), tests) for pairs, tests in ((8, 1), (5, 1), (5, 4), (3, 4))]
    assert seen == sorted(seen, key=float)  # type: ignore[arg-type]
