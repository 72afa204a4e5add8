"""The local_run: lifecycle, who may do what when, several ranks, generations, going back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.local_run import LocalRun
from es_service.selection.run import Caller, RunConfig, RunState, Share

MakeConfig = Callable[..., RunConfig]
Losses = Callable[[NDArray[np.int64], int], NDArray[np.float32]]

ALONE = Caller(0, "a")


def joined(config: RunConfig, world_size: int = 1, generation: str = "a") -> tuple[LocalRun, list[Caller]]:
    keeper = LocalRun(config)
    callers = [Caller(rank, generation) for rank in range(world_size)]
    for caller in callers:
        keeper.join(caller, world_size)
    return keeper, callers


def opened(keeper: LocalRun, caller: Caller, epoch: int) -> Share:
    share = keeper.open_epoch(caller, epoch)
    assert isinstance(share, Share)
    return share


def train(keeper: LocalRun, callers: list[Caller], epoch: int, losses_of: Losses) -> list[list[int]]:
    """One epoch, the ranks in lockstep; return the ids drawn at each step."""
    shares = [opened(keeper, caller, epoch) for caller in callers]
    size, drawn = keeper.config.batch_size, []
    for step in range(-(-shares[0].ids.size // size)):
        for caller, share in zip(callers, shares, strict=True):
            ids = share.ids[step * size : (step + 1) * size]
            run_step = share.first_step + step
            num = keeper.config.selection.num_selected(ids.size)
            drawn.append(keeper.step(caller, ids, {"loss": losses_of(ids, run_step)}, num, run_step).ids.tolist())
    for caller in callers:
        keeper.close_epoch(caller, epoch)
    return drawn


def table(keeper: LocalRun) -> bytes:
    return keeper.engine.table.copy_records().tobytes()


# -- RunConfig ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_samples", "num_epochs", "batch_size"])
@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "3", None, float("nan")])
def test_a_count_must_be_an_integer_of_at_least_one(make_config: MakeConfig, name: str, bad: Any) -> None:
    with pytest.raises(errors.ConfigError, match=f"{name} must be an integer of at least 1, got {bad!r}"):
        make_config(**{name: bad})


def test_numpy_counts_become_plain_ones(make_config: MakeConfig) -> None:
    config = make_config(num_samples=np.int64(24))
    assert type(config.num_samples) is int
    assert config == make_config()


def test_a_batch_larger_than_the_smallest_share_is_refused_with_the_largest_that_fits(make_config: MakeConfig) -> None:
    make_config(batch_size=6, prune_ratio=0.5).check_world(2)
    with pytest.raises(
        errors.ConfigError, match=r"batch_size=7 .*24 samples, pruned by 0\.5 and split over 2 rank.*at most 6"
    ):
        make_config(batch_size=7, prune_ratio=0.5).check_world(2)


@pytest.mark.parametrize(
    ("world", "batch", "steps"), [(1, 6, 4), (1, 5, 5), (2, 6, 2), (4, 4, 2), (5, 3, 1), (24, 1, 1)]
)
def test_steps_are_told_ahead(make_config: MakeConfig, world: int, batch: int, steps: int) -> None:
    assert make_config(batch_size=batch).num_steps(0, world) == steps


def test_steps_of_a_pruned_epoch_and_of_an_annealing_one(make_config: MakeConfig) -> None:
    config = make_config(prune_ratio=0.5, anneal=(0.25, 0.25))
    assert [config.num_steps(epoch, 1) for epoch in range(4)] == [4, 2, 2, 4]
    assert [config.is_annealing(epoch) for epoch in range(4)] == [True, False, False, True]


# -- lifecycle ----------------------------------------------------------------------------------------------------


def test_the_first_epoch_keeps_what_was_never_observed_and_its_steps_are_known_before() -> None:
    for method, prunes_unobserved, steps in (
        (es.methods.evolved(), False, [4, 2]),
        (es.methods.evolved(), True, [2, 2]),
        (es.methods.random_subset(), False, [2, 2]),
    ):
        selection = es.Selection(
            method, prune_ratio=0.5, ratio=1.0, anneal=(0, 0), prune_unobserved=prunes_unobserved, seed=1
        )
        selector = es.Selector(selection, num_samples=40, num_epochs=2, batch_size=10)
        assert [selector.steps(epoch) for epoch in range(2)] == steps
        for epoch in range(2):
            assert len([selector.select(ids_B, np.ones(10)) for ids_B in selector.epoch(epoch)]) == steps[epoch]


def test_a_run_of_one_rank_from_its_first_epoch_to_its_last(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    for epoch in range(4):
        assert keeper.open_epoch_number is None
        assert keeper.finished_epochs == epoch
        drawn = train(keeper, callers, epoch, losses_of)
        assert [len(ids) for ids in drawn] == [3] * 4
    assert keeper.finished_epochs == 4
    assert keeper.state().epoch_starts == (0, 4, 8, 12, 16)
    assert keeper.engine.table.column("visits").tolist() == [4] * 24
    assert int(keeper.engine.table.column("selected").sum()) == 4 * 4 * 3


def test_nobody_may_act_before_joining(make_config: MakeConfig) -> None:
    keeper = LocalRun(make_config())
    before = table(keeper)
    ids, seen = np.array([0, 1]), {"loss": np.ones(2, dtype=np.float32)}
    for act in (
        lambda: keeper.open_epoch(ALONE, 0),
        lambda: keeper.step(ALONE, ids, seen, 1, 0),
        lambda: keeper.record(ALONE, ids, seen, np.array([0]), 0),
        lambda: keeper.close_epoch(ALONE, 0),
    ):
        with pytest.raises(errors.EpochOrderError):
            act()
    assert table(keeper) == before


@pytest.mark.parametrize("epoch", [-1, 1, 2, 99])
def test_the_first_epoch_is_zero(make_config: MakeConfig, epoch: int) -> None:
    keeper, _ = joined(make_config())
    with pytest.raises(errors.EpochOrderError, match=f"rank 0 opens epoch {epoch}, but the run stands before epoch 0"):
        keeper.open_epoch(ALONE, epoch)
    assert keeper.open_epoch_number is None


def test_an_epoch_opens_once_and_in_order(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    opened(keeper, ALONE, 0)
    with pytest.raises(errors.EpochOrderError, match="rank 0 opens epoch 0 a second time"):
        keeper.open_epoch(ALONE, 0)
    with pytest.raises(errors.EpochOrderError, match="opens epoch 1, but the run stands before epoch 0"):
        keeper.open_epoch(ALONE, 1)
    keeper.close_epoch(ALONE, 0)
    with pytest.raises(errors.EpochOrderError, match="opens epoch 0, but the run stands before epoch 1"):
        keeper.open_epoch(ALONE, 0)
    train(keeper, callers, 1, losses_of)


def test_steps_need_an_open_epoch_and_leave_no_trace_without(make_config: MakeConfig) -> None:
    keeper, _ = joined(make_config())
    before = table(keeper)
    ids, seen = np.array([0, 1]), {"loss": np.ones(2, dtype=np.float32)}
    with pytest.raises(errors.EpochOrderError, match="rank 0 has no epoch open"):
        keeper.step(ALONE, ids, seen, 1, 0)
    with pytest.raises(errors.EpochOrderError, match="rank 0 has no epoch open"):
        keeper.record(ALONE, ids, seen, np.array([0]), 0)
    with pytest.raises(errors.EpochOrderError, match="rank 0 has no epoch open"):
        keeper.close_epoch(ALONE, 0)
    assert table(keeper) == before


def test_closing_another_epoch_than_the_open_one_is_refused(make_config: MakeConfig) -> None:
    keeper, _ = joined(make_config())
    opened(keeper, ALONE, 0)
    with pytest.raises(errors.EpochOrderError, match="closes epoch 1, but epoch 0 is open"):
        keeper.close_epoch(ALONE, 1)
    assert keeper.open_epoch_number == 0
    assert keeper.close_epoch(ALONE, 0)


# -- several ranks ------------------------------------------------------------------------------------------------


def test_ranks_share_one_plan_and_wait_for_each_other(make_config: MakeConfig) -> None:
    keeper, callers = joined(make_config(batch_size=4), world_size=3)
    shares = [opened(keeper, caller, 0) for caller in callers]
    assert sorted(np.concatenate([share.ids for share in shares]).tolist()) == list(range(24))
    assert {share.first_step for share in shares} == {0}
    assert keeper.close_epoch(callers[1], 0) is False
    assert keeper.open_epoch(callers[1], 1) == [0, 2]
    assert keeper.close_epoch(callers[0], 0) is False
    assert keeper.open_epoch(callers[1], 1) == [2]
    assert keeper.open_epoch(callers[0], 1) == [2]
    with pytest.raises(errors.EpochOrderError, match="rank 0 has no epoch open"):
        keeper.close_epoch(callers[0], 0)
    with pytest.raises(errors.EpochOrderError, match="opens epoch 1, but the run stands before epoch 0"):
        keeper.open_epoch(callers[2], 1)  # it has not closed the last one itself
    assert keeper.close_epoch(callers[2], 0) is True
    assert opened(keeper, callers[1], 1).first_step == 2


def test_a_rank_that_comes_late_gets_the_plan_of_the_first(make_config: MakeConfig, losses_of: Losses) -> None:
    """The table moves in between; the plan is drawn once."""
    config = make_config(batch_size=6, prune_ratio=0.5)
    shares = []
    for late in (False, True):
        keeper, callers = joined(config, world_size=2)
        train(keeper, callers, 0, losses_of)
        first = opened(keeper, callers[0], 1)
        if late:
            keeper.step(callers[0], first.ids[:6], {"loss": 50 * losses_of(first.ids[:6], 3)}, 3, first.first_step)
        shares.append((first.ids.tolist(), opened(keeper, callers[1], 1).ids.tolist()))
    assert shares[0] == shares[1]
    assert not set(shares[0][0]) & set(shares[0][1])


def test_the_order_in_which_ranks_report_does_not_matter(make_config: MakeConfig, losses_of: Losses) -> None:
    tables, draws = [], []
    for order in itertools.permutations(range(3)):
        keeper, callers = joined(make_config(batch_size=4), world_size=3)
        shares = [opened(keeper, caller, 0) for caller in callers]
        drawn = {}
        for rank in order:
            for step in range(2):
                ids = shares[rank].ids[step * 4 : (step + 1) * 4]
                seen = {"loss": losses_of(ids, step)}
                drawn[rank, step] = keeper.step(callers[rank], ids, seen, 2, step).ids.tolist()
        draws.append(sorted(drawn.items()))
        tables.append(table(keeper))
    assert len(set(tables)) == 1
    assert all(one == draws[0] for one in draws)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (5, 1)])
def test_a_rank_outside_the_world_cannot_join(make_config: MakeConfig, rank: int, world: int) -> None:
    keeper, _ = joined(make_config())
    with pytest.raises(errors.ConfigError, match=rf"rank {rank} is outside \[0, world_size={world}\)"):
        keeper.join(Caller(rank, "b"), world)
    assert keeper.generation == "a"


def test_ranks_of_one_generation_must_agree_on_their_number(make_config: MakeConfig) -> None:
    keeper = LocalRun(make_config())
    keeper.join(Caller(0, "a"), 2)
    with pytest.raises(errors.EpochOrderError, match="rank 1 joined with world_size=3, the ranks before it with 2"):
        keeper.join(Caller(1, "a"), 3)
    assert keeper.world_size == 2


def test_more_ranks_than_the_plan_can_feed_cannot_join(make_config: MakeConfig) -> None:
    keeper, _ = joined(make_config())
    with pytest.raises(errors.ConfigError, match="batch_size=6 is larger than the plan"):
        keeper.join(Caller(0, "b"), 5)
    assert keeper.generation == "a"
    opened(keeper, ALONE, 0)


@pytest.mark.parametrize("rank", [2, 7, -1])
def test_a_rank_that_the_generation_does_not_have_is_refused_and_changes_nothing(
    make_config: MakeConfig, rank: int
) -> None:
    keeper, callers = joined(make_config(), world_size=2)
    with pytest.raises(errors.EsServiceError):
        keeper.open_epoch(Caller(rank, "a"), 0)
    for caller in callers:
        opened(keeper, caller, 0)
    assert [keeper.close_epoch(caller, 0) for caller in callers] == [False, True]


# -- generations -----------------------------------------------------------------------------------------------------


def test_a_new_generation_retires_the_old_one(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    train(keeper, callers, 0, losses_of)
    opened(keeper, ALONE, 1)
    fresh = Caller(0, "b")
    keeper.join(fresh, 1)
    assert keeper.generation == "b"
    assert keeper.open_epoch_number is None
    before = table(keeper)
    ids, seen = np.array([0, 1]), {"loss": np.ones(2, dtype=np.float32)}
    for act in (
        lambda: keeper.open_epoch(ALONE, 1),
        lambda: keeper.step(ALONE, ids, seen, 1, 0),
        lambda: keeper.record(ALONE, ids, seen, np.array([0]), 0),
        lambda: keeper.close_epoch(ALONE, 1),
        lambda: keeper.check(ALONE),
    ):
        with pytest.raises(errors.EpochOrderError, match="a newer one has fenced"):
            act()
    assert table(keeper) == before
    keeper.check(fresh)
    train(keeper, [fresh], 1, losses_of)


def test_joining_again_in_the_same_generation_keeps_the_epoch_open(make_config: MakeConfig) -> None:
    keeper, _ = joined(make_config())
    opened(keeper, ALONE, 0)
    keeper.join(ALONE, 1)
    assert keeper.open_epoch_number == 0
    assert keeper.close_epoch(ALONE, 0)


def test_a_new_generation_may_have_another_number_of_ranks(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config(), world_size=1)
    train(keeper, callers, 0, losses_of)
    fresh = [Caller(rank, "b") for rank in range(2)]
    for caller in fresh:
        keeper.join(caller, 2)
    assert {opened(keeper, caller, 1).ids.size for caller in fresh} == {12}


# -- going back ---------------------------------------------------------------------------------------------------


def test_restoring_repeats_the_future_bit_for_bit(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config(prune_ratio=0.25))
    train(keeper, callers, 0, losses_of)
    state = keeper.state()
    future = [train(keeper, callers, epoch, losses_of) for epoch in (1, 2)]
    end = table(keeper)
    keeper.restore(state)
    assert keeper.finished_epochs == 1
    assert [train(keeper, callers, epoch, losses_of) for epoch in (1, 2)] == future
    assert table(keeper) == end
    other, callers = joined(make_config(prune_ratio=0.25))
    other.restore(state)
    assert [train(other, callers, epoch, losses_of) for epoch in (1, 2)] == future


def test_a_state_is_a_copy(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    state = keeper.state()
    blank = state.records.tobytes()
    train(keeper, callers, 0, losses_of)
    assert state.records.tobytes() == blank
    keeper.restore(state)
    state.records["visits"] = 9
    assert table(keeper) == blank


def test_restoring_closes_what_was_open(make_config: MakeConfig) -> None:
    keeper, callers = joined(make_config(), world_size=2)
    state = keeper.state()
    for caller in callers:
        opened(keeper, caller, 0)
    keeper.restore(state)
    assert keeper.open_epoch_number is None
    with pytest.raises(errors.EpochOrderError, match="no epoch open"):
        keeper.close_epoch(callers[0], 0)
    for caller in callers:
        opened(keeper, caller, 0)


def test_a_state_of_another_run_is_refused_and_changes_nothing(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    train(keeper, callers, 0, losses_of)
    before = table(keeper)
    small = LocalRun(make_config(num_samples=12)).state()
    with pytest.raises(errors.StorageError, match="holds 12 samples, expected 24"):
        keeper.restore(small)
    good = keeper.state()
    with pytest.raises(errors.StorageError, match="2 epoch starts, expected 4 for as many epochs"):
        keeper.restore(RunState(good.records, 3, good.epoch_starts))
    assert table(keeper) == before
    assert keeper.finished_epochs == 1


def test_reset_stands_before_epoch_zero_again(make_config: MakeConfig, losses_of: Losses) -> None:
    keeper, callers = joined(make_config())
    blank = table(keeper)
    first = train(keeper, callers, 0, losses_of)
    opened(keeper, ALONE, 1)
    keeper.reset()
    assert (keeper.finished_epochs, keeper.open_epoch_number) == (0, None)
    assert keeper.state().epoch_starts == (0,)
    assert table(keeper) == blank
    assert train(keeper, callers, 0, losses_of) == first


def test_a_run_too_long_for_its_step_counter_is_refused_before_it_opens(make_config: MakeConfig) -> None:
    keeper, _ = joined(make_config(batch_size=1))
    keeper.restore(RunState(keeper.state().records, 0, (2**31 - 20,)))
    with pytest.raises(errors.ConfigError, match="would pass 2,147,483,647 steps"):
        keeper.open_epoch(ALONE, 0)
    assert keeper.open_epoch_number is None


def test_annealing_epochs_are_never_pruned(losses_of: Losses) -> None:
    selection = Selection(methods.evolved(), ratio=0.5, prune_ratio=0.5, anneal=(0.25, 0.25))
    keeper, callers = joined(RunConfig(selection=selection, num_samples=24, num_epochs=4, batch_size=6))
    sizes = [sum(len(ids) for ids in train(keeper, callers, epoch, losses_of)) for epoch in range(4)]
    assert sizes == [12, 6, 6, 12]  # half of 24, of 12, of 12, of 24: this caller halves annealing epochs too


def test_more_ranks_than_samples_are_not_told_to_take_a_batch_of_0(make_config: MakeConfig) -> None:
    with pytest.raises(errors.ConfigError, match="leave 0 each; use fewer ranks") as caught:
        make_config(batch_size=6).check_world(25)
    assert "at most 0" not in str(caught.value)
