"""The ledger: its arithmetic, by hand, with a clock that does as it is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.ledger import SECTIONS, Ledger


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_new_ledger_is_empty_and_knows_no_saving() -> None:
    ledger = Ledger()
    assert (ledger.scored, ledger.trained, ledger.full, ledger.skipped) == (0, 0, 0, 0)
    assert ledger.saving() == {"samples": None, "cost": None, "seconds": None}
    assert set(ledger.seconds) == set(SECTIONS)


def test_seconds_are_what_the_clock_says_even_where_the_block_raises() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock)
    with ledger.timing("score"):
        clock.now += 1.5

    def fail_in_training() -> None:
        with ledger.timing("train"):
            clock.now += 0.25
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_training()
    with ledger.timing("score"):
        clock.now += 0.5
    assert ledger.seconds == {"score": 2.0, "train": 0.25, "exchange": 0.0, "data": 0.0}


def warmed_up(**values: Any) -> Ledger:
    """Return a ledger past its first three steps, which measure nothing; they leave no other trace."""
    return Ledger(warming=0, **values)


def test_saving_by_hand() -> None:
    """8 annealing samples in 1 step of 4 s; then 3 steps of 8, half pruned away, 2 trained of each, 1 s a step."""
    ledger = warmed_up()
    ledger.trained += 8
    ledger.count_step(8, 8, 4.0, is_full_step=True)
    for _ in range(3):
        ledger.scored += 8
        ledger.trained += 2
        ledger.count_step(8, 8, 1.0, is_full_step=False)
    ledger.count_pruned(32, np.arange(8), 8)
    assert ledger.full == 8 + 24 + 24
    assert ledger.full_steps == 7.0
    assert ledger.total_s == 7.0
    assert (ledger.measured_s, ledger.measured_steps) == (4.0, 1)
    saving = ledger.saving()
    assert saving["samples"] == pytest.approx(1 - 14 / 56)
    assert saving["cost"] == pytest.approx(1 - (24 + 3 * 14) / (3 * 56))
    assert saving["seconds"] == pytest.approx(1 - 7.0 / (7 * 4.0))


def test_saved_seconds_are_unknown_where_no_step_took_everything() -> None:
    ledger = Ledger()
    ledger.count_step(8, 8, 1.0, is_full_step=False)
    saving = ledger.saving()
    assert saving["seconds"] is None
    assert saving["samples"] == 1.0


def test_a_method_that_costs_more_than_it_saves_is_shown_negative() -> None:
    ledger = warmed_up(scored=10, trained=10)
    ledger.count_step(10, 10, 2.0, is_full_step=True)
    ledger.count_step(10, 10, 4.0, is_full_step=False)
    ledger.trained += 9
    ledger.scored += 10
    assert ledger.saving() == {
        "samples": pytest.approx(1 / 20),
        "cost": pytest.approx(1 - (20 + 3 * 19) / 60),
        "seconds": pytest.approx(1 - 6.0 / 4.0),
    }


def test_a_short_last_step_is_no_measure_of_a_full_one() -> None:
    ledger = warmed_up()
    ledger.count_step(3, 8, 0.5, is_full_step=True)
    assert ledger.measured_steps == 0
    assert ledger.full_steps == 3 / 8


def test_the_mean_full_step_counts() -> None:
    ledger = warmed_up()
    for seconds in (1.0, 2.0, 6.0):
        ledger.count_step(4, 4, seconds, is_full_step=True)
    ledger.count_step(4, 4, 1.0, is_full_step=False)
    assert ledger.saving()["seconds"] == pytest.approx(1 - 10.0 / (4 * 3.0))


def test_the_first_steps_warm_up_and_measure_nothing() -> None:
    ledger = Ledger()
    for seconds in (50.0, 20.0, 10.0, 1.0, 1.0):
        ledger.count_step(4, 4, seconds, is_full_step=True)
    assert (ledger.measured_s, ledger.measured_steps) == (2.0, 2)
    assert ledger.total_s == 82.0
    assert ledger.steps == 5


def test_a_clock_too_coarse_to_see_a_step_gives_no_saving_but_no_error_either() -> None:
    ledger = warmed_up()
    ledger.count_step(4, 4, 0.0, is_full_step=True)
    assert ledger.saving()["seconds"] is None


seconds = st.floats(0, 1e4)
ledgers = st.builds(
    Ledger,
    scored=st.integers(0, 10**9),
    trained=st.integers(0, 10**9),
    full=st.integers(0, 10**9),
    skipped=st.integers(0, 100),
    total_s=seconds,
    full_steps=seconds,
    seconds=st.fixed_dictionaries(dict.fromkeys(SECTIONS, seconds)),
    steps=st.integers(0, 10**6),
    measured_s=seconds,
    measured_steps=st.integers(0, 10**6),
    scorer_scored=st.integers(0, 10**9),
    scorer_trained=st.integers(0, 10**9),
    scorer_passes=seconds,
    scorer_s=seconds,
)


@given(ledgers)
def test_plain_values_and_back(ledger: Ledger) -> None:
    values = ledger.to_dict()
    again = Ledger.from_dict(json.loads(json.dumps(values)))
    assert again == ledger
    again.seconds["score"] += 1
    assert ledger.to_dict() == values, "a copy shares its sections with the original"
    assert "clock" not in values


def test_from_dict_takes_the_clock_given() -> None:
    clock = FakeClock()
    ledger = Ledger.from_dict(Ledger(scored=3).to_dict(), clock)
    with ledger.timing("data"):
        clock.now += 2.0
    assert ledger.seconds["data"] == 2.0


@given(st.lists(ledgers, min_size=1, max_size=4))
def test_merge_sums_samples_and_averages_time(parts: list[Ledger]) -> None:
    merged = Ledger.merge(parts)
    num = len(parts)
    counted = ("scored", "trained", "full", "skipped", "measured_steps", "scorer_scored", "scorer_trained")
    for name in counted:
        assert getattr(merged, name) == sum(getattr(one, name) for one in parts)
    assert merged.total_s == pytest.approx(sum(one.total_s for one in parts) / num)
    assert merged.full_steps == pytest.approx(sum(one.full_steps for one in parts) / num)
    for name in SECTIONS:
        assert merged.seconds[name] == pytest.approx(sum(one.seconds[name] for one in parts) / num)
    for name in ("measured_s", "scorer_passes", "scorer_s"):
        assert getattr(merged, name) == pytest.approx(sum(getattr(one, name) for one in parts))
    assert merged.steps == max(one.steps for one in parts)


def test_two_ranks_alike_save_what_one_saves() -> None:
    ledger = warmed_up(scored=8, trained=4)
    ledger.count_step(8, 8, 3.0, is_full_step=True)
    ledger.count_step(8, 8, 1.0, is_full_step=False)
    assert Ledger.merge([ledger, ledger]).saving() == pytest.approx(ledger.saving())


def test_what_scorers_spend_is_part_of_the_cost() -> None:
    ledger = warmed_up(trained=4)
    ledger.count_step(16, 16, 1.0, is_full_step=False)
    assert ledger.saving()["cost"] == pytest.approx(1 - 12 / 48)
    assert ledger.scorers() is None
    ledger.count_scorer(16, 16, 0.5 * 16, 2.0)
    assert ledger.passes == 12 + 8
    assert ledger.saving()["cost"] == pytest.approx(1 - 20 / 48)
    assert ledger.scorers() == {"scored": 16, "trained": 16, "seconds": 2.0, "passes": 8.0}
    shares = [ledger.share(rank, 3) for rank in range(3)]
    assert Ledger.merge(shares).scorers() == pytest.approx(ledger.scorers())
    assert (ledger.scored, ledger.total_s) == (0, 1.0)  # neither is the trainer's


def test_merging_nothing_is_an_empty_ledger() -> None:
    assert Ledger.merge([]) == Ledger()


def test_a_full_run_says_nothing_of_time() -> None:
    ledger = warmed_up()
    for seconds in (1.0, 1.2, 0.9):
        ledger.trained += 4
        ledger.count_step(4, 4, seconds, is_full_step=True)
    assert ledger.measured_steps == 3
    assert ledger.saving() == {"samples": 0.0, "cost": 0.0, "seconds": None}


def test_warm_up_counts_on_neither_side() -> None:
    """Three slow steps, opening included; then 2 full ones and 2 that select, at half the time: saves a quarter."""
    clock = FakeClock()
    ledger = Ledger(clock=clock)
    with ledger.timing_overhead():
        clock.now += 30.0
    for seconds in (50.0, 20.0, 10.0, 2.0, 2.0):
        ledger.trained += 4
        ledger.count_step(4, 4, seconds, is_full_step=True)
    for _ in range(2):
        ledger.trained += 1
        ledger.count_step(4, 4, 1.0, is_full_step=False)
    assert ledger.saving()["seconds"] == pytest.approx(1 - 6.0 / (4 * 2.0))
    assert ledger.total_s == 116.0, "what was spent is all there"
    again = Ledger.from_dict(ledger.to_dict())
    again.trained += 4
    again.count_step(4, 4, 60.0, is_full_step=True)  # the first step of another process
    assert again.saving()["seconds"] == pytest.approx(ledger.saving()["seconds"])
    assert Ledger.merge([ledger, ledger]).saving() == pytest.approx(ledger.saving())
