"""UCB and ε-greedy: the recurrences against float64, the kept set against sorting, and who is explored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.config import Selection
from es_service.selection.plans import Prospect
from es_service.selection.reductions import agree

MakeProspect = Callable[..., Prospect]

unit = st.floats(0, 1)
sequences = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=30)


def observed(method: methods.Method, losses: list[float]) -> engine.Engine:
    """An engine whose sample 0 had these losses, one after the other."""
    made = engine.Engine(Selection(method, anneal=(0, 0)), 2)
    for step, loss in enumerate(losses):
        made.record(np.array([0]), {"loss": np.array([loss], dtype=np.float32)}, np.array([0]), step)
    return made


@given(sequences, unit, st.floats(0, 10))
def test_ucb_is_a_moving_mean_and_a_moving_variance(losses: list[float], beta: float, c: float) -> None:
    mean, variance = losses[0], 0.0
    for loss in losses[1:]:
        mean = beta * mean + (1 - beta) * loss
        variance = beta * variance + (1 - beta) * (loss - mean) ** 2
    table = observed(methods.ucb(c, beta=beta), losses).table
    assert float(table.column("s")[0]) == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert float(table.column("variance")[0]) == pytest.approx(variance, rel=1e-3, abs=1e-3)
    assert float(table.column("w")[0]) == pytest.approx(mean + c * variance, rel=1e-3, abs=1e-2)
    assert [float(table.column(name)[1]) for name in ("s", "w", "variance")] == [0.0] * 3


@given(sequences, unit)
def test_epsilon_greedy_goes_by_the_moving_mean(losses: list[float], beta: float) -> None:
    mean = losses[0]
    for loss in losses[1:]:
        mean = beta * mean + (1 - beta) * loss
    table = observed(methods.epsilon_greedy(beta=beta), losses).table
    assert float(table.column("w")[0]) == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert table.column("s").tolist() == table.column("w").tolist()


@given(st.permutations(range(15)), st.integers(1, 15))
def test_the_top_is_kept(make_prospect: MakeProspect, order: list[int], num: int) -> None:
    prospect = make_prospect(w=np.array(order, dtype=np.float32), num_kept=num)
    expected = sorted(sorted(range(15), key=lambda i: -order[i])[:num])
    for method in (methods.ucb(), methods.epsilon_greedy(0.0)):
        assert agree([method.plan(prospect)])[0].ids.tolist() == expected


@pytest.mark.parametrize("method", [methods.ucb(), methods.epsilon_greedy(0.3)], ids=lambda one: one.name)
def test_never_observed_and_overdue_come_first(make_prospect: MakeProspect, method: methods.Method) -> None:
    visits = np.r_[0, 0, np.ones(18)].astype(np.uint32)
    last_step = np.r_[-1, -1, 0, 0, 0, np.full(15, 9)].astype(np.int32)
    prospect = make_prospect(
        w=np.arange(20, dtype=np.float32), visits=visits, last_step=last_step, num_kept=8, max_age=2, epoch=6
    )
    kept = agree([method.plan(prospect)])[0].ids.tolist()
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert len(kept) == 8


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_a_share_of_epsilon_is_drawn_from_the_rest_uniformly(make_prospect: MakeProspect, epsilon: float) -> None:
    num, size, rounds = 8, 20, 2000
    greedy = num - round(epsilon * num)
    counts = np.zeros(size)
    for seed in range(rounds):
        prospect = make_prospect(w=np.arange(size, 0, -1, dtype=np.float32), num_kept=num, seed=seed)
        kept = agree([methods.epsilon_greedy(epsilon).plan(prospect)])[0].ids
        assert kept.size == num
        counts[kept] += 1
    assert counts[:greedy].tolist() == [rounds] * greedy
    share = (num - greedy) / (size - greedy)
    assert np.abs(counts[greedy:] / rounds - share).max() <= 5 * np.sqrt(share * (1 - share) / rounds)


@pytest.mark.parametrize("method", [methods.ucb(every=3), methods.epsilon_greedy(every=3)], ids=lambda one: one.name)
def test_a_choice_holds_for_as_many_epochs_as_asked_for(method: methods.Method) -> None:
    """Epoch 0 anneals; 1, 4 and 7 choose; in between the same set is trained on."""
    selection = Selection(method, prune_ratio=0.5, anneal=(0.1, 0), max_age=None)
    made, starts, kept = engine.Engine(selection, 20), [0], []
    rng = np.random.default_rng(3)
    for epoch in range(10):
        ids = agree([made.plan(epoch, 10, starts)])[0].ids
        kept.append(ids.tolist())
        for step in range(2):
            part = ids[step::2]
            losses = rng.exponential(size=part.size).astype(np.float32)
            made.record(part, {"loss": losses}, np.arange(part.size), starts[-1] + step)
        starts.append(starts[-1] + 2)
    assert len(kept[0]) == 20
    assert kept[1] == kept[2] == kept[3]
    assert kept[4] == kept[5] == kept[6]
    assert kept[7] == kept[8] == kept[9]
    assert {len(ids) for ids in kept[1:]} == {10}


@pytest.mark.parametrize(
    "settings",
    [{"c": -1.0}, {"c": float("inf")}, {"beta": 1.5}, {"every": 0}, {"every": 1.5}, {"c": "much"}],
    ids=str,
)
def test_ucb_refuses_what_it_cannot_use(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=f"{next(iter(settings))} must"):
        methods.ucb(**settings)


@pytest.mark.parametrize("settings", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"beta": float("nan")}], ids=str)
def test_epsilon_greedy_refuses_what_it_cannot_use(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=f"{next(iter(settings))} must"):
        methods.epsilon_greedy(**settings)


def test_the_hardest_stay_where_the_overdue_take_most_places(make_prospect: MakeProspect) -> None:
    last_step = np.r_[np.zeros(30), np.full(70, 9)].astype(np.int32)  # the first 30 are overdue
    weights = np.r_[np.zeros(30), np.arange(70)].astype(np.float32)
    prospect = make_prospect(w=weights, last_step=last_step, num_kept=70, max_age=2, epoch=6)
    for method in (methods.ucb(), methods.epsilon_greedy(0.1)):
        kept = set(agree([method.plan(prospect)])[0].ids.tolist())
        assert kept == {*range(30), *range(60, 100)}


def test_without_any_observation_nothing_is_left_out_between_two_choices(make_prospect: MakeProspect) -> None:
    blank = {"visits": np.zeros(9, dtype=np.uint32), "last_step": np.full(9, -1, dtype=np.int32)}
    prospect = make_prospect(**blank, num_kept=5, epoch=1, prune_unobserved=True, w=np.zeros(9, dtype=np.float32))
    assert agree([methods.ucb(every=2).plan(prospect)])[0].ids.tolist() == list(range(9))
