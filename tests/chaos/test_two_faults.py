"""Storage that fails and a server that is killed, at the same time: nothing that a rank reported is lost silently."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import driving
import faulty_files
import local
import pytest

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.selection.run import RunConfig
from es_service.storage import runs
from es_service.storage.table_files import encode_table

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot write its storage")

Serve = Callable[..., local.Local]
EXCHANGES = ["sync", "leased", "prefetch"]


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    faulty_files.register()
    served: list[local.Local] = []

    def make(selection: es.Selection, count: int = 1) -> local.Local:
        config = RunConfig(selection=selection, **driving.SHAPE)
        served.append(local.Local(f"faulty://{folder}", config, count))
        return served[-1]

    yield make
    faulty_files.mend(folder)
    for one in served:
        one.finish()


def stored_table(folder: Path) -> bytes:
    return encode_table(runs.RunStorage(str(folder), "mine").table())


def expect_undisturbed(
    selection: es.Selection, selectors: list[es.Selector], drawn: list[tuple[int, int, int, list[int]]], folder: Path
) -> None:
    found, expected = driving.outcome(selectors, drawn), driving.undisturbed(selection, len(selectors))
    assert found.drawn == sorted(expected.drawn)
    assert found.table == expected.table
    assert stored_table(folder) == expected.table


@pytest.mark.parametrize(("world_size", "shards"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_server_killed_in_a_close_that_it_could_not_write_gets_everything_again(
    exchange: str, world_size: int, shards: int, epoch: int, serve: Serve, folder: Path
) -> None:
    """Storage fails from inside the epoch on; the server is killed in the first close, and then storage works."""
    selection = driving.selection_of("es", seed=31)
    server = serve(selection, shards)
    selectors = local.connect(server, selection, exchange, world_size)

    def killed() -> None:
        faulty_files.mend(folder)
        server.restart()

    def disturb(at: int, step: int) -> None:
        if (at, step) == (epoch, 4):
            for shard in server.shards:
                shard.settle(0, local.GENERATION, 0)
            faulty_files.fill(folder)
            server.after["close_epoch"] = killed

    drawn = local.train(selectors, hook=disturb)
    assert not server.after
    expect_undisturbed(selection, selectors, drawn, folder)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.thorough), 2])
@pytest.mark.parametrize("exchange", ["sync", "leased", pytest.param("prefetch", marks=pytest.mark.thorough)])
@pytest.mark.filterwarnings("ignore:epoch 1 of run 'mine' is over, but not on storage")
def test_epochs_that_could_not_be_written_are_made_up_for_after_a_crash(
    exchange: str, world_size: int, serve: Serve, folder: Path
) -> None:
    """Storage fails from inside epoch 1 on; the server is killed in epoch 2 and comes back inside epoch 1."""
    selection = driving.selection_of("eswp", seed=32)
    server = serve(selection)
    selectors = local.connect(server, selection, exchange, world_size, deadline_s=2.0, on_unavailable="continue")
    came_back_in = []

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 4):
            server.server.settle(0, local.GENERATION, 0)
            faulty_files.fill(folder)
        if (epoch, step) == (2, 5):
            faulty_files.mend(folder)
            server.restart()
            came_back_in.append(server.server.whereabouts(0, local.GENERATION))

    drawn = local.train(selectors, hook=disturb)
    assert came_back_in == [(1, True)]
    expect_undisturbed(selection, selectors, drawn, folder)


@pytest.mark.parametrize("exchange", ["sync", "leased"])
@pytest.mark.filterwarnings("ignore:epoch 1 of run 'mine' is over, but not on storage")
def test_with_several_shards_an_epoch_that_could_not_be_written_is_said_to_be_lost(
    exchange: str, serve: Serve, folder: Path
) -> None:
    """The other shard stands in epoch 2, from which the plan of that epoch cannot be made again."""
    selection = driving.selection_of("eswp", seed=34)
    server = serve(selection, 2)
    selectors = local.connect(server, selection, exchange, deadline_s=2.0, on_unavailable="continue")

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 4):
            for shard in server.shards:
                shard.settle(0, local.GENERATION, 0)
            faulty_files.fill(folder)
        if (epoch, step) == (2, 5):
            faulty_files.mend(folder)
            server.restart()

    with pytest.raises(es.ServerRestartedError, match="with several shards that cannot be made up for: connect again"):
        local.train(selectors, hook=disturb)
    selectors[0].close()


@pytest.mark.parametrize(
    ("exchange", "world_size", "shards", "mended"),
    [
        ("leased", 1, 1, True),
        pytest.param("sync", 2, 1, False, marks=pytest.mark.thorough),
        ("prefetch", 2, 2, True),
    ],
)
@pytest.mark.filterwarnings("ignore:epoch 1 of run 'mine' is over, but not on storage")
def test_new_ranks_hear_that_the_end_of_the_epoch_before_theirs_is_not_on_storage(
    exchange: str, world_size: int, shards: int, mended: bool, serve: Serve, folder: Path
) -> None:
    """Storage fails at the end of epoch 1, the ranks die in epoch 2; new ones can begin at epoch 1, or load a state."""
    selection = driving.selection_of("eswp", seed=35)
    server = serve(selection, shards)
    selectors = local.connect(server, selection, exchange, world_size, deadline_s=2.0, on_unavailable="continue")
    local.train(selectors, 0, 1)
    assert server.server.stored_epochs() == 1
    faulty_files.fill(folder)
    local.train(selectors, 1, 2)
    state = selectors[0].state_dict()

    def die(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 5):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        local.train(selectors, 2, hook=die)
    if mended:
        faulty_files.mend(folder)
    new = local.connect(server, selection, exchange, world_size, generation="0f" * 16, deadline_s=60.0)
    assert new[0].next_epoch == 1
    with pytest.raises(es.StorageError, match="epoch 1 of run 'mine' was finished, but its end is not on storage"):
        local.train(new, 2)
    faulty_files.mend(folder)
    for selector in new:
        selector.load_state_dict(state)
    local.train(new, 2)
    assert encode_table(new[0].table()) == driving.undisturbed(selection, world_size).table


# -- with Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exchange", "world_size"), [("leased", 2), ("sync", 1)])
def test_the_last_epoch_is_whole_after_a_kill_while_its_end_could_not_be_written(
    exchange: str, world_size: int, run: str, folder: Path
) -> None:
    """No journal can be written, and the server is killed as the last close waits for its snapshot; then all works."""
    selection = driving.selection_of("es", seed=33)
    selectors = driving.connect(run, f"faulty://{folder}", selection, exchange, world_size)

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 5):
            for shard in launch.find_shards(run):
                call(shard.settle.remote(0, generation_of(selectors), 0), 30.0, "write the journal")
            faulty_files.fill(folder, "/journal/")
            faulty_files.break_at(folder, "write", r"/snapshots/.*/shard-")
            mending.start()

    def mend() -> None:
        while not faulty_files.is_broken(folder):
            time.sleep(0.01)  # polling a file
        faulty_files.mend(folder)

    mending = threading.Thread(target=mend, daemon=True)
    drawn = local.train(selectors, hook=disturb)
    mending.join(60.0)
    table = encode_table(selectors[0].table())
    expected = driving.undisturbed(selection, world_size)
    assert driving.outcome(selectors, drawn).drawn == sorted(expected.drawn)
    assert table == expected.table
    assert encode_table(runs.RunStorage(str(folder), run).table()) == expected.table


def test_new_ranks_on_ray_hear_that_the_end_of_the_epoch_before_theirs_is_not_on_storage(
    run: str, folder: Path
) -> None:
    """No snapshot can be written from the end of epoch 1 on, and the ranks die in epoch 2."""
    selection = driving.selection_of("eswp", seed=36)
    storage = f"faulty://{folder}"
    selectors = driving.connect(run, storage, selection, "leased", 2)
    local.train(selectors, 0, 1)
    assert call(launch.find(run).stored_epochs.remote(), 30.0, "wait for the snapshot") == 1
    faulty_files.fill(folder, "/snapshots/")
    local.train(selectors, 1, 2)
    state = selectors[0].state_dict()

    def die(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 5):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        local.train(selectors, 2, hook=die)
    new = driving.connect(run, storage, selection, "leased", 2)
    assert new[0].next_epoch == 1
    with pytest.raises(es.StorageError, match=f"epoch 1 of run '{run}' was finished, but its end is not on storage"):
        local.train(new, 2)
    faulty_files.mend(folder)
    for selector in new:
        selector.load_state_dict(state)
    local.train(new, 2)
    assert encode_table(new[0].table()) == driving.undisturbed(selection, 2).table


def generation_of(selectors: list[es.Selector]) -> str:
    inner: Any = selectors[0].exchange
    return str(inner._caller.generation)
