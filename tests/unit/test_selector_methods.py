"""The Selector with the methods that need more of it: signals by name, hidden samples, scaled plans, re-used losses."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.selection.named import preset

I64 = NDArray[np.int64]

NUM, EPOCHS, BATCH = 60, 6, 10
IRREDUCIBLE = np.random.default_rng(1).exponential(size=NUM).astype(np.float32)


def make(name: str, *, irreducible_losses: Any = None, **settings: Any) -> es.Selector:
    sizes = {"num_samples": NUM, "num_epochs": EPOCHS, "batch_size": BATCH}
    sizes.update({key: settings.pop(key) for key in list(settings) if key in sizes})
    selection = preset(name, **{"anneal": (0, 0), "seed": 5, **settings})
    return es.Selector(selection, **sizes, irreducible_losses=irreducible_losses)


def observed(epoch: int, ids: I64) -> dict[str, NDArray[np.float32]]:
    """All that a model could say of these samples, the same in every run."""
    rng = np.random.default_rng(epoch)
    return {
        "loss": rng.exponential(size=NUM).astype(np.float32)[ids],
        "correct": (rng.random(NUM) < 0.9).astype(np.float32)[ids],
        "confidence": rng.uniform(0.6, 1, NUM).astype(np.float32)[ids],
        "grad_norm": rng.exponential(size=NUM).astype(np.float32)[ids],
    }


def one_step(selector: es.Selector, epoch: int, ids: I64) -> tuple[Any, ...]:
    asked = selector.to_score(ids)
    draw = selector.select(ids, observed(epoch, ids[asked]) if asked.size else None, scored=asked)
    selector.observe(observed(epoch, draw.ids))
    return epoch, ids.tolist(), draw.ids.tolist(), draw.scale.tolist(), selector.learning_rate_factor


def refresh(selector: es.Selector, epoch: int) -> list[Any]:
    hidden = []
    for ids in selector.hidden_batches():
        selector.refresh(ids, observed(epoch, ids))
        hidden.append((epoch, "hidden", ids.tolist()))
    return hidden


def train(selector: es.Selector, epochs: range) -> list[Any]:
    trace: list[Any] = []
    for epoch in epochs:
        trace += [one_step(selector, epoch, ids) for ids in selector.epoch(epoch)]
        trace += refresh(selector, epoch)
    return trace


def content(selector: es.Selector) -> str:
    return repr(selector.table().to_pydict())


# -- when losses are wanted ---------------------------------------------------------------------------------------


def wanted(selector: es.Selector) -> list[str]:
    """One word per epoch: s for a step that scores, d for one that draws without, a for one that takes all."""
    words = []
    for epoch in range(EPOCHS):
        word = ""
        for ids in selector.epoch(epoch):
            scores = selector.wants_scores
            _, _, drawn, _, _ = one_step(selector, epoch, ids)
            word += "s" if scores else "a" if len(drawn) == ids.size else "d"
        words.append(word)
    return words


def test_losses_are_re_used_in_the_epochs_between_two_scoring_ones() -> None:
    assert wanted(make("es", score_every=3, anneal=(0.1, 0.1))) == [
        "aaaaaa",
        "s" * 6,
        "d" * 6,
        "d" * 6,
        "s" * 6,
        "a" * 6,
    ]


def test_an_interruption_takes_everything_every_so_many_steps_of_the_run() -> None:
    assert wanted(make("es", interrupt=2)) == ["sasasa"] * 6
    steps = "".join(wanted(make("es", interrupt=4)))
    assert steps == "sssa" * 9
    assert "".join(wanted(make("random", interrupt=3))) == "dda" * 12
    assert wanted(make("selective_backprop_composer")) == ["sasasa"] * 6


def test_ordered_takes_all_until_the_train_accuracy_is_reached() -> None:
    selector = make("ordered")
    sizes = {}
    for epoch, right in enumerate((0.5, 0.85, 0.92, 1.0, 0.0)):
        for ids in selector.epoch(epoch):
            seen = {"loss": np.ones(BATCH), "correct": (ids < right * NUM).astype(np.float32)}
            sizes[epoch] = selector.select(ids, seen if selector.wants_scores else None).ids.size
            selector.observe({name: values[: sizes[epoch]] for name, values in seen.items()})
    assert sizes == {0: 10, 1: 10, 2: 5, 3: 3, 4: 1}


def test_stale_draws_go_by_the_losses_of_the_epoch_before() -> None:
    selector = make("loss", score_every=2, draw="topk", batch_size=20, ratio=0.5)
    losses = np.arange(NUM, dtype=np.float32)
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            draw = selector.select(ids, losses[ids] if epoch == 0 else None)
            assert sorted(draw.ids.tolist()) == sorted(ids.tolist())[10:]
    assert selector.ledger.scored == NUM


# -- hidden samples -----------------------------------------------------------------------------------------------


def test_hidden_samples_are_handed_out_refreshed_and_the_epoch_closed() -> None:
    selector = make("kakurenbo")
    train(selector, range(1))
    for ids in selector.epoch(1):
        one_step(selector, 1, ids)
    hidden: list[int] = []
    scored = selector.ledger.scored
    for ids in selector.hidden_batches():
        assert ids.size <= BATCH
        selector.refresh(ids, observed(1, ids))
        hidden += ids.tolist()
    plan = [one for batch in selector.batches() for one in batch.tolist()]
    assert hidden
    assert not set(hidden) & set(plan)
    assert len(plan) <= NUM - len(hidden)
    assert selector.learning_rate_factor == pytest.approx(NUM / (NUM - len(hidden)))
    assert selector.ledger.scored == scored + len(hidden)
    table = selector.table()
    assert {table.column("visits").to_pylist()[one] for one in hidden} == {2}
    assert {table.column("selected").to_pylist()[one] for one in hidden} == {1}
    assert table.column("last_loss").to_numpy()[hidden].tolist() == observed(1, np.array(hidden))["loss"].tolist()
    with pytest.raises(errors.EpochOrderError, match="no epoch is open: call refresh inside"):
        selector.refresh(np.array(hidden), observed(1, np.array(hidden)))
    assert list(selector.hidden_batches()) == []


def test_an_epoch_whose_hidden_samples_nobody_asks_for_is_closed_by_the_next() -> None:
    selector = make("kakurenbo")
    for epoch in range(3):
        for ids in selector.epoch(epoch):
            one_step(selector, epoch, ids)
    assert max(selector.table().column("visits").to_pylist()) == 3
    assert min(selector.table().column("visits").to_pylist()) == 1  # they stay hidden


@pytest.mark.parametrize("name", ["es", "full", "infobatch"])
def test_methods_that_hide_nothing_hand_out_nothing(name: str) -> None:
    selector = make(name)
    assert list(selector.hidden_batches()) == []
    for ids in selector.epoch(0):
        one_step(selector, 0, ids)
    assert list(selector.hidden_batches()) == []


def test_a_bad_refresh_changes_nothing() -> None:
    selector = make("kakurenbo")
    train(selector, range(1))
    for ids in selector.epoch(1):
        one_step(selector, 1, ids)
    ids = next(selector.hidden_batches())
    before = content(selector)
    good = observed(1, ids)
    for bad_ids, bad in (
        (ids, {**good, "confidence": good["confidence"] + np.nan}),
        (ids, good["loss"]),
        (ids[:1], good),
        (ids + NUM, good),
    ):
        with pytest.raises(errors.InputError):
            selector.refresh(bad_ids, bad)
    assert content(selector) == before


# -- plans that weigh ---------------------------------------------------------------------------------------------


def test_the_plan_s_weights_reach_the_draw_in_whatever_order_ids_come() -> None:
    selector, other = make("infobatch"), make("infobatch")
    for one in (selector, other):
        train(one, range(1))
    scales: dict[int, float] = {}
    for ids in selector.epoch(1):
        draw = selector.select(ids)
        scales |= dict(zip(draw.ids.tolist(), draw.scale.tolist(), strict=True))
    assert len(set(scales.values())) == 2
    assert sum(scales.values()) == pytest.approx(NUM)
    for ids in other.epoch(1):
        draw = other.select(ids[::-1].copy())
        assert draw.scale.tolist() == [scales[one] for one in ids[::-1].tolist()]
    gone = np.array(sorted(set(range(NUM)) - set(scales)))[:3]
    next(other.epoch(2))
    left_out = np.setdiff1d(np.arange(NUM), np.concatenate(other.batches()))[:3]
    assert gone.size == left_out.size == 3
    assert other.select(left_out).scale.tolist() == [1.0] * 3  # a sampler's own choice weighs as it is


def test_a_plan_that_shrinks_tells_its_steps() -> None:
    selector = make("infobatch", r=0.9)
    promised = selector.steps(1)
    train(selector, range(1))
    for step, _ in enumerate(selector.epoch(1)):
        assert selector.steps(1) == len(selector.batches()) + step
        selector.select(selector.batches()[0])
    assert step + 1 < promised == 6


# -- signals ------------------------------------------------------------------------------------------------------


def test_a_mapping_of_one_loss_is_a_loss() -> None:
    one, other = make("es"), make("es")
    for first, second in zip(one.epoch(0), other.epoch(0), strict=True):
        loss = observed(0, first)["loss"]
        assert one.select(first, loss).ids.tolist() == other.select(second, {"loss": loss, "more": None}).ids.tolist()
    assert content(one) == content(other)


def test_a_missing_signal_is_named_and_all_that_are_needed() -> None:
    selector = make("kakurenbo")
    ids = next(selector.epoch(0))
    selector.select(ids)
    for given, missing in ((np.ones(BATCH), "correct, confidence"), ({"loss": np.ones(BATCH)}, "correct, confidence")):
        with pytest.raises(
            errors.ShapeError,
            match=rf"observes loss, correct, confidence of each sample, but {missing} did not come: pass \{{'loss'",
        ):
            selector.observe(given)
    by_norm = make("es", signal="grad_norm")
    ids = next(by_norm.epoch(0))
    with pytest.raises(errors.ShapeError, match="but grad_norm did not come"):
        by_norm.select(ids, np.ones(BATCH))


def test_a_bad_signal_is_named() -> None:
    selector = make("kakurenbo")
    ids = next(selector.epoch(0))
    selector.select(ids)
    seen = observed(0, ids)
    with pytest.raises(errors.LossError, match=r"value of signal 'confidence' nan at position 2"):
        selector.observe({**seen, "confidence": np.where(np.arange(BATCH) == 2, np.nan, 1)})
    with pytest.raises(errors.ShapeError, match=r"signal 'correct' must have shape \(10,\)"):
        selector.observe({**seen, "correct": np.ones(3)})
    selector.observe(seen)
    assert selector.table().column("visits").to_pylist()[int(ids[0])] == 1


def test_correct_may_be_what_a_comparison_gives() -> None:
    selector = make("kakurenbo")
    ids = next(selector.epoch(0))
    selector.select(ids)
    selector.observe({**observed(0, ids), "correct": np.arange(BATCH) < 3})
    assert selector.table().column("correct").to_numpy()[ids].tolist() == [1.0] * 3 + [0.0] * 7


def test_samples_with_any_bad_signal_are_skipped() -> None:
    selector = make("kakurenbo", on_bad_loss="skip")
    ids = next(selector.epoch(0))
    selector.select(ids)
    seen = observed(0, ids)
    seen["loss"][[1, 2]] = np.nan, np.inf
    seen["confidence"][[2, 5]] = np.nan
    selector.observe(seen)
    visits = np.array(selector.table().column("visits").to_pylist())
    assert np.flatnonzero(visits[ids] == 0).tolist() == [1, 2, 5]
    assert selector.ledger.skipped == 3
    assert np.array(selector.table().column("selected").to_pylist())[ids].tolist() == [1] * BATCH


def test_skipping_keeps_the_signals_beside_their_samples() -> None:
    selector = make("es", signal="grad_norm", on_bad_loss="skip", ratio=0.5)
    ids = next(selector.epoch(0))
    seen = observed(0, ids)
    seen["loss"][0] = np.nan
    seen["grad_norm"][[3, 9]] = np.nan, np.inf
    draw = selector.select(ids, seen)
    assert not {0, 3, 9} & set(draw.positions.tolist())
    good = [1, 2, 4, 5, 6, 7, 8]
    table = selector.table()
    assert table.column("last_loss").to_numpy()[ids[good]].tolist() == seen["loss"][good].tolist()
    expected = np.float32(0.2) / NUM + np.float32(0.8) * seen["grad_norm"][good]
    assert table.column("w").to_numpy()[ids[good]].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_irreducible_losses_are_given_once() -> None:
    selector = make("rho", irreducible_losses=IRREDUCIBLE, ratio=0.3)
    for ids in selector.epoch(0):
        loss = observed(0, ids)["loss"]
        draw = selector.select(ids, loss)
        order = np.argsort(loss - IRREDUCIBLE[ids])
        assert sorted(draw.positions.tolist()) == sorted(order[-3:].tolist())
    bare = make("rho")
    ids = next(bare.epoch(0))
    with pytest.raises(errors.ShapeError, match="irreducible_loss did not come"):
        bare.select(ids, np.ones(BATCH))
    with pytest.raises(errors.ShapeError):
        make("rho", irreducible_losses=IRREDUCIBLE[1:])
    with pytest.raises(errors.LossError, match="value of irreducible_losses nan at position 0"):
        make("rho", irreducible_losses=IRREDUCIBLE + np.nan)


def test_negative_gradient_norms_are_refused() -> None:
    selector = make("loss", signal="grad_norm")
    with pytest.raises(errors.LossError, match=r"value of signal 'grad_norm' -1.0 at position 0 is negative"):
        selector.select(next(selector.epoch(0)), {"loss": np.ones(BATCH), "grad_norm": -np.ones(BATCH)})


# -- saving and loading -------------------------------------------------------------------------------------------

STATEFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "infobatch": ("infobatch", {}),
    "kakurenbo": ("kakurenbo", {}),
    "ordered": ("ordered", {}),
    "selective_backprop": ("selective_backprop", {"history": 25}),
    "stale": ("selective_backprop", {"history": 25, "score_every": 2}),
    "composer": ("selective_backprop_composer", {}),
    "part": ("es", {"score_share": 0.4}),
    "ucb": ("ucb", {"every": 2}),
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 0), (2, 3), (2, -1), (4, 1)])
def test_a_state_inside_an_epoch_continues_bit_for_bit(name: str, epoch: int, step: int) -> None:
    """Step -1 is the epoch's last: what it hid is still to be refreshed."""
    short, settings = STATEFUL[name]
    undisturbed, first, second = (make(short, **settings) for _ in range(3))
    expected = train(undisturbed, range(epoch + 1))
    table_then = content(undisturbed)
    expected += train(undisturbed, range(epoch + 1, EPOCHS))
    got = train(first, range(epoch))
    state: dict[str, Any] = {}
    for number, ids in enumerate(first.epoch(epoch)):
        got.append(one_step(first, epoch, ids))
        if number == step % first.steps(epoch):
            state = pickle.loads(pickle.dumps(first.state_dict()))
            break
    went_on = second.load_state_dict(state)
    if went_on == epoch:
        got += train(second, range(epoch, epoch + 1))
    else:  # that was its last step, and nothing is hidden
        assert (went_on, number + 1) == (epoch + 1, first.steps(epoch))
    assert content(second) == table_then
    got += train(second, range(epoch + 1, EPOCHS))
    assert got == expected
    assert content(second) == content(undisturbed)


def test_hidden_batches_come_in_random_order() -> None:
    """A data set sorted by class would otherwise be refreshed class by class, which BatchNorm takes badly."""
    selector = make("kakurenbo")
    train(selector, range(1))
    for ids in selector.epoch(1):
        one_step(selector, 1, ids)
    hidden = [
        int(one) for ids in selector.hidden_batches() for one in (selector.refresh(ids, observed(1, ids)), ids)[1]
    ]
    assert len(hidden) > 5
    assert hidden != sorted(hidden)


def test_only_what_the_epoch_hid_can_be_refreshed() -> None:
    selector = make("kakurenbo")
    train(selector, range(1))
    for ids in selector.epoch(1):
        before = content(selector)
        with pytest.raises(errors.IdError, match=rf"id {ids[0]} at position 0 is none that epoch 1 hid"):
            selector.refresh(ids.copy(), observed(1, ids))
        assert content(selector) == before
        one_step(selector, 1, ids)


def test_no_state_can_be_taken_while_the_hidden_are_being_observed() -> None:
    """It would be observed twice by whoever continued from it."""
    selector = make("kakurenbo")
    train(selector, range(1))
    for ids in selector.epoch(1):
        one_step(selector, 1, ids)
    for ids in selector.hidden_batches():
        with pytest.raises(errors.EpochOrderError, match="what epoch 1 hid"):
            selector.state_dict()
        selector.refresh(ids, observed(1, ids))
    assert selector.state_dict()["finished_epochs"] == 2


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_between_epochs_continues_bit_for_bit(name: str) -> None:
    short, settings = STATEFUL[name]
    undisturbed, first, second = (make(short, **settings) for _ in range(3))
    expected = train(undisturbed, range(EPOCHS))
    got = train(first, range(3))
    assert second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict()))) == 3
    assert got + train(second, range(3, EPOCHS)) == expected
    assert content(second) == content(undisturbed)


@pytest.mark.parametrize("part", ["ids", "first_step", "scale", "ratio", "hidden", "learning_rate_factor", "staleness"])
def test_a_share_with_a_part_missing_or_spoilt_is_damaged(part: str) -> None:
    selector = make("eswp", score_share=0.5) if part == "staleness" else make("infobatch")
    train(selector, range(1))
    next(selector.epoch(1))
    state = selector.state_dict()
    before = content(selector)
    missing = {name: value for name, value in state["share"].items() if name != part}
    shares: list[Any] = [{**state["share"], "more": 1}, []]
    if part in {"ids", "scale", "hidden", "staleness"}:
        shares += [missing, {**state["share"], part: ["a"]}]
    for share in shares:
        with pytest.raises(errors.StorageError, match="the selector state is damaged"):
            selector.load_state_dict({**state, "share": share})
    assert content(selector) == before


def test_a_state_of_another_method_s_table_is_refused() -> None:
    state = make("kakurenbo").state_dict()
    with pytest.raises(errors.RunMismatchError):
        make("es").load_state_dict(state)
    own = make("es").state_dict()
    del own["sha256"]
    with pytest.raises(errors.StorageError, match="another method"):
        make("es").load_state_dict({**own, "format": 2, "table": state["table"]})
