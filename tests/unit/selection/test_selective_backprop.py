"""Selective Backprop: CDF^β over a window, and the published probability; Composer's percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.config import Selection
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import Caller, RunConfig, Share

F32 = NDArray[np.float32]

windows = hnp.arrays(np.float32, st.integers(0, 30), elements=st.just(np.float32(np.nan)) | st.floats(0, 9, width=32))
batches = hnp.arrays(
    np.float32, st.integers(1, 12), elements=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 9, width=32)
)


def cdf(loss: float, window: list[float]) -> float:
    """The share of a window that is no larger, counted one by one."""
    return sum(other <= loss for other in window) / len(window)


@given(batches, windows, st.floats(0, 8))
def test_a_weight_is_the_power_of_the_rank_among_the_last_losses(losses_B: F32, recent_R: F32, beta: float) -> None:
    got = methods.selective_backprop(beta).weigh(losses_B, recent_R)
    window = [one for one in [*recent_R.tolist(), *losses_B.tolist()] if not math.isnan(one)]
    assert got.tolist() == pytest.approx([cdf(loss, window) ** beta for loss in losses_B.tolist()])


def test_beta_of_zero_weighs_all_alike() -> None:
    losses = np.array([0.0, 3.0, 1.0], dtype=np.float32)
    assert methods.selective_backprop(0.0).weigh(losses, losses[:0]).tolist() == [1.0] * 3


def inclusion(beta: float, ratio: float, num: int, rounds: int) -> NDArray[np.float64]:
    """How often each of B = num ranks is taken, from the lowest loss to the highest."""
    selection = Selection(methods.selective_backprop(beta), ratio=ratio, draw="systematic", anneal=(0, 0))
    losses = np.arange(1, num + 1, dtype=np.float32)
    counts = np.zeros(num)
    for step in range(rounds):
        made = engine.choose(selection, np.arange(num), losses, selection.num_selected(num), step)
        counts[made.positions] += 1
    return counts / rounds


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_at_ratio_one_over_one_plus_beta_the_probability_is_the_published_one(beta: float) -> None:
    num, rounds = 64, 3000
    ranks = np.arange(1, num + 1) / num
    taken = inclusion(beta, 1 / (1 + beta), num, rounds)
    # Σ(rank/B)^β is a little above B/(1+β), for ranks are discrete: by that factor, near 1, all are scaled.
    expected = ranks**beta * num / (1 + beta) / (ranks**beta).sum()
    assert np.abs(expected - ranks**beta).max() <= (1 + beta) / (2 * num)
    noise = 5 * np.sqrt(np.maximum(expected * (1 - expected), 1e-3) / rounds)
    assert (np.abs(taken - expected) <= noise).all()
    assert taken.sum() == pytest.approx(num / (1 + beta))


def test_the_window_reaches_over_the_rank_s_batches_of_the_epoch() -> None:
    """Three batches in, R = 10 of batches of 4: these, and the last 6 before them."""
    selection = preset("selective_backprop", history=10, beta=2.0)
    keeper = LocalRun(RunConfig(selection=selection, num_samples=24, num_epochs=2, batch_size=4))
    caller = Caller(0, "a")
    keeper.join(caller, 1)
    for epoch in range(2):
        share = keeper.open_epoch(caller, epoch)
        assert isinstance(share, Share)
        losses = np.random.default_rng(epoch).exponential(size=24).astype(np.float32)
        for step in range(6):
            ids = share.ids[4 * step : 4 * step + 4]
            run_step = share.first_step + step
            draw = keeper.step(caller, ids, {"loss": losses[ids]}, 2, run_step)
            before = losses[share.ids[max(0, 4 * step - 6) : 4 * step]]
            expected = engine.choose(selection, ids, losses[ids], 2, run_step, before)
            assert draw.positions.tolist() == expected.positions.tolist()
        keeper.close_epoch(caller, epoch)


def test_a_window_no_longer_than_the_batch_looks_back_at_nothing() -> None:
    made = LocalRun(
        RunConfig(selection=preset("selective_backprop", history=4), num_samples=24, num_epochs=1, batch_size=4)
    )
    caller = Caller(0, "a")
    made.join(caller, 1)
    share = made.open_epoch(caller, 0)
    assert isinstance(share, Share)
    for step in range(2):
        ids = share.ids[4 * step : 4 * step + 4]
        losses = np.full(4, 10.0**-step, dtype=np.float32) * np.arange(1, 5, dtype=np.float32)
        draw = made.step(caller, ids, {"loss": losses}, 2, step)
        assert draw.positions.tolist() == engine.choose(made.config.selection, ids, losses, 2, step).positions.tolist()


def test_composer_takes_percentile_ranks_of_the_batch_to_one_over_keep_minus_one() -> None:
    selection = preset("selective_backprop_composer")
    losses = np.array([0.3, 7.0, 0.1, 2.0], dtype=np.float32)
    assert selection.method.weigh(losses, losses[:0]).tolist() == [0.5, 1.0, 0.25, 0.75]
    assert selection.method.settings()["beta"] == 1 / selection.ratio - 1
    assert (selection.ratio, selection.interrupt, selection.method.window) == (0.5, 2, 0)
    selecting = [not selection.is_annealing(epoch, 10) for epoch in range(10)]
    assert selecting == [False] * 5 + [True] * 4 + [False]  # start 0.5, end 0.9


@pytest.mark.parametrize(("setting", "bad"), [("beta", -1), ("beta", float("nan")), ("history", -1), ("history", 1.5)])
def test_settings_outside_their_domain_are_refused(setting: str, bad: float) -> None:
    with pytest.raises(errors.ConfigError, match=f"{setting} must"):
        methods.selective_backprop(**{setting: bad})  # type: ignore[arg-type]
