"""Methods that ignore the loss: everything, b of B, a fresh subset each epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from es_service.selection import engine, methods
from es_service.selection.config import Selection
from es_service.selection.plans import Prospect
from es_service.selection.reductions import agree

MakeProspect = Callable[..., Prospect]
UNIFORM = (methods.full(), methods.random(), methods.random_subset())


@pytest.mark.parametrize("method", UNIFORM, ids=lambda one: one.name)
def test_uniform_methods_weigh_everything_alike_and_keep_the_last_loss(method: methods.Method) -> None:
    loss = np.array([7.0, 0.5], dtype=np.float32)
    new = method.update({"s": np.array([1.0, 5.0], dtype=np.float32)}, loss, {"loss": loss})
    assert {name: values.tolist() for name, values in new.items()} == {"s": [7.0, 0.5], "w": [1.0, 1.0]}
    assert method.initial_score(500) == 1.0
    assert not method.needs_losses


def test_who_selects_and_who_prunes() -> None:
    assert [(method.selects, method.prunes) for method in UNIFORM] == [(False, False), (True, True), (False, True)]
    assert all(method.needs_losses for method in (methods.evolved(), methods.loss(), methods.ema()))


def subset(make_prospect: MakeProspect, epoch: int, seed: int = 0, **columns: object) -> list[int]:
    prospect = make_prospect(**{"w": np.ones(12), **columns}, epoch=epoch, num_kept=5, seed=seed)
    plan = agree([methods.random_subset().plan(prospect)])[0]
    assert plan.scale is None
    ids: list[int] = plan.ids.tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == 5
    return ids


def test_each_id_is_in_a_subset_equally_often_and_each_pair(make_prospect: MakeProspect) -> None:
    kept = np.zeros((4000, 12))
    for epoch in range(4000):
        kept[epoch, subset(make_prospect, epoch)] = 1
    singles = kept.sum(axis=0)
    # Each epoch keeps exactly 5, so counts vary less than a multinomial's: scaled by (n-1)/(n-k) it is χ²(n-1).
    statistic = ((singles - 4000 * 5 / 12) ** 2 / (4000 * 5 / 12)).sum() * 11 / 7
    assert stats.chi2(11).sf(statistic) > 1e-4
    pairs = (kept.T @ kept)[np.triu_indices(12, 1)] / 4000
    expected = 5 / 12 * 4 / 11
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 4000)


def test_a_subset_is_fresh_each_epoch_and_the_same_for_the_same_seed(make_prospect: MakeProspect) -> None:
    epochs = [subset(make_prospect, epoch) for epoch in range(10)]
    assert len({tuple(one) for one in epochs}) == 10
    assert epochs == [subset(make_prospect, epoch) for epoch in range(10)]
    assert epochs != [subset(make_prospect, epoch, seed=1) for epoch in range(10)]


def test_a_subset_goes_by_no_loss_and_by_no_age(make_prospect: MakeProspect) -> None:
    blank = {"visits": np.zeros(12, np.uint32), "last_step": np.full(12, -1, np.int32)}
    heavy = {"w": np.r_[np.full(6, 1e6), np.full(6, 1e-6)]}
    for epoch in range(20):
        assert subset(make_prospect, epoch, **blank) == subset(make_prospect, epoch, **heavy)


def test_a_random_subset_has_as_many_as_prune_ratio_says_and_is_trained_on_whole() -> None:
    selection = Selection(methods.random_subset(), prune_ratio=0.29, anneal=(0, 0.5), ratio=0.25)
    one = engine.Engine(selection, 100)
    assert [agree([one.plan(epoch, 4, list(range(epoch + 1)))])[0].ids.size for epoch in range(4)] == [71, 71, 100, 100]
    assert selection.num_selected(64) == 64
