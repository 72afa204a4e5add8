"""auto: the share of an epoch's meta-batches by hand, at its edges, and over shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.engine import Engine
from es_service.selection.idle import why_idle
from es_service.selection.named import preset
from es_service.selection.plans import Plan
from es_service.selection.reductions import agree
from es_service.selection.run import RunConfig
from es_service.selection.shards import Shard

F32 = np.float32


def engines(num: int, shards: int = 1, **settings: Any) -> list[Engine]:
    selection = Selection(methods.auto(**settings), anneal=(0, 0))
    return [Engine(selection, num, Shard(index, shards)) for index in range(shards)]


def observe(of: list[Engine], losses: Any, step: int) -> None:
    losses_n = np.asarray(losses, dtype=F32)
    for engine in of:
        ids = engine.ids()
        engine.record(ids, {"loss": losses_n[ids]}, np.empty(0, dtype=np.int64), step)


def planned(of: list[Engine], epoch: int = 3) -> Plan:
    return agree([engine.plan(epoch, 10, list(range(epoch + 1))) for engine in of])[0]


def decision(of: list[Engine], epoch: int = 3) -> dict[str, Any]:
    found = planned(of, epoch).decision
    assert found is not None
    return dict(found)


def test_the_share_is_the_effective_share_of_the_weights() -> None:
    """Weights 1 and 5 of four samples each: mean 3, mean square 13."""
    of = engines(8, beta1=0.0)
    observe(of, 4 * [1.0] + 4 * [5.0], 0)
    found = decision(of)
    assert (found["reason"], found["ratio"]) == ("weights_even", 1.0)  # 0.69 and what scoring costs
    assert (found["share"], found["progress"]) == (pytest.approx(9 / 13), None)
    assert (found["scoring_cost"], found["cost"]) == (0.35, 1.0)
    assert found["cost_otherwise"] == pytest.approx(9 / 13 + 0.35)
    observe(of, 7 * [0.1] + [9.0], 1)
    found = decision(of)
    weights = np.array(7 * [0.1] + [9.0])
    share = weights.mean() ** 2 / np.mean(weights**2)
    assert found["share"] == pytest.approx(share, rel=1e-6)
    assert (found["reason"], found["ratio"]) == ("weights_concentrate", 0.25)  # 0.14, and never less than a quarter
    low = engines(8, beta1=0.0, least=0.01)
    observe(low, 4 * [1.0] + 4 * [5.0], 0)
    observe(low, 7 * [0.1] + [9.0], 1)
    assert planned(low).ratio == found["share"]


def test_a_least_share_that_costs_as_much_as_everything_selects_nothing() -> None:
    """0.65 and what scoring costs."""
    for least, reason in ((0.6, "weights_concentrate"), (0.65, "weights_even"), (1.0, "weights_even")):
        of = engines(8, beta1=0.0, least=least)
        observe(of, 7 * [0.1] + [9.0], 0)
        assert decision(of)["reason"] == reason


def test_progress_is_the_fall_of_the_losses_below_their_earlier_mean() -> None:
    of = engines(10)
    for step, loss in enumerate((4.0, 2.0, 1.5)):
        observe(of, 10 * [loss], step)
    earlier = (0.9 * 4.0 + 2.0) / 1.9  # of an average that forgets a tenth with each loss
    assert decision(of)["progress"] == pytest.approx(1 - 1.5 / earlier, abs=1e-5)


def test_losses_that_do_not_fall_are_not_selected_by() -> None:
    losses = 9 * [0.1] + [5.0]
    of = engines(10)
    for step in range(5):
        observe(of, losses, step)
    assert decision(of)["reason"] == "losses_stay"
    assert planned(of).ratio == 1.0
    always = engines(10, progress=0.0)
    for step in range(5):
        observe(always, [1.001 * one for one in losses] if step == 0 else losses, step)
    assert decision(always)["progress"] >= 0
    assert decision(always)["reason"] == "weights_concentrate"


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (None, "no_losses"),
        (8 * [2.0], "weights_even"),
        (8 * [0.0], "weights_even"),
        (7 * [0.0] + [1e-30], "weights_concentrate"),
        (7 * [0.0] + [3e38], "weights_concentrate"),
    ],
)
def test_weights_at_their_edges(losses: list[float] | None, reason: str) -> None:
    of = engines(8, beta1=0.0)
    if losses is not None:
        observe(of, losses, 0)
    found = decision(of)
    assert found["reason"] == reason
    assert found["share"] is None or found["share"] == pytest.approx(1.0 if reason == "weights_even" else 0.125)
    assert planned(of).ids.tolist() == list(range(8))


@given(st.lists(st.floats(0, 100, width=32), min_size=8, max_size=40), st.integers(2, 4))
def test_shards_decide_as_one_table_does(losses: list[float], shards: int) -> None:
    whole, parts = engines(len(losses)), engines(len(losses), shards)
    for step in range(3):
        for of in (whole, parts):
            observe(of, np.asarray(losses) / (step + 1), step)
    assert decision(parts) == decision(whole)


@pytest.mark.parametrize("beta2", [0.0, 1.0])
def test_averages_that_hold_no_earlier_losses_say_nothing_of_progress(beta2: float) -> None:
    of = engines(8, beta1=0.0, beta2=beta2)
    for step in range(3):
        observe(of, np.arange(8), step)
    assert decision(of)["progress"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"least": 0.0}, "least must lie in"),
        ({"least": 1.1}, "least must lie in"),
        ({"progress": -0.1}, "progress must lie in"),
        ({"beta1": 2.0}, "beta1 must lie in"),
    ],
)
def test_settings_outside_their_domain(settings: dict[str, float], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        methods.auto(**settings)


def test_the_preset_has_no_annealing() -> None:
    selection = preset("auto", least=0.5)
    assert selection.anneal == (0.0, 0.0)
    assert selection.method == methods.auto(least=0.5)
    assert Selection.from_dict(selection.to_dict()) == selection


def test_what_pruning_would_leave_out_is_not_ignored_but_refused() -> None:
    """auto plans all samples, and a schedule that counts steps must count theirs."""
    with pytest.raises(errors.ConfigError, match=r"'auto' itself decides what an epoch trains on, so prune_ratio=0.3"):
        preset("auto", prune_ratio=0.3)


def test_a_score_of_gradient_norms_says_nothing_of_earlier_losses() -> None:
    """Norms of ten times the losses, and both stay: no progress, though the losses are below the mean of the norms."""
    engine, losses_n = Engine(preset("auto", signal="grad_norm"), 10), np.array(9 * [0.1] + [5.0], F32)
    for step in range(5):
        engine.record(engine.ids(), {"loss": losses_n, "grad_norm": 10 * losses_n}, np.empty(0, np.int64), step)
    assert decision([engine])["progress"] is None


def test_the_other_choice_costs_what_auto_would_have_selected() -> None:
    """Weights ask for a tenth, auto selects a quarter at least; losses that stay let it train on everything."""
    of = engines(10, beta1=0.0)
    for step in range(5):
        observe(of, 9 * [0.0] + [5.0], step)
    found = decision(of)
    assert (found["reason"], found["share"]) == ("losses_stay", pytest.approx(0.1))
    assert found["cost_otherwise"] == pytest.approx(0.25 + 0.35)


def test_meta_batches_of_one_sample_leave_auto_nothing_to_decide() -> None:
    config = RunConfig(selection=preset("auto"), num_samples=10, num_epochs=4, batch_size=1)
    assert "is all of a meta-batch" in (why_idle(config) or "")
