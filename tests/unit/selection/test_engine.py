"""The engine: what a draw goes by. Weight transforms, signals, and draws in epochs that re-use losses."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, engine, methods
from es_service.selection.config import Selection
from es_service.selection.engine import choose
from es_service.selection.named import preset

F32 = NDArray[np.float32]
Law = dict[tuple[int, ...], float]
RaceLaw = Callable[[Sequence[float], int], Law]
PValue = Callable[[Mapping[tuple[int, ...], int], Law], float]

IDS = np.arange(10, dtype=np.int64)
weights_of_ten = hnp.arrays(np.float32, 10, elements=st.floats(0.125, 100, width=32))


def selection(draw: str = "race", **settings: object) -> Selection:
    return Selection(methods.loss(), draw=draw, anneal=(0, 0), **settings)  # type: ignore[arg-type]


def same(one: engine.Draw, other: engine.Draw) -> bool:
    return one.positions.tolist() == other.positions.tolist() and one.scale.tobytes() == other.scale.tobytes()


# -- weight transforms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", draws.DRAWS)
@given(weights=weights_of_ten, step=st.integers(0, 1000))
def test_power_one_and_cap_one_change_nothing(draw: str, weights: F32, step: int) -> None:
    reweight = "none" if draw == "topk" else "unbiased"
    plain = selection(draw, reweight=reweight)
    for untouched in (selection(draw, power=1, reweight=reweight), selection(draw, cap=1, reweight=reweight)):
        assert same(choose(untouched, IDS, weights, 4, step), choose(plain, IDS, weights, 4, step))


@given(weights_of_ten, st.integers(0, 1000), st.floats(0.25, 3))
def test_power_draws_by_the_powers_of_the_weights(weights: F32, step: int, power: float) -> None:
    by_hand = (weights.astype(np.float64) ** power).astype(np.float32)
    got = choose(selection(power=power), IDS, weights, 4, step).positions.tolist()
    assert got == choose(selection(), IDS, by_hand, 4, step).positions.tolist()


@given(weights_of_ten, st.integers(0, 1000), st.integers(1, 100))
def test_cap_draws_by_weights_of_which_none_is_above_the_quantile(weights: F32, step: int, percent: int) -> None:
    ascending = sorted(weights.tolist())
    place = percent / 100 * 9  # linear between the order statistics
    low = int(place)
    most = ascending[low] + (place - low) * (ascending[min(low + 1, 9)] - ascending[low])
    by_hand = np.array([min(one, most) for one in weights.tolist()], dtype=np.float32)
    got = choose(selection(cap=percent / 100), IDS, weights, 4, step).positions.tolist()
    assert got == choose(selection(), IDS, by_hand, 4, step).positions.tolist()


def test_power_zero_is_the_uniform_law(race_law: RaceLaw, p_value: PValue) -> None:
    even = selection(power=0)
    weights = np.array([0, 1e-6, 1, 1e6, 3], dtype=np.float32)
    counts = collections.Counter(
        tuple(choose(even, IDS[:5], weights, 2, step).positions.tolist()) for step in range(3000)
    )
    assert p_value(counts, race_law([1.0] * 5, 2)) > 1e-4


def test_the_cap_comes_before_the_power(race_law: RaceLaw, p_value: PValue) -> None:
    both = selection(cap=0.5, power=2)
    weights = np.array([1, 2, 3, 50, 900], dtype=np.float32)
    counts = collections.Counter(
        tuple(choose(both, IDS[:5], weights, 2, step).positions.tolist()) for step in range(4000)
    )
    assert p_value(counts, race_law([1, 4, 9, 9, 9], 2)) > 1e-4


@pytest.mark.parametrize("power", [0.5, 8.0, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
def test_no_power_of_any_loss_that_is_let_in_overflows(power: float, scale: float) -> None:
    """Losses up to 1e18 are accepted, and so is every power: their powers may not end a run after a day."""
    weights = (scale * np.array([0, 0.25, 0.5, 0.75, 1], dtype=np.float64)).astype(np.float32)
    drawn = [choose(selection(power=power), IDS[:5], weights, 2, step).positions.tolist() for step in range(400)]
    heaviest = sum(4 in one for one in drawn)
    assert heaviest > (390 if power >= 8 else 200)
    assert all(0 not in one for one in drawn)


def test_transforms_keep_the_estimate_unbiased() -> None:
    """reweight goes by the probabilities of the transformed weights."""
    unbiased = selection(cap=0.75, power=0.5, reweight="unbiased")
    losses = np.random.default_rng(0).exponential(size=10).astype(np.float32) ** 2
    estimates = []
    for step in range(4000):
        draw = choose(unbiased, IDS, losses, 3, step)
        estimates.append(float(np.mean(draw.scale * losses[draw.positions])))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(losses.mean(), abs=4 * error)


@pytest.mark.parametrize(
    ("setting", "bad"), [("power", -0.5), ("power", float("inf")), ("power", "half"), ("cap", 0.0), ("cap", 1.5)]
)
def test_transforms_outside_their_domain_are_refused(setting: str, bad: object) -> None:
    with pytest.raises(errors.ConfigError, match=f"{setting} must"):
        selection(**{setting: bad})


# -- signals --------------------------------------------------------------------------------------------------------


def test_a_method_goes_by_the_signal_asked_for_and_the_table_keeps_the_loss() -> None:
    made = engine.Engine(preset("loss", signal="grad_norm"), 4)
    seen = {"loss": np.array([1, 2], dtype=np.float32), "grad_norm": np.array([0.5, 0.25], dtype=np.float32)}
    made.record(np.array([0, 3]), seen, np.array([0]), 7)
    assert made.table.column("w").tolist() == [0.5, 0.25, 0.25, 0.25]
    assert made.table.column("loss_mean").tolist() == [1.0, 0.0, 0.0, 2.0]
    assert preset("loss", signal="grad_norm").signals == ("loss", "grad_norm")


def test_further_columns_hold_the_last_signal() -> None:
    made = engine.Engine(preset("kakurenbo"), 3)
    for step, value in enumerate((0.5, 0.75)):
        seen = {name: np.array([value], dtype=np.float32) for name in ("loss", "correct", "confidence")}
        made.record(np.array([1]), seen, np.array([0]), step)
    assert made.table.column("confidence").tolist()[1] == 0.75
    assert np.isnan(made.table.column("confidence")[[0, 2]]).all()
    assert made.table.nbytes == 3 * 40


# -- draws by what is known -----------------------------------------------------------------------------------------


@given(weights_of_ten, st.sets(st.integers(0, 9)), st.integers(0, 500))
def test_a_blind_draw_goes_by_the_stored_weights_and_the_most_for_the_never_observed(
    losses: F32, observed: set[int], step: int
) -> None:
    stale = preset("loss", anneal=(0, 0), score_every=2)
    made = engine.Engine(stale, 10)
    ids = np.array(sorted(observed), dtype=np.int64)
    if ids.size:
        made.record(ids, {"loss": losses[ids]}, ids[:0], 0)
    before = made.table.copy_records().tobytes()
    most = max((losses[one] for one in observed), default=np.float32(1))
    by_hand = np.array([losses[one] if one in observed else most for one in range(10)], dtype=np.float32)
    draw = made.draw(IDS, 3, step)
    assert same(draw, choose(stale, IDS, by_hand, 3, step))
    assert made.table.copy_records().tobytes() == before


def test_methods_that_need_no_losses_draw_blind_uniformly() -> None:
    made = engine.Engine(preset("random", anneal=(0, 0)), 10)
    made.record(IDS, {"loss": np.arange(10, dtype=np.float32)}, IDS[:0], 0)
    counts = np.zeros(10)
    for step in range(2000):
        counts[made.draw(IDS, 3, step).positions] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 5 * np.sqrt(0.21 / 2000)


def test_a_lease_has_what_a_rank_needs_and_no_more() -> None:
    columns = {
        name: engine.leased_columns(preset(name, **settings))
        for name, settings in (
            ("es", {}),
            ("loss", {"score_every": 2}),
            ("random", {}),
            ("selective_backprop", {}),
            ("selective_backprop_composer", {}),
            ("ucb", {}),
            ("infobatch", {}),
        )
    }
    assert columns == {
        "es": ("s",),
        "loss": ("s", "w", "last_loss"),
        "random": ("s",),
        "selective_backprop": ("w", "last_loss"),
        "selective_backprop_composer": (),
        "ucb": ("s", "variance", "visits"),
        "infobatch": (),
    }
