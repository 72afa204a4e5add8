"""The guard: selection that does not pay is stopped, and looked at again; the figures that decide it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service import errors
from es_service.actors import plan_codec
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.ledger import Ledger
from es_service.selection.decisions import REASONS, filled, in_words
from es_service.selection.engine import Engine
from es_service.selection.guard import guarded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.past import BEGINNING, Past
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import agree
from es_service.selection.run import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::es_service.errors.SelectionStoppedWarning")
MakeProspect = Callable[..., Prospect]
SLOW = Past(time_saved=-0.1)
EVEN, STEEP = np.ones(100, np.float32), (np.arange(100) % 20 == 0).astype(np.float32) * 9 + np.float32(0.1)


def plan(prospect: Prospect, past: Past = BEGINNING, *, ratio: float = 0.25, power: float | None = 1.0) -> Plan:
    [found] = agree([guarded(Plan(ids=prospect.ids), prospect, past, ratio, power)])
    return found


@pytest.fixture
def steep(make_prospect: MakeProspect) -> Callable[..., Prospect]:
    """A prospect in which a few samples have nearly all loss, and draws by it."""
    return lambda **given: make_prospect(**{"w": STEEP, "last_loss": STEEP, **given})


def test_a_variance_worse_than_uniform_at_equal_cost_stops_selection(
    make_prospect: MakeProspect, steep: Callable[..., Prospect]
) -> None:
    """Draws by the loss itself have V = mean(l)²/mean(l²), and pay below q/(q + c)."""
    assert plan(steep()).ratio is None
    even = plan(make_prospect(w=EVEN, last_loss=EVEN))
    assert (even.ratio, even.decision["reason"]) == (1.0, "stopped_variance")  # type: ignore[index]
    for share in (0.40, 0.45):  # of the loss: two kinds of samples, so that V is this share of uniform's
        losses = np.where(np.arange(100) < 100 * share, np.float32(1), np.float32(0))
        found = plan(make_prospect(w=losses, last_loss=losses, scoring_cost=0.35))
        assert (found.ratio == 1.0) == (share > 0.25 / 0.6)


def test_what_was_stopped_is_looked_at_again_after_2_4_and_8_epochs(make_prospect: MakeProspect) -> None:
    past, looked = BEGINNING, []
    for epoch in range(1, 30):
        found = plan(make_prospect(w=EVEN, last_loss=EVEN, epoch=epoch), past)
        assert found.ratio == 1.0
        assert found.decision is not None
        if past.decision is None or past.decision["guard"] != found.decision["guard"]:
            looked.append(epoch)
        past = Past(decision={**found.decision, "epoch": epoch})
    assert looked == [1, 3, 7, 15]


def test_selection_that_pays_again_goes_on_and_time_is_judged_by_what_it_then_takes(
    steep: Callable[..., Prospect],
) -> None:
    stopped = plan(steep(epoch=1), SLOW)
    assert stopped.decision is not None
    assert stopped.decision["reason"] == "stopped_time"
    waits = plan(steep(epoch=2), Past(decision=stopped.decision))
    assert waits.ratio == 1.0
    again = plan(steep(epoch=3), Past(decision=waits.decision))
    assert again.ratio is None  # one epoch, to be measured
    assert again.decision is not None
    longer = plan(steep(epoch=4), Past(decision=again.decision, time_saved=-0.1))
    assert longer.decision is not None
    assert (longer.ratio, longer.decision["guard"]["again"]) == (1.0, 8)
    pays = plan(steep(epoch=4), Past(decision=again.decision, time_saved=0.1))
    assert pays.decision is not None
    assert (pays.ratio, pays.decision.get("guard")) == (None, None)


@pytest.mark.parametrize(
    ("weights", "losses", "stops"),
    [
        ([0.0] * 8, [1.0] * 8, True),  # never drawn
        ([0.0] * 8, [0.0] * 8, False),  # nothing to learn from
        ([1.0] + [0.0] * 7, [1.0] + [0.0] * 7, False),  # one sample has all
        ([1.0] + [0.0] * 7, [1.0] * 8, True),
        ([3e38] * 8, [3e38] * 8, True),
        ([1e-40] * 8, [1e-40] * 8, True),
        ([2.0] * 8, [math.nan] * 8, False),
    ],
)
def test_odd_tables_are_decided_without_a_warning(
    make_prospect: MakeProspect, weights: list[float], losses: list[float], stops: bool
) -> None:
    columns = {"w": np.array(weights, np.float32), "last_loss": np.array(losses, np.float32)}
    assert (plan(make_prospect(**columns)).ratio == 1.0) == stops


def test_a_table_without_losses_is_not_judged(make_prospect: MakeProspect) -> None:
    nothing = np.zeros(8, np.uint32)
    assert plan(make_prospect(w=np.ones(8, np.float32), last_loss=np.full(8, np.nan), visits=nothing)).decision


def test_an_epoch_that_the_guard_stops_prunes_nothing(steep: Callable[..., Prospect]) -> None:
    prospect = steep()
    [found] = agree([guarded(Plan(ids=prospect.ids[:70]), prospect, SLOW, 0.25, None)])
    assert found.ids.size == 100


def test_what_trains_on_everything_anyway_is_left_alone(steep: Callable[..., Prospect]) -> None:
    assert plan(steep(), SLOW, ratio=1.0).decision is None


def test_the_guard_does_not_forget_a_stop_where_auto_trains_on_everything_itself(
    steep: Callable[..., Prospect],
) -> None:
    stopped = plan(steep(epoch=1), SLOW).decision
    assert stopped is not None

    def whole(epoch: int, past: Past) -> dict[str, Any]:
        prospect = steep(epoch=epoch)
        own = Plan(ids=prospect.ids, ratio=1.0, decision={"ratio": 1.0})
        [found] = agree([guarded(own, prospect, past, 1.0, 1.0)])
        assert found.decision is not None
        return {**found.decision, "epoch": epoch}

    in_it = whole(2, Past(decision={**stopped, "epoch": 1}))
    assert in_it["guard"] == stopped["guard"]
    at_its_end = whole(3, Past(decision=in_it))
    assert at_its_end["guard"] == {**stopped["guard"], "again": 4}  # it looks when there is something to look at
    looks = plan(steep(epoch=4), Past(decision=at_its_end)).decision
    assert looks is not None
    assert (looks["ratio"], looks["guard"]["again"]) == (0.25, 4)
    looked = {**looks, "epoch": 4}
    assert whole(5, Past(decision=looked, time_saved=-0.1))["guard"]["again"] == 6  # it did not pay
    assert "guard" not in whole(5, Past(decision=looked, time_saved=0.1))


def test_what_was_stopped_says_what_selection_would_have_cost(steep: Callable[..., Prospect]) -> None:
    found = plan(steep(scoring_cost=0.35), SLOW).decision
    assert found is not None
    assert found["cost_otherwise"] == pytest.approx(0.25 + 0.35)


def test_steps_of_a_guarded_run_are_the_most_there_may_be() -> None:
    """An epoch that the guard stops prunes nothing."""
    config = RunConfig(
        selection=preset("eswp", guard=True, anneal=(0, 0)), num_samples=100, num_epochs=4, batch_size=10
    )
    assert [config.num_steps(epoch, 1) for epoch in range(4)] == 4 * [10]


# -- what is kept -----------------------------------------------------------------------------------------------------

DECIDED = filled(
    {"ratio": 1.0, "reason": "stopped_time", "guard": {"reason": "stopped_time", "wait": 2, "again": 3}}, 1, 0.35
)
DAMAGED: list[Any] = [
    [1],
    "stopped",
    {},
    {**DECIDED, "epoch": "1"},
    {**DECIDED, "ratio": None},
    {**DECIDED, "ratio": "all"},
    {**DECIDED, "share": [1]},
    {**DECIDED, "reason": None},
    {**DECIDED, "guard": 5},
    {**DECIDED, "guard": {"reason": "stopped_time"}},
    {**DECIDED, "guard": {"reason": "stopped_time", "wait": 2, "again": "3"}},
]


def test_a_decision_comes_back_from_the_journal_as_it_was() -> None:
    kept = plan_codec.encode_plan(Plan(ids=np.arange(3), decision=DECIDED))
    assert plan_codec.decode_plan(kept).decision == DECIDED
    assert Past.from_dict(json.loads(json.dumps(Past(decision=DECIDED).to_dict()))).decision == DECIDED


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_decision_is_found_where_it_is_read(damaged: Any) -> None:
    with pytest.raises(errors.StorageError, match="damaged decision"):
        plan_codec.decode_plan(plan_codec.encode_plan(Plan(ids=np.arange(3), decision=damaged)))
    with pytest.raises((KeyError, ValueError)):
        Past.from_dict({"ledger": None, "decision": damaged, "time_saved": None})


def test_a_damaged_decision_in_the_progress_of_a_run_costs_it_nothing_else(tmp_path: Any) -> None:
    kept: dict[str, Any] = {"num_samples": 100, "num_epochs": 3, "batch_size": 10, "storage": str(tmp_path)}
    selection = preset("es", guard=True, anneal=(0, 0))
    selector = es.Selector(selection, run="one", **kept)
    train(selector, range(2), EVEN)
    selector.close()  # nothing is being written from here on
    file = tmp_path / "one" / "progress.json"
    found = json.loads(file.read_text())
    found["history"][0]["decision"] = [1]
    file.write_text(json.dumps(found))
    selector = es.Selector(selection, run="one", **kept)
    train(selector, range(2, 3), EVEN)
    selector.close()
    history = json.loads(file.read_text())["history"]
    assert [one["trained"] for one in history[:2]] == [one["trained"] for one in found["history"]]
    assert [one["decision"] is None for one in history] == [True, False, False]


# -- costs ------------------------------------------------------------------------------------------------------------


def timed(**changes: Any) -> Ledger:
    seconds = {"score": 30.0, "train": 100.0, "exchange": 0.0, "data": 0.0}
    spent = {"scored": 1000, "trained": 600, "full": 1000, "full_steps": 100.0, "measured_steps": 30}
    return Ledger(**{**spent, "measured_s": 30.0, "total_s": 90.0, "seconds": seconds, **changes})


@pytest.mark.parametrize(
    ("ledger", "cost"),
    [
        (Ledger(), 0.35),  # 1/3, in steps of 0.05
        (Ledger(backward_cost=1.0), 0.5),
        (timed(), 0.3),  # 30 ms for a sample to score, 100 ms for one of a step
        (timed(measured_steps=5, measured_s=5.0), 0.35),
        (timed(scored=10, scorer_scored=990), 0.3),  # what scorers did is waited for
        (timed(seconds={"score": 30.0, "train": 59.0, "exchange": 0.0, "data": 0.0}), 0.35),
        (timed(scored=0), 0.35),
    ],
)
def test_scoring_costs_what_was_measured_after_a_minute(ledger: Ledger, cost: float) -> None:
    assert ledger.scoring_cost() == pytest.approx(cost)
    assert Past(ledger=ledger).scoring_cost == ledger.scoring_cost()


def test_ranks_together_cost_what_one_does() -> None:
    assert Ledger.merge([timed(), timed()]).scoring_cost() == timed().scoring_cost()


def test_the_time_that_an_epoch_saved_is_counted_from_the_one_before() -> None:
    before = timed()
    later = timed(full=2000, trained=900, full_steps=200.0, total_s=150.0)
    assert later.time_saved_since(before) == pytest.approx(0.4)
    assert later.time_saved_since(later) is None
    everything = timed(full=2000, trained=1600, full_steps=200.0, total_s=190.0)
    assert everything.time_saved_since(before) is None  # nothing was left out since
    assert timed(measured_steps=3).time_saved_since(Ledger()) is None
    assert BEGINNING.behind([before], None).behind([later], None).time_saved == pytest.approx(0.4)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "random", "infobatch", "kakurenbo", "ucb", "random_subset"])
def test_a_guard_on_a_method_that_never_scores_is_refused(name: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"never scores, so guard=True .* leave it out"):
        preset(name, guard=True)


def test_auto_is_guarded_and_decides_its_own_ratio() -> None:
    assert preset("auto").is_guarded
    assert not preset("auto", guard=False).is_guarded
    assert not preset("es").is_guarded
    with pytest.raises(errors.ConfigError, match=r"decides what share .* ratio=0.5 would change nothing"):
        preset("auto", ratio=0.5)
    with pytest.raises(errors.ConfigError, match="guard must be true or false, got 'yes'"):
        preset("es", guard="yes")


@pytest.mark.parametrize(("name", "settings"), [("auto", {}), ("es", {"guard": True})])
def test_a_stream_has_no_plan_to_decide_about(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match="a stream has no plan"):
        RunConfig.of(preset(name, **settings), None, 2, 10)


def test_auto_still_anneals_where_it_is_asked_to() -> None:
    engine = Engine(preset("auto", anneal=(0.5, 0.0)), 50)
    plans = [agree([engine.plan(epoch, 4, [0, 5, 10, 15])])[0] for epoch in range(4)]
    assert [one.decision is None for one in plans] == [True, True, False, False]


def test_epochs_without_a_scoring_pass_cost_none() -> None:
    engine = Engine(preset("auto", score_every=2), 50)
    engine.record(np.arange(50), {"loss": STEEP[:50]}, np.arange(0), 0)
    costs = [agree([engine.plan(epoch, 4, [0, 5, 10, 15])])[0].decision["scoring_cost"] for epoch in range(4)]  # type: ignore[index]
    assert costs == [0.35, 0.0, 0.35, 0.0]


# -- a run ------------------------------------------------------------------------------------------------------------


def train(selector: es.Selector, epochs: range, losses: np.ndarray[Any, Any]) -> list[Any]:
    decided = []
    for epoch in epochs:
        for ids_B in selector.epoch(epoch):
            selector.select(ids_B, losses[ids_B] if selector.wants_scores else None)
            selector.observe(losses[selector._here.measures.draw.ids])  # type: ignore[union-attr]
        decided.append(selector.decision)
    return decided


def test_a_run_says_once_that_selection_was_stopped_and_continues_the_same_from_a_checkpoint() -> None:
    shape = {"num_samples": 100, "num_epochs": 9, "batch_size": 10}
    losses = EVEN + np.arange(100, dtype=np.float32) / 1000
    selection = preset("es", guard=True, anneal=(0, 0))
    selector = es.Selector(selection, **shape)  # type: ignore[arg-type]
    with pytest.warns(es.SelectionStoppedWarning, match="trains on everything .*uniform draws"):
        decided = train(selector, range(4), losses)
    state = selector.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no second one
        expected = train(selector, range(4, 9), losses)
    assert [one["ratio"] for one in decided] == [0.25, 1.0, 1.0, 1.0]
    assert [one["guard"] and one["guard"]["again"] for one in decided] == [None, 3, 3, 7]
    assert selector.metrics()["selection/decision_ratio"] == 1.0
    assert in_words(decided[1]).startswith("trains on everything (" + REASONS["stopped_variance"])
    resumed = es.Selector(selection, **shape)  # type: ignore[arg-type]
    resumed.load_state_dict(state)
    with pytest.warns(es.SelectionStoppedWarning):
        assert train(resumed, range(4, 9), losses) == expected


def test_a_run_that_is_kept_continues_with_the_same_decisions(tmp_path: Any) -> None:
    kept: dict[str, Any] = {"num_samples": 100, "num_epochs": 9, "batch_size": 10, "storage": str(tmp_path)}
    selection = preset("es", guard=True, anneal=(0, 0))
    whole = train(es.Selector(selection, run="whole", **kept), range(9), EVEN)
    train(es.Selector(selection, run="cut", **kept), range(5), EVEN)
    assert train(es.Selector(selection, run="cut", **kept), range(5, 9), EVEN) == whole[5:]
    assert [one["reason"] for one in whole[:2]] == ["fixed_ratio", "stopped_variance"]
    assert json.loads((tmp_path / "cut" / "progress.json").read_text())["history"][8]["decision"] == whole[8]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", ["auto", "es"])
def test_ranks_decide_what_one_decides(name: str, world_size: int) -> None:
    selection = preset(name, guard=True, anneal=(0, 0))
    assert lockstep(selection, world_size) == lockstep(selection, 1)


def lockstep(selection: es.Selection, world_size: int) -> list[Any]:
    """Return what all ranks of a process decided, epoch by epoch; a meta-batch of all together has 24 samples."""
    shape: dict[str, Any] = {"num_samples": 96, "num_epochs": 6, "batch_size": 24 // world_size}
    run = LocalRun(RunConfig(selection=selection, **shape))
    exchanges = [Embedded(run, Position(rank, world_size)) for rank in range(world_size)]
    selectors = [es.Selector(selection, **shape, exchange=one) for one in exchanges]
    decided = []
    for epoch in range(6):
        losses = STEEP * 10 if epoch % 2 else STEEP + np.float32(1)
        for batches in zip(*(one.epoch(epoch) for one in selectors), strict=True):
            for selector, ids_B in zip(selectors, batches, strict=True):
                selector.select(ids_B, losses[ids_B])
        assert all(one.decision == selectors[0].decision for one in selectors)
        decided.append(selectors[0].decision)
    return decided
