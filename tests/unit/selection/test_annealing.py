"""Annealing: ⌈first·E⌉ epochs at the start and ⌈last·E⌉ at the end, whatever floats do to the product."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection.annealing import Annealing, check_anneal


def is_annealing(epoch: int, num_epochs: int, anneal: tuple[float, float]) -> bool:
    return Annealing.of(anneal, num_epochs, "epochs").is_whole(epoch)


def is_scoring(epoch: int, num_epochs: int, anneal: tuple[float, float], score_every: int) -> bool:
    return Annealing.of(anneal, num_epochs, "epochs").is_scoring(epoch, score_every)


percents = st.integers(0, 100)


@given(percents, percents, st.integers(1, 1000))
def test_as_many_epochs_as_exact_fractions_say(first: int, last: int, num_epochs: int) -> None:
    last = min(last, 100 - first)
    head = math.ceil(Fraction(first, 100) * num_epochs)
    tail = math.ceil(Fraction(last, 100) * num_epochs)
    expected = [epoch < head or epoch >= num_epochs - tail for epoch in range(num_epochs)]
    anneal = (first / 100, last / 100)
    check_anneal(anneal)
    assert [is_annealing(epoch, num_epochs, anneal) for epoch in range(num_epochs)] == expected


@pytest.mark.parametrize(
    ("share", "num_epochs", "count"),
    [
        (0.1, 30, 3),
        (0.07, 100, 7),
        (0.55, 100, 55),
        (0.05, 8, 1),
        (0.05, 200, 10),
        (0.15, 20, 3),
        (0.0, 10, 0),
        (1 / 3, 9, 3),
        (1e-3, 5, 1),
    ],
)
def test_shares_that_floats_would_round_up(share: float, num_epochs: int, count: int) -> None:
    assert sum(is_annealing(epoch, num_epochs, (share, 0.0)) for epoch in range(num_epochs)) == count
    assert sum(is_annealing(epoch, num_epochs, (0.0, share)) for epoch in range(num_epochs)) == count


def test_the_traps_are_traps() -> None:
    assert math.ceil(0.07 * 100) == 8
    assert math.ceil(0.55 * 100) == 56


def test_none_selects_from_the_first_step_and_all_never_selects() -> None:
    assert not any(is_annealing(epoch, 10, (0.0, 0.0)) for epoch in range(10))
    assert all(is_annealing(epoch, 10, (1.0, 0.0)) for epoch in range(10))
    assert all(is_annealing(epoch, 10, (0.5, 0.5)) for epoch in range(10))


def test_the_first_epochs_and_the_last_ones_are_not_mixed_up() -> None:
    assert [is_annealing(epoch, 10, (0.3, 0.1)) for epoch in range(10)] == [True] * 3 + [False] * 6 + [True]


@pytest.mark.parametrize(
    "anneal",
    [(-0.1, 0.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 0.0), (0.0, float("nan")), (0.1,), (0.1, 0.1, 0.1), ()],
)
def test_anything_but_two_shares_is_refused_and_named(anneal: tuple[float, ...]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        check_anneal(anneal)  # type: ignore[arg-type]
    assert str(anneal) in str(caught.value)


@pytest.mark.parametrize("anneal", ["0.1", "ab", "", b"ab", 0.1, None])
def test_what_is_no_pair_is_told_what_one_looks_like(anneal: object) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        check_anneal(anneal)
    assert str(caught.value) == f"anneal must be two shares of the epochs, e.g. (0.05, 0.05), got {anneal!r}"


def test_shares_that_sum_to_one_in_decimals_are_taken() -> None:
    check_anneal((0.7, 0.3))
    check_anneal((0.9, 0.1))
    check_anneal((0.35, 0.65))


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([(0, 0), (0.05, 0.05), (0.3, 0.1), (0, 0.125), (1, 0)]))
def test_every_so_many_epochs_score_from_the_first_that_selects(
    num_epochs: int, every: int, anneal: tuple[float, float]
) -> None:
    selects = [not is_annealing(epoch, num_epochs, anneal) for epoch in range(num_epochs)]
    scores = [is_scoring(epoch, num_epochs, anneal, every) for epoch in range(num_epochs)]
    selecting = [epoch for epoch in range(num_epochs) if selects[epoch]]
    assert [epoch for epoch in range(num_epochs) if scores[epoch]] == selecting[::every]


def annealed(num_epochs: int, num_steps: int, anneal: tuple[float, float] = (0.05, 0.05)) -> list[int]:
    """How many steps of each epoch anneal by default."""
    spans = [Annealing.of(anneal, num_epochs, "auto").selecting(epoch, num_steps) for epoch in range(num_epochs)]
    return [num_steps - len(span) for span in spans]


def test_short_trainings_anneal_by_steps_and_select_the_rest() -> None:
    assert annealed(1, 100) == [10]
    assert annealed(2, 100) == [10, 10]
    assert annealed(3, 100) == [15, 0, 15]
    assert Annealing.of((0.05, 0.05), 1, "auto").selecting(0, 100) == range(5, 95)
    assert Annealing.of((0.05, 0.05), 2, "auto").selecting(0, 100) == range(10, 100)
    assert Annealing.of((0.05, 0.05), 2, "auto").selecting(1, 100) == range(90)


@given(st.integers(4, 200), st.integers(1, 50), percents, percents)
def test_from_four_epochs_on_whole_epochs_anneal_as_ever(
    num_epochs: int, num_steps: int, first: int, last: int
) -> None:
    last = min(last, 100 - first)
    anneal = (first / 100, last / 100)
    expected = [num_steps * is_annealing(epoch, num_epochs, anneal) for epoch in range(num_epochs)]
    assert annealed(num_epochs, num_steps, anneal) == expected


@given(st.integers(1, 12), st.integers(1, 60), percents, percents)
def test_by_steps_a_step_anneals_where_it_touches_either_part(
    num_epochs: int, num_steps: int, first: int, last: int
) -> None:
    last = min(last, 100 - first)
    annealing = Annealing.of((first / 100, last / 100), num_epochs, "steps")
    head, tail = Fraction(first * num_epochs, 100), num_epochs - Fraction(last * num_epochs, 100)
    for epoch in range(num_epochs):
        begins = [epoch + Fraction(step, num_steps) for step in range(num_steps)]
        expected = [step for step, at in enumerate(begins) if at >= head and at + Fraction(1, num_steps) <= tail]
        assert list(annealing.selecting(epoch, num_steps)) == expected
        assert annealing.is_whole(epoch) == (epoch + 1 <= head or epoch >= tail)


def test_a_stream_anneals_whole_epochs_or_not_at_all() -> None:
    assert 10**9 in Annealing.of((0.05, 0.05), 2, "auto").selecting(0, None)
    assert 0 not in Annealing.of((0.05, 0.05), 8, "auto").selecting(0, None)
    assert 0 not in Annealing.of((0.5, 0.0), 2, "auto").selecting(0, None)
