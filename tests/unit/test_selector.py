"""The Selector in one process: same seed same selection, saving and loading, bad input, the ledger, unbiasedness."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig

Losses = Callable[[NDArray[np.int64], int], NDArray[np.float32]]
Trace = list[tuple[int, list[int], list[int], list[float]]]

SIZES = {"num_samples": 60, "num_epochs": 4, "batch_size": 10}


def make(method: es.methods.Method | None = None, **settings: Any) -> es.Selector:
    sizes = {key: settings.pop(key, value) for key, value in SIZES.items()}
    settings = {"ratio": 0.3, "prune_ratio": 0.2, "anneal": (0.0, 0.0), "seed": 7, **settings}
    if method is not None and not method.prunes:
        settings["prune_ratio"] = 0.0
    return es.Selector(
        es.Selection(method or es.methods.evolved(), **settings), clock=itertools.count().__next__, **sizes
    )


def batches(selector: es.Selector, epochs: range) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    for epoch in epochs:
        for step, ids in enumerate(selector.epoch(epoch)):
            yield epoch, step, ids


def train(selector: es.Selector, epochs: range, losses_of: Losses) -> Trace:
    return [one_step(selector, epoch, step, ids, losses_of) for epoch, step, ids in batches(selector, epochs)]


def one_step(
    selector: es.Selector, epoch: int, step: int, ids: NDArray[np.int64], losses_of: Losses
) -> tuple[int, list[int], list[int], list[float]]:
    draw = selector.select(ids, losses_of(ids, 10 * epoch + step))
    return epoch, ids.tolist(), draw.ids.tolist(), draw.scale.tolist()


def counts(selector: es.Selector) -> tuple[float, ...]:
    ledger = selector.ledger
    return ledger.scored, ledger.trained, ledger.full, ledger.skipped, ledger.full_steps


# -- the same seed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["race", "systematic", "conditional_poisson", "priority", "topk"])
def test_the_same_seed_gives_the_same_selection(draw: str, losses_of: Losses) -> None:
    first, second = make(draw=draw), make(draw=draw)
    assert train(first, range(4), losses_of) == train(second, range(4), losses_of)
    assert first.table().equals(second.table()) or first.table().to_pydict() == second.table().to_pydict()


def test_another_seed_gives_another_one(losses_of: Losses) -> None:
    one, other = train(make(seed=1), range(1), losses_of), train(make(seed=2), range(1), losses_of)
    assert [ids for _, ids, _, _ in one] != [ids for _, ids, _, _ in other]
    same = make(seed=1), make(seed=2)  # and where the batch is the same, the draw differs too
    ids = np.arange(10)
    draws = []
    for selector in same:
        next(selector.epoch(0))
        draws.append(selector.select(ids, losses_of(ids, 0)).ids.tolist())
    assert draws[0] != draws[1]


def test_a_step_draws_afresh_where_nothing_else_changed() -> None:
    selector = make(es.methods.random(), prune_ratio=0.0)
    ids, drawn = np.arange(10), set()
    for _ in selector.epoch(0):
        drawn.add(tuple(selector.select(ids, np.ones(10)).positions.tolist()))
    assert len(drawn) > 1


def test_ranks_in_one_process_cover_the_plan_and_select_as_told(losses_of: Losses) -> None:
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=2)
    config = RunConfig(selection=selection, num_samples=61, num_epochs=2, batch_size=10)
    keeper = LocalRun(config)
    ranks = [
        es.Selector(
            selection, num_samples=61, num_epochs=2, batch_size=10, exchange=Embedded(keeper, Position(rank, 3))
        )
        for rank in range(3)
    ]
    for epoch in range(2):
        seen: list[int] = []
        for together in zip(*(one.epoch(epoch) for one in ranks), strict=True):
            for one, ids in zip(ranks, together, strict=True):
                seen += ids.tolist()
                assert one.select(ids, losses_of(ids, epoch)).ids.size == 5
        assert len(seen) == len(set(seen)) == 60


# -- epochs -------------------------------------------------------------------------------------------------------


def test_an_epoch_is_the_plan_in_batches_and_steps_says_how_many(losses_of: Losses) -> None:
    selector = make(num_samples=64)
    for epoch in range(2):
        promised = selector.steps(epoch)
        sizes = []
        for ids in selector.epoch(epoch):
            assert selector.steps(epoch) == (7 if epoch == 0 else promised)
            sizes.append(ids.size)
            selector.select(ids, losses_of(ids, 0))
        assert sizes == ([10] * 6 + [4] if epoch == 0 else [10] * 5 + [2])  # nothing is pruned before it was seen


def test_b_follows_the_size_of_the_last_batch(losses_of: Losses) -> None:
    selector = make(num_samples=24, batch_size=10, prune_ratio=0.0)
    drawn = [len(draw) for _, _, draw, _ in train(selector, range(1), losses_of)]
    assert drawn == [3, 3, 2]


def test_batches_for_a_loader_are_those_of_the_epoch(losses_of: Losses) -> None:
    selector = make()
    seen: list[list[int]] = []
    promised: list[list[int]] = []
    for step, ids in enumerate(selector.epoch(0)):
        ahead = [batch.tolist() for batch in selector.batches()]
        if step == 0:
            promised = ahead
        assert ahead == promised[step:]
        seen.append(ids.tolist())
        selector.select(ids, losses_of(ids, step))
    assert seen == promised


def test_annealing_returns_everything_at_scale_one_and_still_observes(losses_of: Losses) -> None:
    selector = make(anneal=(0.25, 0.25), reweight="unbiased")
    for epoch in range(4):
        assert selector.is_annealing(epoch) == (epoch in (0, 3))
        for ids in selector.epoch(epoch):
            assert selector.wants_scores == (epoch in (1, 2))
            draw = selector.select(ids, losses_of(ids, epoch))
            if epoch in (0, 3):
                assert draw.positions.tolist() == list(range(ids.size))
                assert draw.ids.tolist() == ids.tolist()
                assert draw.scale.tolist() == [1.0] * ids.size
            else:
                assert draw.ids.size == 3
    assert min(selector.table().column("visits").to_pylist()) >= 2


def test_an_epoch_left_early_is_closed_by_the_next(losses_of: Losses) -> None:
    selector = make()
    for step, ids in enumerate(selector.epoch(0)):
        selector.select(ids, losses_of(ids, step))
        if step == 2:
            break
    trace = train(selector, range(1, 3), losses_of)
    assert {epoch for epoch, _, _, _ in trace} == {1, 2}
    assert selector.state_dict()["epoch_starts"] == [0, 6, 11, 16]


@pytest.mark.parametrize("epoch", [-1, 4, 100])
def test_an_epoch_outside_the_run_is_refused(epoch: int) -> None:
    with pytest.raises(errors.ConfigError, match=rf"epoch must be an integer in \[0, 4\), got {epoch}"):
        next(make().epoch(epoch))


def test_epochs_come_in_order(losses_of: Losses) -> None:
    selector = make()
    with pytest.raises(errors.EpochOrderError, match="opens epoch 1, but the run stands before epoch 0"):
        next(selector.epoch(1))
    train(selector, range(1), losses_of)
    with pytest.raises(errors.EpochOrderError, match="opens epoch 0, but the run stands before epoch 1"):
        next(selector.epoch(0))
    train(selector, range(1, 2), losses_of)


def test_an_epoch_may_be_a_numpy_integer(losses_of: Losses) -> None:
    first, second = make(), make()
    plain = train(first, range(2), losses_of)
    numpy_epochs: Any = np.arange(2)
    assert train(second, numpy_epochs, losses_of) == plain


def test_select_needs_an_open_epoch() -> None:
    selector = make()
    with pytest.raises(errors.EpochOrderError, match="no epoch is open"):
        selector.select(np.arange(10), np.ones(10))


def test_resetting_inside_an_epoch_ends_it_in_words(losses_of: Losses) -> None:
    selector = make()
    steps = selector.epoch(0)
    ids = next(steps)
    selector.select(ids, losses_of(ids, 0))
    selector.reset()
    with contextlib.suppress(errors.EpochOrderError):  # that, or simply its end
        list(steps)
    next(selector.epoch(0))


# -- construction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_epochs": 1.5}, "num_epochs must be an integer of at least 1, got 1.5"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batch_size": 49}, "use a batch_size of at most 48"),
    ],
)
def test_sizes_are_checked_at_construction(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        make(**changes)


def test_a_selection_must_be_one() -> None:
    with pytest.raises(errors.ConfigError, match=r"selection must be an es\.Selection, got 'es'"):
        es.Selector("es", num_samples=10, num_epochs=1, batch_size=5)  # type: ignore[arg-type]


def test_an_exchange_of_another_run_is_refused() -> None:
    selection = es.Selection(es.methods.evolved(), seed=1)
    keeper = LocalRun(RunConfig(selection=selection, num_samples=60, num_epochs=4, batch_size=10))
    with pytest.raises(errors.RunMismatchError, match="seed: run 1, yours 2"):
        es.Selector(
            es.Selection(es.methods.evolved(), seed=2),
            num_samples=60,
            num_epochs=4,
            batch_size=10,
            exchange=Embedded(keeper, Position(0, 1)),
        )


# -- bad input ----------------------------------------------------------------------------------------------------

BAD_CALLS: list[tuple[str, Callable[[NDArray[np.int64]], tuple[Any, Any]], type[errors.EsServiceError]]] = [
    ("nan", lambda ids: (ids, [np.nan] + [1.0] * 9), errors.LossError),
    ("inf last", lambda ids: (ids, [1.0] * 9 + [np.inf]), errors.LossError),
    ("negative", lambda ids: (ids, [1.0] * 9 + [-1.0]), errors.LossError),
    ("too few losses", lambda ids: (ids, [1.0] * 9), errors.ShapeError),
    ("one loss", lambda ids: (ids, 1.0), errors.ShapeError),
    ("no losses", lambda ids: (ids, None), errors.ShapeError),
    ("twice", lambda ids: (np.append(ids[:-1], ids[0]), np.ones(10)), errors.IdError),
    ("outside", lambda ids: (np.append(ids[:-1], 60), np.ones(10)), errors.IdError),
    ("below", lambda ids: (np.append(ids[:-1], -1), np.ones(10)), errors.IdError),
    ("floats", lambda ids: (ids.astype(float), np.ones(10)), errors.ShapeError),
    ("empty", lambda ids: (ids[:0], np.ones(0)), errors.ShapeError),
    ("matrix", lambda ids: (ids.reshape(2, 5), np.ones(10)), errors.ShapeError),
]


@pytest.mark.parametrize(("make_call", "kind"), [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS])
def test_bad_input_changes_nothing(make_call: Callable[..., Any], kind: type[Exception], losses_of: Losses) -> None:
    selector, undisturbed = make(), make()
    expected = train(undisturbed, range(2), losses_of)
    got: Trace = []
    for epoch, step, ids in batches(selector, range(2)):
        if step == 3:
            before = selector.table().to_pydict(), counts(selector)
            with pytest.raises(kind):
                selector.select(*make_call(ids))
            after = selector.table().to_pydict(), counts(selector)
            assert repr(after) == repr(before)
        got.append(one_step(selector, epoch, step, ids, losses_of))
    assert got == expected
    assert repr(selector.table().to_pydict()) == repr(undisturbed.table().to_pydict())


def test_bad_losses_can_be_skipped_and_are_counted() -> None:
    selector = make(on_bad_loss="skip", ratio=0.5)
    for step, ids in enumerate(selector.epoch(0)):
        losses = np.ones(10)
        losses[[1, 4]] = np.nan, np.inf
        draw = selector.select(ids, losses)
        assert draw.ids.size == 5
        assert draw.ids.tolist() == ids[draw.positions].tolist()
        assert not {1, 4} & set(draw.positions.tolist())
        assert selector.ledger.skipped == 2 * (step + 1)
        visits = selector.table().column("visits").to_pylist()
        assert [visits[one] for one in ids[[1, 4]]] == [0, 0]
        if step == 2:
            break


def test_where_too_few_losses_are_good_all_of_them_are_taken() -> None:
    selector = make(on_bad_loss="skip", ratio=0.5)
    ids = next(selector.epoch(0))
    losses = np.full(10, np.nan)
    losses[[2, 7]] = 1.0
    draw = selector.select(ids, losses)
    assert draw.positions.tolist() == [2, 7]
    with pytest.raises(errors.LossError, match="none of the 10 losses is finite"):
        selector.select(ids, np.full(10, np.nan))


def test_negative_losses_are_fine_for_methods_that_ignore_them() -> None:
    selector = make(es.methods.random())
    ids = next(selector.epoch(0))
    assert selector.select(ids, np.full(10, -1.0)).ids.size == 3
    assert selector.table().column("last_loss").to_pylist()[int(ids[0])] == -1.0


# -- draws without losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "num"), [(es.methods.random(), 3), (es.methods.full(), 10)])
def test_methods_that_ignore_losses_draw_without_and_learn_them_later(method: es.methods.Method, num: int) -> None:
    selector = make(method)
    expected_visits, expected_last = np.zeros(60, dtype=int), np.full(60, np.nan)
    for step, ids in enumerate(selector.epoch(0)):
        assert not selector.wants_scores
        draw = selector.select(ids)
        assert draw.ids.size == num
        losses = np.arange(num) + step + 0.5
        selector.observe(losses)
        expected_visits[draw.ids] += 1
        expected_last[draw.ids] = losses
    table = selector.table()
    assert table.column("visits").to_pylist() == expected_visits.tolist()
    assert table.column("selected").to_pylist() == expected_visits.tolist()
    assert np.array_equal(table.column("last_loss").to_numpy(), expected_last, equal_nan=True)
    assert selector.ledger.scored == 0


def test_a_blind_draw_counts_as_selected_even_if_its_losses_never_come() -> None:
    selector = make(es.methods.random())
    selected = np.zeros(60, dtype=int)
    for ids in selector.epoch(0):
        selected[selector.select(ids).ids] += 1
    assert selector.table().column("selected").to_pylist() == selected.tolist()
    assert selector.table().column("visits").to_pylist() == [0] * 60


def test_losses_are_learned_once_and_bad_ones_leave_the_draw_waiting() -> None:
    selector = make(es.methods.random())
    ids = next(selector.epoch(0))
    draw = selector.select(ids)
    before = repr(selector.table().to_pydict())
    for bad in ([1.0, np.nan, 1.0], [1.0, 2.0], 1.0):
        with pytest.raises(errors.InputError):
            selector.observe(bad)
    assert repr(selector.table().to_pydict()) == before
    selector.observe([1.0, 2.0, 3.0])
    selector.observe([9.0, 9.0, 9.0])
    visits = np.array(selector.table().column("visits").to_pylist())
    assert visits[draw.ids].tolist() == [1, 1, 1]
    assert visits.sum() == 3


def test_skipping_bad_losses_of_a_blind_draw_still_counts_it() -> None:
    selector = make(es.methods.random(), on_bad_loss="skip")
    ids = next(selector.epoch(0))
    draw = selector.select(ids)
    selector.observe([1.0, np.nan, 3.0])
    table = selector.table()
    assert [table.column("selected").to_pylist()[one] for one in draw.ids] == [1, 1, 1]
    assert [table.column("visits").to_pylist()[one] for one in draw.ids] == [1, 0, 1]


def test_observing_a_scored_draw_is_ignored(losses_of: Losses) -> None:
    selector = make()
    ids = next(selector.epoch(0))
    selector.select(ids, losses_of(ids, 0))
    before = repr(selector.table().to_pydict())
    selector.observe([1.0, 2.0, 3.0])
    assert repr(selector.table().to_pydict()) == before


def test_annealing_steps_need_no_losses_but_take_them(losses_of: Losses) -> None:
    with pytest.warns(errors.NothingSelectedWarning, match="never selects"):
        selector = make(anneal=(1, 0))
    ids = next(selector.epoch(0))
    assert selector.select(ids).ids.tolist() == ids.tolist()
    selector.observe(losses_of(ids, 0))
    assert sum(selector.table().column("visits").to_pylist()) == 10


# -- saving and loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_a_state_between_epochs_continues_bit_for_bit(done: int, losses_of: Losses) -> None:
    undisturbed, first, second = make(), make(), make()
    expected = train(undisturbed, range(4), losses_of)
    start = train(first, range(done), losses_of)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    assert second.load_state_dict(state) == done
    assert start + train(second, range(done, 4), losses_of) == expected
    assert second.state_dict()["table"] == undisturbed.state_dict()["table"]
    assert counts(second) == counts(undisturbed)


@pytest.mark.parametrize("when", ["before select", "after select"])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 5), (1, 2), (3, 4)])
def test_a_state_inside_an_epoch_continues_bit_for_bit(epoch: int, step: int, when: str, losses_of: Losses) -> None:
    undisturbed, first, second = make(), make(), make()
    expected = train(undisturbed, range(4), losses_of)
    got: Trace = []
    state: dict[str, Any] = {}
    resumed_step = step + (when == "after select")
    for here in batches(first, range(4)):
        if here[:2] == (epoch, step) and when == "before select":
            state = first.state_dict()
            break
        got.append(one_step(first, *here, losses_of))
        if here[:2] == (epoch, step):
            state = first.state_dict()
            break
    is_over = resumed_step == first.steps(epoch)  # behind its last step the state stands before the next epoch
    assert second.load_state_dict(pickle.loads(pickle.dumps(state))) == epoch + is_over
    for resumed, ids in enumerate(() if is_over else second.epoch(epoch), start=resumed_step):
        got.append(one_step(second, epoch, resumed, ids, losses_of))
    got += train(second, range(epoch + 1, 4), losses_of)
    assert got == expected
    assert second.state_dict()["table"] == undisturbed.state_dict()["table"]


def test_a_state_that_was_loaded_can_be_saved_again_at_once(losses_of: Losses) -> None:
    first, second = make(), make()
    for epoch, step, ids in batches(first, range(4)):
        one_step(first, epoch, step, ids, losses_of)
        if (epoch, step) == (1, 1):
            break
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.state_dict() == state


def test_the_ledger_of_a_resumed_run_is_that_of_an_undisturbed_one(losses_of: Losses) -> None:
    undisturbed, first, second = make(), make(), make()
    train(undisturbed, range(2), losses_of)
    state: dict[str, Any] = {}
    for epoch, step, ids in batches(first, range(1)):
        one_step(first, epoch, step, ids, losses_of)
        if step == 2:
            state = first.state_dict()
            break
    second.load_state_dict(state)
    for resumed, ids in enumerate(second.epoch(0), start=3):
        one_step(second, 0, resumed, ids, losses_of)
    train(second, range(1, 2), losses_of)
    assert counts(second) == counts(undisturbed)


def test_saving_disturbs_nothing(losses_of: Losses) -> None:
    undisturbed, saving = make(), make()
    expected = train(undisturbed, range(2), losses_of)
    got: Trace = []
    for epoch, step, ids in batches(saving, range(2)):
        saving.state_dict()
        got.append(one_step(saving, epoch, step, ids, losses_of))
        saving.state_dict()
    assert got == expected
    assert saving.state_dict()["table"] == undisturbed.state_dict()["table"]


def test_saving_between_a_blind_draw_and_its_losses_loses_neither() -> None:
    selector = make(es.methods.random())
    ids = next(selector.epoch(0))
    draw = selector.select(ids)
    selector.state_dict()
    selector.observe([1.0, 2.0, 3.0])
    table = selector.table()
    assert [table.column("selected").to_pylist()[one] for one in draw.ids] == [1, 1, 1]
    assert [table.column("visits").to_pylist()[one] for one in draw.ids] == [1, 1, 1]


def test_loading_goes_back_in_the_same_selector(losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    future = train(selector, range(1, 4), losses_of)
    assert selector.load_state_dict(state) == 1
    assert train(selector, range(1, 4), losses_of) == future


def test_a_state_of_another_run_is_refused_by_name(losses_of: Losses) -> None:
    state = make(seed=1).state_dict()
    selector = make(seed=2)
    train(selector, range(1), losses_of)
    before = selector.state_dict()["table"]
    with pytest.raises(errors.RunMismatchError, match="seed: run 1, yours 2"):
        selector.load_state_dict(state)
    with pytest.raises(errors.RunMismatchError, match="num_samples: run 60, yours 64"):
        make(num_samples=64).load_state_dict(make().state_dict())
    assert selector.state_dict()["table"] == before


@pytest.mark.parametrize(
    "key", ["format", "config", "finished_epochs", "epoch_starts", "table", "share", "step", "ledger"]
)
def test_a_state_with_a_part_missing_is_damaged_and_changes_nothing(key: str, losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    before = selector.state_dict()["table"]
    damaged = {name: value for name, value in make().state_dict().items() if name != key}
    with pytest.raises(errors.StorageError):
        selector.load_state_dict(damaged)
    assert selector.state_dict()["table"] == before
    assert selector.load_state_dict(state) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 1),
        ("table", b""),
        ("table", b"ARROW1 but not really"),
        ("epoch_starts", [0, 6, 12]),
        ("finished_epochs", 3),
        ("step", "three"),
        ("share", "abc"),
        ("ledger", {}),
    ],
)
def test_a_state_with_a_part_changed_is_damaged_and_changes_nothing(key: str, value: Any, losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    with pytest.raises(errors.StorageError):
        selector.load_state_dict({**state, key: value})
    assert selector.state_dict()["table"] == state["table"]
    train(selector, range(1, 2), losses_of)


def test_a_truncated_table_in_a_state_is_damaged(losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    for end in range(0, len(state["table"]), 97):
        with pytest.raises(errors.StorageError):
            selector.load_state_dict({**state, "table": state["table"][:end]})


def test_a_flipped_bit_in_the_table_of_a_state_is_noticed_and_changes_nothing(losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    for place in range(0, len(state["table"]), 61):
        table = bytearray(state["table"])
        table[place] ^= 1 << place % 8
        with pytest.raises(errors.StorageError, match="damaged"):
            selector.load_state_dict({**state, "table": bytes(table)})
    assert selector.state_dict()["table"] == state["table"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("finished_epochs", 0), ("epoch_starts", [0, 7]), ("step", 1), ("sha256", "0" * 64), ("sha256", None)],
)
def test_a_state_whose_numbers_are_not_those_that_were_saved_is_damaged(
    key: str, value: Any, losses_of: Losses
) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    state = selector.state_dict()
    with pytest.raises(errors.StorageError, match="sha256"):
        selector.load_state_dict({**state, key: value})
    with pytest.raises(errors.StorageError, match="sha256"):
        selector.load_state_dict({**state, "ledger": {**state["ledger"], "trained": 7}})
    assert selector.state_dict()["table"] == state["table"]


@pytest.mark.parametrize("state", [None, [], ["format"], "state", b"", 7, 1.5, {}, {"format": []}, object()])
def test_what_is_no_state_at_all_is_refused_in_words(state: Any) -> None:
    with pytest.raises(errors.StorageError, match="the selector state"):
        make().load_state_dict(state)


@pytest.mark.parametrize("table", [None, "ARROW1", 7, [1, 2], bytearray(b"ARROW1")])
@pytest.mark.parametrize("version", [2, 3])
def test_a_table_that_is_no_bytes_is_refused_in_words(table: Any, version: int) -> None:
    with pytest.raises(errors.StorageError, match="expected bytes"):
        make().load_state_dict({**make().state_dict(), "format": version, "table": table})


def test_a_state_of_the_format_before_is_read(losses_of: Losses) -> None:
    """It has no digest: the table's columns, ids and length are what there is to check."""
    selector = make()
    train(selector, range(1), losses_of)
    state = {**selector.state_dict(), "format": 2}
    del state["sha256"]
    later = make()
    assert later.load_state_dict(state) == 1
    assert later.state_dict()["table"] == state["table"]
    with pytest.raises(errors.StorageError):
        make().load_state_dict({**state, "table": state["table"][:-40]})


def test_reset_forgets_everything(losses_of: Losses) -> None:
    selector = make()
    first = train(selector, range(2), losses_of)
    selector.reset()
    assert repr(selector.table().to_pydict()) == repr(make().table().to_pydict())
    assert counts(selector) == (0, 0, 0, 0, 0.0)
    assert train(selector, range(2), losses_of) == first


# -- figures ------------------------------------------------------------------------------------------------------


def test_the_ledger_counts_samples_by_hand(losses_of: Losses) -> None:
    """4 epochs of 60: annealed, then two of 48 at b/B = 0.3, then annealed."""
    selector = make(anneal=(0.25, 0.25))
    train(selector, range(4), losses_of)
    ledger = selector.ledger
    drawn_per_epoch = 4 * 3 + 3  # four batches of 10, one of 8: ⌈2.4⌉ = 3
    assert ledger.trained == 60 + 2 * drawn_per_epoch + 60
    assert ledger.scored == 60 + 48 + 48 + 60
    assert ledger.full == 240
    assert ledger.full_steps == pytest.approx(24)
    assert ledger.saving()["samples"] == pytest.approx(1 - ledger.trained / 240)
    assert ledger.measured_steps == 0  # every step was scored: none cost what a step of full training costs


def test_full_steps_are_measured_where_they_were_not_scored(losses_of: Losses) -> None:
    """12 steps of two annealed epochs, whose losses come from training; the first 3 warm up."""
    selector = make(anneal=(0.25, 0.25))
    for epoch in range(4):
        for ids in selector.epoch(epoch):
            losses = losses_of(ids, epoch)
            if selector.wants_scores:
                selector.select(ids, losses)
            else:
                selector.select(ids)
                selector.observe(losses)
    assert selector.ledger.measured_steps == 12 - 3
    assert selector.ledger.scored == 48 + 48


@pytest.mark.parametrize("draw", ["race", "systematic", "priority", "pivotal", "replacement"])
def test_the_unbiased_scale_is_unbiased_over_seeds(draw: str, losses_of: Losses) -> None:
    """mean(scale · loss) over the b estimates mean(loss) over the B."""
    ids = np.arange(20)
    losses = losses_of(ids, 0).astype(np.float64) ** 3
    estimates, biased = [], []
    for seed in range(1500):
        selector = make(es.methods.loss(), draw=draw, reweight="unbiased", seed=seed, batch_size=20, ratio=0.25)
        next(selector.epoch(0))
        drawn = selector.select(ids, losses)
        assert drawn.scale.dtype == np.float32
        estimates.append(float(np.mean(drawn.scale * losses[drawn.positions])))
        biased.append(float(np.mean(losses[drawn.positions])))
    error = float(np.std(estimates)) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(losses.mean(), abs=4 * error + 1e-5)
    assert np.mean(biased) > losses.mean() + 20 * error


def test_without_reweighting_every_scale_is_one(losses_of: Losses) -> None:
    assert {tuple(scale) for _, _, _, scale in train(make(), range(2), losses_of)} == {(1.0, 1.0, 1.0)}


def test_heavier_losses_are_selected_more_often(losses_of: Losses) -> None:
    selector = make(prune_ratio=0.0, num_epochs=40)
    for _, _, ids in batches(selector, range(40)):
        selector.select(ids, np.where(ids < 30, 0.1, 5.0))
    selected = np.array(selector.table().column("selected").to_pylist())
    assert selected[30:].sum() > 5 * selected[:30].sum()


def test_the_table_is_a_copy_with_the_columns_promised(losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    table = selector.table()
    before = repr(table.to_pydict())
    assert table.column_names == [
        "id",
        "s",
        "w",
        "last_loss",
        "loss_mean",
        "loss_var",
        "visits",
        "selected",
        "last_step",
    ]
    train(selector, range(1, 2), losses_of)
    assert repr(table.to_pydict()) == before


def test_closing_and_logging_in_one_process_do_nothing(losses_of: Losses) -> None:
    selector = make()
    train(selector, range(1), losses_of)
    selector.log(accuracy=0.5)
    selector.close()
    assert selector.table().num_rows == 60
