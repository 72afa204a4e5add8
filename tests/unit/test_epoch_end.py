"""The end of an epoch, in loops that count their steps and never ask for a batch behind the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage
from es_service.storage.table_files import encode_table

I64 = NDArray[np.int64]
NUM, EPOCHS, BATCH = 46, 3, 10  # the last meta-batch of an epoch has 6
SIZES: dict[str, Any] = {"num_samples": NUM, "num_epochs": EPOCHS, "batch_size": BATCH}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(name: str = "es", *, clock: Any = None, **settings: Any) -> es.Selector:
    selection = preset(name, **{"anneal": (0, 0), "seed": 5, **settings})
    return es.Selector(selection, **SIZES, clock=clock or Clock())


def observed(ids: I64, epoch: int) -> dict[str, NDArray[np.float32]]:
    easy = (ids < 12).astype(np.float32)
    return {"loss": (2 + np.sin(ids + epoch) - easy).astype(np.float32), "correct": easy, "confidence": easy}


def one_step(selector: es.Selector, epoch: int, ids: I64) -> list[int]:
    if selector.wants_scores:
        return selector.select(ids, observed(ids, epoch)).ids.tolist()
    draw = selector.select(ids)
    selector.observe(observed(draw.ids, epoch))
    return draw.ids.tolist()


def counted(batches: Iterable[Any], num_steps: int) -> Iterator[Any]:
    """Take so many batches and never ask for another, as a framework does; the generator stays suspended."""
    KEPT.append(iterator := iter(batches))
    for _ in range(num_steps):
        yield next(iterator)


def steps(selector: es.Selector, epoch: int, *, asks_on: bool) -> Iterator[I64]:
    """Yield an epoch's batches; without `asks_on`, as a framework that counts them takes them."""
    batches = selector.epoch(epoch)
    if asks_on:
        yield from batches
    else:
        yield next(batches)
        yield from counted(batches, selector.steps(epoch) - 1)


KEPT: list[Iterator[Any]] = []


def train(selector: es.Selector, epochs: range, *, asks_on: bool) -> list[list[int]]:
    return [one_step(selector, epoch, ids) for epoch in epochs for ids in steps(selector, epoch, asks_on=asks_on)]


def counts(selector: es.Selector) -> tuple[float, ...]:
    ledger = selector.ledger
    return ledger.scored, ledger.trained, ledger.full, ledger.steps, ledger.full_steps, ledger.measured_steps


# -- behind the last step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"), [("es", {}), ("random", {}), ("es", {"anneal": (0.5, 0)}), ("es", {"on_bad_loss": "skip"})]
)
def test_a_state_taken_right_after_the_last_step_is_continued_with_the_next_epoch(
    name: str, settings: dict[str, Any]
) -> None:
    expected = train(undisturbed := make(name, **settings), range(EPOCHS), asks_on=True)
    drawn: list[list[int]] = []
    state: dict[str, Any] | None = None
    for epoch in range(EPOCHS):
        selector = make(name, **settings)
        if state is not None:
            assert selector.load_state_dict(state) == epoch
        drawn += train(selector, range(epoch, epoch + 1), asks_on=False)
        state = selector.state_dict()
        assert state["share"] is None
        assert state["finished_epochs"] == epoch + 1
    assert drawn == expected
    assert encode_table(selector.table()) == encode_table(undisturbed.table())
    assert counts(selector)[:-1] == counts(undisturbed)[:-1]  # each Selector warms up anew: it measures fewer steps


def test_the_next_epoch_of_the_same_selector_opens_behind_the_last_step() -> None:
    expected = train(undisturbed := make(), range(EPOCHS), asks_on=True)
    assert train(selector := make(), range(EPOCHS), asks_on=False) == expected
    assert selector.state_dict()["table"] == undisturbed.state_dict()["table"]
    assert counts(selector) == counts(undisturbed)


def test_what_can_be_asked_of_an_epoch_can_be_asked_behind_its_last_step() -> None:
    selector = make("infobatch")
    train(selector, range(1), asks_on=False)
    planned = [ids.size for ids in steps(selector, 1, asks_on=False) if one_step(selector, 1, ids)]
    assert selector.steps(1) == len(planned) < selector.config.num_steps(1, 1)  # exact, as inside the epoch
    assert selector.learning_rate_factor == 1.0
    assert not selector.wants_scores
    with pytest.raises(errors.EpochOrderError, match=r"no epoch is open: call select inside .*; epoch 1 is over"):
        selector.select(np.arange(BATCH), np.ones(BATCH))
    selector.observe(np.ones(BATCH))  # of a draw that was scored, say: ignored


def test_a_step_that_is_selected_in_parts_is_over_with_the_last_of_them() -> None:
    selector = make()
    for ids in counted(selector.epoch(0), 5):
        for part in (ids[:4], ids[4:]):
            selector.select(part, observed(part, 0))
    assert selector.state_dict()["finished_epochs"] == 1
    assert selector.table().column("visits").to_pylist() == [1] * NUM


def test_a_blind_last_step_waits_for_its_losses_or_for_finish_epoch() -> None:
    selector = make("random")
    for ids in counted(selector.epoch(0), 5):
        selector.select(ids)
    assert selector.state_dict()["step"] == 4  # its losses may still come, so it would be done again
    selector.finish_epoch()
    selector.finish_epoch()  # nothing is open: nothing to do
    assert (selector.state_dict()["finished_epochs"], selector.ledger.steps) == (1, 5)
    assert sum(selector.table().column("selected").to_pylist()) == selector.ledger.trained


def test_the_seconds_of_the_last_step_are_counted_whether_or_not_the_loop_asks_on() -> None:
    ledgers = []
    for asks_on in (True, False):
        selector = make("full", clock=(clock := Clock()))
        for epoch in range(2):
            for ids in steps(selector, epoch, asks_on=asks_on):
                draw = selector.select(ids)
                clock.now += 2.0  # training
                selector.observe(observed(draw.ids, epoch))
                clock.now += 1.0  # writing a log, say
            clock.now += 100.0  # evaluating
        ledgers.append(selector.ledger)
    assert [one.total_s for one in ledgers] == [30.0, 28.0]  # but for the last second of each epoch
    assert [one.steps for one in ledgers] == [10, 10]
    assert [one.measured_s / one.measured_steps for one in ledgers] == [3.0, 3.0]


def test_a_last_step_that_closed_the_epoch_before_it_was_trained_is_measured_whole() -> None:
    clock = Clock()
    selector = es.Selector(preset("full"), **{**SIZES, "num_samples": 40}, clock=clock)
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            draw = selector.select(ids)
            clock.now += 1.0  # forward
            selector.observe(observed(draw.ids, epoch))
            clock.now += 2.0  # backward
    assert (selector.ledger.measured_s, selector.ledger.measured_steps, selector.ledger.total_s) == (15.0, 5, 24.0)


def test_hidden_samples_are_seen_behind_the_last_step_without_asking_on() -> None:
    whole, selector = make("kakurenbo"), make("kakurenbo")
    for one, asks_on in ((whole, True), (selector, False)):
        for epoch in range(EPOCHS):
            for ids in steps(one, epoch, asks_on=asks_on):
                one_step(one, epoch, ids)
            for ids in one.hidden_batches():
                one.refresh(ids, observed(ids, epoch))
            assert one.state_dict()["finished_epochs"] == epoch + 1
    assert whole.ledger.scored > 0  # something was hidden
    assert counts(selector) == counts(whole)
    assert encode_table(selector.table()) == encode_table(whole.table())


# -- an epoch that is cut short -----------------------------------------------------------------------------------


def test_an_epoch_that_is_cut_short_counts_as_finished() -> None:
    selector = make()
    seen: list[int] = []
    for ids in counted(selector.epoch(0), 2):
        one_step(selector, 0, ids)
        seen += ids.tolist()
    selector.finish_epoch()
    state = selector.state_dict()
    assert (state["finished_epochs"], state["share"]) == (1, None)
    visits = np.array(selector.table().column("visits").to_pylist())
    assert sorted(np.flatnonzero(visits).tolist()) == sorted(seen)
    assert (selector.ledger.full, selector.ledger.steps) == (2 * BATCH, 2)
    resumed = make()
    assert resumed.load_state_dict(state) == 1
    assert train(resumed, range(1, EPOCHS), asks_on=False) == train(selector, range(1, EPOCHS), asks_on=True)


def test_a_loop_whose_epoch_is_finished_inside_it_ends() -> None:
    selector = make()
    for step, ids in enumerate(selector.epoch(0)):
        one_step(selector, 0, ids)
        if step == 1:
            selector.finish_epoch()
    assert (step, selector.state_dict()["finished_epochs"]) == (1, 1)


def test_ranks_may_stop_at_different_steps() -> None:
    keeper = LocalRun(RunConfig.of(preset("es", anneal=(0, 0)), 60, EPOCHS, 5))
    ranks = [
        es.Selector(
            keeper.config.selection,
            num_samples=60,
            num_epochs=EPOCHS,
            batch_size=5,
            exchange=Embedded(keeper, Position(rank, 2)),
        )
        for rank in range(2)
    ]
    for rank, steps in zip(ranks, (1, 3), strict=True):
        for ids in counted(rank.epoch(0), steps):
            one_step(rank, 0, ids)
    for rank in ranks:
        rank.finish_epoch()
    assert ranks[0].state_dict()["epoch_starts"] == [0, 6]
    assert sum(ranks[0].table().column("visits").to_pylist()) == 4 * 5


# -- streams ------------------------------------------------------------------------------------------------------


def rows(num: int = 4) -> list[dict[str, I64]]:
    return [{"id": np.arange(start, start + BATCH)} for start in range(0, num * BATCH, BATCH)]


def test_a_stream_whose_length_is_known_closes_behind_its_last_batch() -> None:
    selector = make()
    for epoch in range(2):
        for row in counted(selector.stream(epoch, rows()), 4):
            one_step(selector, epoch, row["id"])
        assert selector.state_dict()["finished_epochs"] == epoch + 1


def test_a_stream_without_a_length_is_closed_by_finish_epoch() -> None:
    selector = make()
    for row in counted(selector.stream(0, iter(rows())), 4):
        one_step(selector, 0, row["id"])
    with pytest.raises(errors.EpochOrderError, match=r"call selector\.finish_epoch\(\) first"):
        selector.state_dict()
    selector.finish_epoch()
    assert (selector.state_dict()["finished_epochs"], selector.state_dict()["epoch_starts"]) == (1, [0, 4])


def test_a_stream_that_is_read_to_its_end_reads_its_source_to_its_end() -> None:
    ended = []

    class Loader:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[dict[str, I64]]:
            yield from rows()
            ended.append(True)  # workers are joined here, say

    selector = make()
    for row in selector.stream(0, Loader()):
        one_step(selector, 0, row["id"])
    assert ended == [True]
    assert (selector.ledger.steps, selector.state_dict()["finished_epochs"]) == (4, 1)


@pytest.mark.parametrize(("promised", "come"), [(3, 4), (5, 4)])
def test_a_length_that_is_wrong_loses_no_batch_without_a_word(promised: int, come: int) -> None:
    class Loader(list[dict[str, I64]]):
        def __len__(self) -> int:
            return promised

    selector, made = make(), 0
    try:
        for row in selector.stream(0, Loader(rows(come))):
            one_step(selector, 0, row["id"])
            made += 1
    except errors.EpochOrderError as error:
        assert made == promised < come
        assert "more batches come than len(batches)=3 says" in str(error)  # noqa: PT017
    else:
        assert made == come < promised
    assert selector.state_dict()["finished_epochs"] == 1


def test_the_length_of_a_loader_of_an_iterable_data_set_is_taken_for_the_guess_it_is() -> None:
    from torch.utils import data

    class Ids(data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(40))

        def __len__(self) -> int:
            return 30

    selector = make()
    made = 0
    for ids in selector.stream(0, data.DataLoader(Ids(), batch_size=BATCH), ids=lambda batch: batch):
        selector.select(ids, np.ones(BATCH))
        made += 1
    assert made == 4


# -- where closing fails ------------------------------------------------------------------------------------------


NEXT: dict[str, Callable[[es.Selector, Iterator[I64]], Any]] = {
    "the loop": lambda _, batches: next(batches),
    "a state": lambda selector, _: selector.state_dict(),
    "the next epoch": lambda selector, _: next(selector.epoch(1)),
    "the end": lambda selector, _: selector.finish_epoch(),
}


@pytest.mark.parametrize("what_comes_next", NEXT)
def test_a_snapshot_that_cannot_be_written_costs_no_draw_and_is_said_by_whatever_comes_next(
    what_comes_next: str, tmp_path: Path
) -> None:
    config = RunConfig.of(preset("es", anneal=(0, 0)), NUM, EPOCHS, BATCH)
    storage = RunStorage(str(tmp_path), "run")
    storage.begin(config)
    (tmp_path / "run" / "snapshots").write_text("a file where the folder should be")
    selector = es.Selector(config.selection, **SIZES, exchange=Embedded(LocalRun(config), Position(0, 1), storage))
    batches = selector.epoch(0)
    for _ in range(5):
        ids = next(batches)
        assert len(one_step(selector, 0, ids)) == -(-ids.size // 4)
    with pytest.raises(errors.StorageError):
        NEXT[what_comes_next](selector, batches)
    assert next(selector.epoch(1)).size == BATCH  # the epoch is finished all the same
