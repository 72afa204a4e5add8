"""KAKURENBO: who is hidden, how many at which time, and what the learning rate makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.named import preset
from es_service.selection.plans import Prospect
from es_service.selection.reductions import agree

F32 = NDArray[np.float32]
MakeProspect = Callable[..., Prospect]


def columns(seed: int, size: int) -> dict[str, NDArray[np.generic]]:
    """A table whose rows were seen, but for some that were not: with NaN where nothing is known."""
    rng = np.random.default_rng(seed)
    visits = rng.integers(0, 4, size).astype(np.uint32)
    unseen = visits == 0
    s_n, correct, confidence = rng.exponential(size=size), rng.random(size) < 0.8, rng.random(size)
    return {
        "visits": visits,
        "s": np.where(unseen, 0.0, s_n).astype(np.float32),
        "correct": np.where(unseen, np.nan, correct).astype(np.float32),
        "confidence": np.where(unseen, np.nan, confidence).astype(np.float32),
    }


@given(st.integers(0, 999), st.integers(2, 80), st.integers(0, 9), st.integers(0, 99), st.floats(0, 1))
def test_hidden_are_those_of_the_lowest_losses_that_are_right_and_certain(
    make_prospect: MakeProspect, seed: int, size: int, epoch: int, percent: int, threshold: float
) -> None:
    table = columns(seed, size)
    method = methods.kakurenbo(percent / 100, threshold=threshold)
    plan = agree([method.plan(make_prospect(**table, epoch=epoch, num_epochs=10))])[0]
    factor = Fraction([10, 10, 10, 8, 8, 8, 6, 6, 4, 4][epoch], 10)
    num_easy = math.floor(factor * Fraction(percent, 100) * size)
    by_loss = sorted((i for i in range(size) if table["visits"][i]), key=lambda i: (table["s"][i], i))
    expected = {i for i in by_loss[:num_easy] if table["correct"][i] == 1 and table["confidence"][i] >= threshold}
    assert set(plan.hidden.tolist()) == expected
    assert plan.ids.tolist() == [i for i in range(size) if i not in expected]
    assert plan.learning_rate_factor == pytest.approx(1 / (1 - len(expected) / size))
    assert plan.scale is None
    assert plan.ratio is None


@pytest.mark.parametrize("num_epochs", range(1, 41))
def test_the_fraction_falls_at_thirty_sixty_and_eighty_percent(make_prospect: MakeProspect, num_epochs: int) -> None:
    ones = np.ones(1000, dtype=np.float32)
    for epoch in range(num_epochs):
        prospect = make_prospect(s=ones, correct=ones, confidence=ones, epoch=epoch, num_epochs=num_epochs)
        hidden = (
            1000 - agree([methods.kakurenbo(0.3, threshold=1.0).plan(prospect)])[0].ids.size
        )  # as certain as asked for
        done = Fraction(epoch, num_epochs)
        stage = sum(done >= Fraction(mark, 10) for mark in (3, 6, 8))
        assert hidden == (300, 240, 180, 120)[stage]


def test_the_last_planned_epoch_hides_but_asks_for_no_refresh(make_prospect: MakeProspect) -> None:
    ones = np.ones(10, dtype=np.float32)
    plan = agree([methods.kakurenbo().plan(make_prospect(s=ones, correct=ones, confidence=ones, is_last=True))])[0]
    assert plan.hidden.size == 0
    assert plan.ids.size == 7
    assert plan.learning_rate_factor == pytest.approx(10 / 7)


def test_what_was_never_observed_is_never_hidden() -> None:
    made = engine.Engine(preset("kakurenbo", fraction=0.9, threshold=0.0), 12)
    ids = np.arange(6, dtype=np.int64)
    ones = np.ones(6, dtype=np.float32)
    made.record(ids, {"loss": 9 * ones, "correct": ones, "confidence": ones}, ids, 0)
    plan = agree([made.plan(1, 10, [0, 1])])[0]
    assert plan.hidden.tolist() == ids.tolist()  # 10 might be, 6 are known


def test_a_refresh_moves_back_what_the_model_forgot_and_an_epoch_without_one_does_not() -> None:
    made = engine.Engine(preset("kakurenbo", fraction=0.5), 8)
    ids, ones = np.arange(8, dtype=np.int64), np.ones(8, dtype=np.float32)
    made.record(ids, {"loss": 1.0 + ids.astype(np.float32), "correct": ones, "confidence": ones}, ids, 0)
    assert agree([made.plan(1, 10, [0, 1])])[0].hidden.tolist() == [0, 1, 2, 3]
    assert agree([made.plan(2, 10, [0, 1, 2])])[0].hidden.tolist() == [0, 1, 2, 3]
    again = np.array([0, 1, 2])
    now = {"loss": [0.1, 9.0, 0.1], "correct": [1, 1, 0], "confidence": [0.69, 1, 1]}
    made.record(again, {name: np.array(values, dtype=np.float32) for name, values in now.items()}, ids[:0], 2)
    assert agree([made.plan(3, 100, [0, 1, 2, 3])])[0].hidden.tolist() == [3, 4]  # 0 uncertain, 1 hard, 2 wrong
    assert made.table.column("confidence").tolist()[:4] == [np.float32(0.69), 1, 1, 1]


@pytest.mark.parametrize(
    ("setting", "bad"), [("fraction", 1.0), ("fraction", -0.1), ("threshold", 1.1), ("threshold", float("nan"))]
)
def test_shares_outside_their_domain_are_refused(setting: str, bad: float) -> None:
    with pytest.raises(errors.ConfigError, match=f"{setting} must lie in"):
        methods.kakurenbo(**{setting: bad})
