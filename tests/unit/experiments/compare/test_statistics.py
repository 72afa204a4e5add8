"""Intervals against scipy; savings at equal accuracy by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from es_service.experiments.statistics import paired_difference, saving_at_equal, spread

NUMBERS = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 6))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_intervals_are_those_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    difference = paired_difference(ours, theirs)
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    differences = [our - their for our, their in pairs]
    mean, error = float(stats.tmean(differences)), float(stats.sem(differences))
    assert difference.mean == pytest.approx(mean, abs=1e-12)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(pairs) - 1, mean, error)
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-9)


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    one = paired_difference({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.1})
    assert one is not None
    assert (one.mean, one.low, one.high, one.pairs) == (pytest.approx(0.1), None, None, 1)
    assert paired_difference({0: 0.9}, {1: 0.7}) is None
    assert spread([0.5]).std is None
    assert spread([0.4, 0.6]).std == pytest.approx(math.sqrt(0.02))


LINE = [(1.0, 0.90), (0.5, 0.80), (0.75, 0.86)]


@pytest.mark.parametrize(
    ("cost", "value", "saving", "kind"),
    [
        (0.5, 0.83, 1 - 0.5 / 0.625, "exact"),  # half-way between the first two points
        (0.7, 0.83, 1 - 0.7 / 0.625, "exact"),  # dearer than the short run that does as well
        (0.5, 0.90, 0.5, "exact"),
        (0.5, 0.80, 0.0, "exact"),
        (0.6, 0.95, 0.4, "at least"),  # better than full: full would need more than it costs
        (0.4, 0.70, 0.2, "at most"),  # worse than the shortest: a run shorter still might do as well
    ],
)
def test_savings_at_equal_accuracy(cost: float, value: float, saving: float, kind: str) -> None:
    found = saving_at_equal(LINE, cost, value)
    assert found.value == pytest.approx(saving)
    assert found.kind == kind
    assert found.bound == (kind != "exact")


def test_where_the_line_dips_the_first_crossing_counts() -> None:
    line = [(0.25, 0.70), (0.5, 0.90), (0.75, 0.85), (1.0, 0.95)]
    assert saving_at_equal(line, 0.3, 0.88).value == pytest.approx(1 - 0.3 / (0.25 + 0.25 * 0.9))
