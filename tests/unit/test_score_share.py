"""`Selection(score_share=...)`: which part of a meta-batch is scored, what draws then go by, and what is counted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.selection import staleness
from es_service.selection.engine import Engine
from es_service.selection.named import preset
from es_service.selection.reductions import agree

I64 = NDArray[np.int64]
NUM, BATCH, EPOCHS = 200, 20, 4


def make(share: float = 0.5, method: str = "loss", **settings: Any) -> es.Selector:
    selection = preset(method, score_share=share, **{"anneal": (0, 0), "seed": 3, "ratio": 0.25, **settings})
    return es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=BATCH)


def losses_of(ids: I64, epoch: int = 0) -> NDArray[np.float32]:
    return (1.0 + (ids * 37 + epoch * 11) % 101).astype(np.float32)


def step(selector: es.Selector, ids: I64, epoch: int, *, observes: bool = True) -> tuple[I64, es.Draw]:
    asked = selector.to_score(ids)
    draw = selector.select(ids, losses_of(ids[asked], epoch), scored=asked)
    if observes:
        selector.observe(losses_of(draw.ids, epoch))
    return asked, draw


def column(selector: es.Selector, name: str) -> NDArray[Any]:
    found: NDArray[Any] = selector.table()[name].to_numpy()
    return found


# -- which samples --------------------------------------------------------------------------------------------------


def test_the_stalest_come_first_and_ties_go_by_position() -> None:
    stale = np.array([16, 255, 17, 32, 16, 255, 40, 16], np.uint8)
    assert staleness.stalest(stale, 0.5).tolist() == [1, 3, 5, 6]
    assert staleness.stalest(stale, 0.75).tolist() == [0, 1, 2, 3, 5, 6]
    assert staleness.stalest(stale, 0.01).tolist() == [1, 5]  # never observed, though more than the share
    assert staleness.stalest(stale[:1], 0.01).tolist() == [0]
    assert staleness.stalest(stale[[0, 3, 4]], 0.01).tolist() == [0, 1]  # never a single one
    assert staleness.stalest(np.full(8, 255, np.uint8), 0.1).tolist() == list(range(8))


def test_a_plan_notes_whole_epochs_and_how_far_the_last_loss_lies_from_the_mean() -> None:
    engine = Engine(preset("es", anneal=(0, 0), score_share=0.5), 5)
    engine.record(np.array([0, 1, 2]), {"loss": np.array([2, 2, 3e38], np.float32)}, np.arange(0), 0)
    engine.record(np.array([1, 2, 3]), {"loss": np.array([4, 3e38, 0], np.float32)}, np.arange(0), 10)
    [plan] = agree([engine.plan(2, 9, [0, 10, 20])])
    assert plan.staleness is not None
    # id 0: two epochs ago. 1: mean 3, last 4: 16·1/7. 2: nothing moved. 3: a loss of 0. 4: never observed.
    assert plan.staleness.tolist() == [2 * 16, 16 + 2, 16, 16, 255]
    starts = list(range(0, 400, 10))
    [late] = agree([engine.plan(39, 99, starts)])
    assert late.staleness is not None
    assert late.staleness.tolist() == [14 * 16, 14 * 16 + 2, 14 * 16, 14 * 16, 255]


def test_no_sample_waits_longer_than_the_share_takes_to_go_round() -> None:
    selector = make(0.5)
    for epoch in range(EPOCHS):
        last = column(selector, "last_step")
        scored: list[int] = []
        for ids in selector.epoch(epoch):
            asked, _ = step(selector, ids, epoch)
            assert asked.size == (BATCH if epoch == 0 else BATCH // 2)
            ages = epoch * 10 - 1 - last[ids]
            if epoch:  # whoever was scored was seen no later, by epochs, than those who were not
                epochs_ago = ages // 10
                assert epochs_ago[asked].min() >= np.delete(epochs_ago, asked).max()
            scored += ids[asked].tolist()
        assert selector.ledger.scored == NUM + epoch * NUM // 2
    assert (EPOCHS - 1 - column(selector, "last_step") // 10).max() <= 2


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_epochs_that_anneal_or_re_use_losses_score_nothing(share: float) -> None:
    selector = make(share, score_every=2, anneal=(0.25, 0))
    asked = [{step(selector, ids, epoch)[0].size for ids in selector.epoch(epoch)} for epoch in range(EPOCHS)]
    assert asked == [{0}, {max(2, round(share * BATCH))}, {0}, {max(2, round(share * BATCH))}]


# -- what draws go by -----------------------------------------------------------------------------------------------


def test_draws_go_by_the_new_weights_of_the_scored_and_the_known_ones_of_the_others() -> None:
    selector = make(0.3, draw="topk")
    known = np.full(NUM, np.nan)
    for epoch in range(EPOCHS):
        for ids in selector.epoch(epoch):
            asked, draw = step(selector, ids, epoch)
            known[ids[asked]] = losses_of(ids[asked], epoch)
            best = np.sort(known[ids])[-draw.ids.size :]
            assert np.sort(known[draw.ids]).tolist() == best.tolist()
            known[draw.ids] = losses_of(draw.ids, epoch)  # observed in training
    assert column(selector, "last_loss").tolist() == known.tolist()


def test_what_is_drawn_and_was_not_scored_is_observed_in_training_once() -> None:
    selector = make(0.3)
    for epoch in range(EPOCHS):
        for ids in selector.epoch(epoch):
            before = column(selector, "visits"), column(selector, "selected")
            asked, draw = step(selector, ids, epoch)
            visits, selected = column(selector, "visits") - before[0], column(selector, "selected") - before[1]
            assert sorted(np.flatnonzero(visits)) == sorted({*ids[asked].tolist(), *draw.ids.tolist()})
            assert sorted(np.flatnonzero(selected)) == sorted(draw.ids.tolist())
            assert visits.max() == selected.max() == 1


def test_a_loop_that_never_observes_counts_its_draws_all_the_same() -> None:
    one, other = make(0.3), make(0.3)
    for epoch in range(EPOCHS):
        for ids in one.epoch(epoch):
            step(one, ids, epoch, observes=False)
        batches = other.epoch(epoch)
        for _ in range(other.steps(epoch)):  # and one that counts its steps, and says that no losses come
            step(other, next(batches), epoch, observes=False)
            other.observe(None)
        assert other.next_epoch == epoch + 1
    assert int(column(one, "selected").sum()) == one.ledger.trained == EPOCHS * NUM // 4
    assert one.table().equals(other.table())
    assert one.ledger.scored == other.ledger.scored


def test_all_of_a_meta_batch_may_be_scored_nevertheless() -> None:
    whole, asked_for = make(0.3, "es"), make(1.0, "es")
    for epoch in range(EPOCHS):
        for ids, same in zip(whole.epoch(epoch), asked_for.epoch(epoch), strict=True):
            assert asked_for.to_score(same).tolist() == list(range(BATCH))
            one = whole.select(ids, losses_of(ids, epoch))
            other = asked_for.select(same, losses_of(same, epoch), scored=np.arange(BATCH))
            assert one.positions.tolist() == other.positions.tolist()
    assert whole.table().equals(asked_for.table())


def test_a_state_between_a_draw_and_its_losses_is_of_a_step_that_is_done() -> None:
    first, second = make(0.3), make(0.3)
    steps = itertools.chain(*(first.epoch(epoch) for epoch in range(2)))
    for _ in range(10):
        step(first, next(steps), 0)
    ids = next(steps)
    step(first, ids, 1, observes=False)
    state = first.state_dict()
    first.observe(losses_of(ids, 1))  # comes too late, and is ignored
    assert second.load_state_dict(state) == 1
    rest = [step(first, ids, 1)[1].ids.tolist() for ids in steps]
    assert [step(second, ids, 1)[1].ids.tolist() for ids in second.epoch(1)] == rest
    assert len(rest) == 9
    assert first.table().equals(second.table())
    assert first.ledger.scored == second.ledger.scored


def test_metrics_leave_out_the_mean_loss_of_all_where_a_part_was_scored() -> None:
    selector = make(0.3)
    for ids in selector.epoch(0):
        step(selector, ids, 0)
    assert selector.metrics()["selection/loss_all"] > 0
    for ids in selector.epoch(1):
        _, draw = step(selector, ids, 1)
    found = selector.metrics()
    assert not {"selection/loss_all", "selection/loss_all_epoch"} & set(found)
    assert found["selection/loss_selected"] == pytest.approx(losses_of(draw.ids, 1).mean())
    seen = int((column(selector, "last_step") >= 10).sum())
    assert found["selection/seen_ratio_epoch"] == pytest.approx(seen / NUM)


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan"), float("inf"), "half", None, True])
def test_shares_outside_0_to_1_are_refused(share: Any) -> None:
    with pytest.raises(errors.ConfigError, match="score_share"):
        es.Selection(es.methods.evolved(), score_share=share)


def test_settings_that_contradict_a_share_are_refused() -> None:
    with pytest.raises(errors.ConfigError, match=r"score_share=0\.5 .*on_bad_loss='skip'"):
        es.Selection(es.methods.evolved(), score_share=0.5, on_bad_loss="skip")
    for name in ("random", "full", "infobatch"):
        with pytest.raises(errors.ConfigError, match=r"so score_share=0\.5 would change nothing"):
            preset(name, score_share=0.5)


def test_a_stream_has_no_plan_to_go_by() -> None:
    selection = es.Selection(es.methods.evolved(), score_share=0.5)
    with pytest.raises(errors.ConfigError, match=r"score_share=0\.5 goes by the plan"):
        es.Selector(selection, num_samples=None, num_epochs=1, batch_size=4)
    with pytest.raises(errors.ConfigError, match=r"score_share=0\.5 goes by the plan"):
        next(make(0.5).stream(0, [{"id": np.arange(4)}]))


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        ([1, 0], "ascending"),
        ([0, 0], "ascending"),
        ([-1, 3], r"positions in \[0, 20\)"),
        ([5, 20], r"positions in \[0, 20\)"),
        ([[0, 1]], "one dimension"),
        ([0.0, 1.0], "one dimension"),
        ([0, 1], "has to be scored in this step"),
    ],
)
def test_positions_that_cannot_be_used_are_refused_and_change_nothing(scored: Any, message: str) -> None:
    selector = make(0.5)
    ids = next(selector.epoch(0))
    before = repr(selector.table().to_pydict())
    with pytest.raises(errors.ShapeError, match=message):
        selector.select(ids, np.ones(np.size(scored)), scored=scored)
    with pytest.raises(errors.ShapeError, match="no losses came with it"):
        selector.select(ids, scored=np.arange(BATCH))
    with pytest.raises(errors.ShapeError, match=r"must have shape \(20,\)"):
        selector.select(ids, np.ones(3), scored=np.arange(BATCH))
    assert repr(selector.table().to_pydict()) == before
    assert selector.ledger.scored == 0


@pytest.mark.parametrize("settings", [{"on_bad_loss": "skip"}, {}])
def test_a_loop_that_asks_what_to_score_works_in_annealing_steps_too(settings: dict[str, Any]) -> None:
    selection = es.Selection(es.methods.evolved(), anneal=(0.5, 0), **settings)
    selector = es.Selector(selection, num_samples=20, num_epochs=2, batch_size=10)
    asked = []
    for epoch in range(2):
        for ids_B in selector.epoch(epoch):
            scored = selector.to_score(ids_B)
            asked.append(scored.size)
            draw = selector.select(ids_B, np.ones(scored.size) if scored.size else None, scored=scored)
            selector.observe(np.ones(draw.ids.size))
    assert asked == [0, 0, 10, 10]
