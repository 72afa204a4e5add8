"""InfoBatch: unbiased, only well-learned samples are left out, and annealing restores the whole set at weight 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import agree
from es_service.selection.run import Caller, RunConfig, Share

F32 = NDArray[np.float32]
MakeProspect = Callable[..., Prospect]

losses = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 100, width=32))
percents = st.integers(0, 99)


def plan(make_prospect: MakeProspect, s_n: F32, r: float, seed: int = 0) -> tuple[Plan, NDArray[np.float64]]:
    """The plan, and the scale of all n: 0 for those left out."""
    made = agree([methods.infobatch(r).plan(make_prospect(s=s_n, seed=seed))])[0]
    assert made.scale is not None
    assert made.scale.dtype == np.float32
    assert made.ids.tolist() == sorted(set(made.ids.tolist()))
    scale_n = np.zeros(s_n.size)
    scale_n[made.ids] = made.scale
    return made, scale_n


@given(losses, percents, st.integers(0, 99))
def test_the_weights_of_a_plan_sum_to_n_for_any_losses_and_r(
    make_prospect: MakeProspect, s_n: F32, percent: int, seed: int
) -> None:
    _, scale_n = plan(make_prospect, s_n, percent / 100, seed)
    assert scale_n.sum() == pytest.approx(s_n.size, rel=1e-6)


@given(losses, percents, st.integers(0, 99))
def test_only_the_well_learned_are_left_out_and_only_they_weigh_more(
    make_prospect: MakeProspect, s_n: F32, percent: int, seed: int
) -> None:
    made, scale_n = plan(make_prospect, s_n, percent / 100, seed)
    well_learned = s_n < s_n.mean(dtype=np.float64)
    num, num_out = int(well_learned.sum()), math.floor(Fraction(percent, 100) * int(well_learned.sum()))
    assert scale_n[~well_learned].tolist() == [1.0] * (s_n.size - num)
    assert made.ids.size == s_n.size - num_out
    assert set(scale_n[well_learned & (scale_n > 0)].tolist()) <= {float(np.float32(num / max(num - num_out, 1)))}


@given(losses)
def test_r_of_zero_keeps_all_at_weight_one(make_prospect: MakeProspect, s_n: F32) -> None:
    _, scale_n = plan(make_prospect, s_n, 0.0)
    assert scale_n.tolist() == [1.0] * s_n.size


def test_the_weight_is_the_published_one_where_r_times_m_is_whole(make_prospect: MakeProspect) -> None:
    _, scale_n = plan(make_prospect, np.r_[np.zeros(20), np.ones(5)].astype(np.float32), 0.75)
    assert sorted(set(scale_n.tolist())) == [0.0, 1.0, 4.0]


def test_equal_losses_are_none_of_them_below_their_mean(make_prospect: MakeProspect) -> None:
    _, scale_n = plan(make_prospect, np.full(1000, 0.1, dtype=np.float32), 0.5)
    assert scale_n.tolist() == [1.0] * 1000


def test_a_sum_over_a_plan_estimates_the_sum_over_the_set(make_prospect: MakeProspect) -> None:
    """E Σ scale·x = Σ x for any x: what the model would compute, gradients too."""
    rng = np.random.default_rng(1)
    s_n, x_n = rng.exponential(size=40).astype(np.float32), rng.normal(size=40) * 10
    sums = np.array([plan(make_prospect, s_n, 0.4, seed)[1] @ x_n for seed in range(3000)])
    assert sums.mean() == pytest.approx(x_n.sum(), abs=4 * sums.std() / np.sqrt(3000))
    assert sums.std() > 1.0


def test_every_well_learned_sample_is_left_out_equally_often(make_prospect: MakeProspect) -> None:
    s_n = np.r_[np.linspace(0, 0.4, 10), np.full(10, 2.0)].astype(np.float32)
    out = np.mean([plan(make_prospect, s_n, 0.5, seed)[1] == 0 for seed in range(2000)], axis=0)
    assert np.abs(out[:10] - 0.5).max() < 5 * np.sqrt(0.25 / 2000)
    assert out[10:].tolist() == [0.0] * 10


@pytest.mark.parametrize("num_epochs", range(4, 41))
def test_annealing_restores_weight_one_for_every_number_of_epochs(num_epochs: int) -> None:
    """Also where δ·E = 0.875·E is no integer, where the published code forgets to reset its weights."""
    made = engine.Engine(preset("infobatch", anneal=(0.0, 0.125), r=0.5), 30)
    ids = np.arange(30, dtype=np.int64)
    made.record(ids, {"loss": (1.0 + ids % 7).astype(np.float32)}, ids, 0)
    full_from = math.floor(Fraction(7, 8) * num_epochs)
    for epoch in range(num_epochs):
        opened = agree([made.plan(epoch, num_epochs, [0] * (epoch + 1))])[0]
        if epoch >= full_from:
            assert opened.ids.tolist() == ids.tolist()
            assert opened.scale is None
        else:
            assert opened.ids.size < 30
            assert opened.scale is not None
            assert opened.scale.max() > 1.0
    assert full_from < num_epochs


def test_each_rank_gets_the_weights_of_its_own_ids() -> None:
    config = RunConfig(selection=preset("infobatch", anneal=(0, 0)), num_samples=31, num_epochs=3, batch_size=4)
    keeper = LocalRun(config)
    callers = [Caller(rank, "a") for rank in range(3)]
    for caller in callers:
        keeper.join(caller, 3)
    ids = np.arange(31, dtype=np.int64)
    keeper.engine.record(ids, {"loss": (ids % 5).astype(np.float32)}, ids, 0)
    shares = [keeper.open_epoch(caller, 0) for caller in callers]
    for share in shares:
        assert isinstance(share, Share)
        assert share.scale is not None
        assert ((share.scale > 1) == (share.ids % 5 < 2)).all()
        assert share.scale.size == share.ids.size


def test_before_anything_was_seen_nothing_is_left_out() -> None:
    [made] = agree([engine.Engine(preset("infobatch", anneal=(0, 0)), 9).plan(0, 4, [0])])
    assert made.ids.size == 9
    assert set(made.scale.tolist() if made.scale is not None else [1.0]) == {1.0}


@pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan"), "half", True])
def test_r_is_a_share_below_one(bad: object) -> None:
    with pytest.raises(errors.ConfigError, match="r must"):
        methods.infobatch(bad)  # type: ignore[arg-type]
