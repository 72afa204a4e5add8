"""Ordered SGD: the largest losses, and as many of them as the train accuracy leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.named import preset
from es_service.selection.plans import Prospect
from es_service.selection.reductions import agree

MakeProspect = Callable[..., Prospect]


@pytest.mark.parametrize(
    ("accuracy", "share"),
    [
        (0.0, 1.0),
        (0.7999, 1.0),
        (0.8, 1 / 2),
        (0.8999, 1 / 2),
        (0.9, 1 / 4),
        (0.9499, 1 / 4),
        (0.95, 1 / 8),
        (0.9949, 1 / 8),
        (0.995, 1 / 16),
        (1.0, 1 / 16),
    ],
)
def test_the_share_follows_the_train_accuracy(make_prospect: MakeProspect, accuracy: float, share: float) -> None:
    correct = (np.arange(10_000) < round(accuracy * 10_000)).astype(np.float32)
    plan = agree([methods.ordered().plan(make_prospect(correct=correct))])[0]
    assert plan.ratio == share
    assert plan.ids.size == 10_000


def test_only_what_was_predicted_counts_for_the_accuracy(make_prospect: MakeProspect) -> None:
    correct = np.r_[np.full(100, np.nan), np.ones(19), np.zeros(1)].astype(np.float32)
    assert agree([methods.ordered().plan(make_prospect(correct=correct))])[0].ratio == 1 / 8
    assert agree([methods.ordered().plan(make_prospect(correct=correct[:100]))])[0].ratio == 1.0


def test_the_accuracy_is_that_of_the_last_predictions() -> None:
    made = engine.Engine(preset("ordered"), 20)
    ids = np.arange(20, dtype=np.int64)
    for step, right in enumerate((20, 5, 17)):
        seen = {"loss": np.ones(20, dtype=np.float32), "correct": (ids < right).astype(np.float32)}
        made.record(ids, seen, ids, step)
    assert agree([made.plan(3, 9, [0, 1, 2, 3])])[0].ratio == 1 / 2


def test_a_fixed_share_is_the_selection_s(make_prospect: MakeProspect) -> None:
    plan = agree([methods.ordered(adaptive=False).plan(make_prospect(correct=np.ones(10, dtype=np.float32)))])[0]
    assert plan.ratio is None
    assert preset("ordered", adaptive=False, ratio=0.125).num_selected(64) == 8


@given(hnp.arrays(np.float32, 20, elements=st.floats(0, 50, width=32)), st.integers(1, 19))
def test_the_largest_losses_are_taken(losses: NDArray[np.float32], num: int) -> None:
    made = engine.Engine(preset("ordered"), 20)
    ids = np.arange(20, dtype=np.int64)
    draw = made.step(ids, {"loss": losses, "correct": np.ones(20, dtype=np.float32)}, num, 0)
    assert sorted(losses[draw.positions].tolist()) == sorted(losses.tolist())[20 - num :]
    assert draw.scale.tolist() == [1.0] * num  # the mean of the q largest, as published


@pytest.mark.parametrize("bad", [1, "yes", None])
def test_adaptive_is_yes_or_no(bad: object) -> None:
    with pytest.raises(errors.ConfigError, match="adaptive must be true or false"):
        methods.ordered(adaptive=bad)  # type: ignore[arg-type]
