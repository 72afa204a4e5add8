"""Storage that fails and a server that is killed, at the same time: nothing that a rank reported may be lost silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import faulty_files
import local
import pytest

import es_service as es
from es_service.selection.run import RunConfig
from es_service.storage import runs
from es_service.storage.snapshots import encode_table

pytestmark = pytest.mark.filterwarnings("ignore:shard 0 of run 'mine' cannot write its storage")

Serve = Callable[[es.Selection], local.Local]
EXCHANGES = ["sync", "leased", "prefetch"]


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    faulty_files.register()
    served: list[local.Local] = []

    def make(selection: es.Selection) -> local.Local:
        config = RunConfig(selection=selection, **driving.SHAPE)
        served.append(local.Local(f"faulty://{folder}", config))
        return served[-1]

    yield make
    faulty_files.mend(folder)
    for one in served:
        one.finish()


def fail_storage(folder: Path) -> None:
    (folder / "full").touch()


def stored_table(folder: Path) -> bytes:
    return encode_table(runs.RunStorage(str(folder), "mine").table())


def expect_undisturbed(
    selection: es.Selection, selectors: list[es.Selector], drawn: list[tuple[int, int, int, list[int]]], folder: Path
) -> None:
    found, expected = driving.outcome(selectors, drawn), driving.undisturbed(selection, len(selectors))
    assert found.drawn == sorted(expected.drawn)
    assert found.table == expected.table
    assert stored_table(folder) == expected.table


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_server_killed_in_a_close_that_it_could_not_write_gets_everything_again(
    exchange: str, world_size: int, epoch: int, serve: Serve, folder: Path
) -> None:
    """Storage fails from inside the epoch on; the first close is under way as the server is killed, and then it works."""
    selection = driving.selection_of("es", seed=31)
    server = serve(selection)
    selectors = local.connect(server, selection, exchange, world_size)

    def killed() -> None:
        faulty_files.mend(folder)
        server.restart()

    def disturb(at: int, step: int) -> None:
        if (at, step) == (epoch, 4):
            server.server._journal.flush()
            fail_storage(folder)
            server.after["close_epoch"] = killed

    drawn = local.train(selectors, hook=disturb)
    assert not server.after
    expect_undisturbed(selection, selectors, drawn, folder)
