"""SIGKILL of the server at every named point of its write path: the run ends as one that nobody disturbed."""

from __future__ import annotations

import warnings
from pathlib import Path

import driving
import faulty_files
import pytest

from es_service.actors import launch
from es_service.actors.calls import call

POINTS = {
    "before a journal segment is written": ("write", r"/journal/.*\.partial", "before"),
    "with an empty journal segment beside": ("write", r"/journal/.*\.partial", "after"),
    "before a journal segment is renamed into place": ("move", r"/journal/", "before"),
    "after a journal segment is renamed into place": ("move", r"/journal/", "after"),
    "before a part of a snapshot is written": ("write", r"/snapshots/.*/shard-", "before"),
    "with an empty part of a snapshot": ("write", r"/snapshots/.*/shard-", "after"),
    "before the manifest": ("write", r"/snapshots/.*/manifest", "before"),
    "before a manifest is renamed into place": ("move", r"/snapshots/.*/manifest\.json$", "before"),
    "after a manifest is renamed into place": ("move", r"/snapshots/.*/manifest\.json$", "after"),
    "while an old snapshot is deleted": ("delete", r"/snapshots/[^/]*$", "before"),
    "while the history is written": ("move", r"/history/", "before"),
    "while the journal is trimmed": ("delete", r"/journal/", "before"),
}
QUICK = {
    "leased": [
        "before a journal segment is renamed into place",
        "with an empty part of a snapshot",
        "before a manifest is renamed into place",
    ],
    "sync": ["after a journal segment is renamed into place", "after a manifest is renamed into place"],
}
EXCHANGES = ["leased", "sync", "prefetch"]


@pytest.mark.parametrize("exchange", QUICK)
def test_a_server_killed_again_and_again_is_not_noticed(exchange: str, run: str, folder: Path) -> None:
    """In one training, at one point after the other; snapshots are written while the next epoch is under way."""
    selection = driving.selection_of("eswp", seed=16)
    selectors = driving.connect(run, f"faulty://{folder}", selection, exchange)
    left = list(QUICK[exchange])

    def disturb(epoch: int, step: int) -> None:
        if left and (epoch, step) >= (0, 3) and faulty_files.is_broken(folder):
            operation, path, when = POINTS[left.pop(0)]
            faulty_files.break_at(folder, operation, path, when)

    drawn = driving.train(selectors, hook=disturb)
    found = driving.outcome(selectors, drawn)
    assert left == []
    assert faulty_files.is_broken(folder)
    assert found == driving.undisturbed(selection)


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_server_killed_there_is_not_noticed(point: str, run: str, folder: Path) -> None:
    exchange = EXCHANGES[list(POINTS).index(point) % 3]
    selection = driving.selection_of("eswp", seed=17)
    selectors = driving.connect(run, f"faulty://{folder}", selection, exchange)

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 3):
            operation, path, when = POINTS[point]
            faulty_files.break_at(folder, operation, path, when)

    drawn = driving.train(selectors, hook=disturb)
    found = driving.outcome(selectors, drawn)
    assert faulty_files.is_broken(folder)
    assert found == driving.undisturbed(selection)


def test_a_server_killed_while_it_recovers_is_not_noticed(run: str, folder: Path) -> None:
    """Once an epoch, while it reads another kind of file."""
    paths = [r"/run\.json", r"/snapshots/.*/shard-", r"/snapshots/.*/manifest", r"/journal/"]
    selection = driving.selection_of("infobatch", seed=5)
    selectors = driving.connect(run, f"faulty://{folder}", selection, "sync")
    survived = []

    def disturb(epoch: int, step: int) -> None:
        if step == 4:
            assert call(launch.find(run).stored_epochs.remote(), 30.0, "wait for the snapshot") == epoch
            faulty_files.break_at(folder, "read", paths[epoch])
            driving.kill(run)
        if step == 6:
            survived.append(faulty_files.is_broken(folder))

    drawn = driving.train(selectors, hook=disturb)
    found = driving.outcome(selectors, drawn)
    assert survived == [True] * 4
    assert found == driving.undisturbed(selection)


@pytest.mark.parametrize("where", [r"/journal/", pytest.param(r"/snapshots/", marks=pytest.mark.thorough)])
def test_a_full_disk_is_said_and_training_goes_on(where: str, run: str, folder: Path) -> None:
    """Until there is room again, a crash would cost the open epoch; nothing else is lost."""
    import es_service as es

    selection = driving.selection_of("es", seed=9)
    selectors = driving.connect(run, f"faulty://{folder}", selection, "leased", deadline_s=5.0)
    failures = []

    def disturb(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 2):
            faulty_files.break_at(folder, "write", where, do="full")
        if (epoch, step) == (3, 2):
            stats = call(launch.find(run).stats.remote(), 30.0, "ask how it is")
            failures.append(stats["storage_failure"])
            faulty_files.mend(folder)

    expected = driving.undisturbed(selection)
    drawn = driving.train(selectors, 0, 1, hook=disturb)
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for epoch in range(1, 4):
            try:
                drawn += driving.train(selectors, epoch, epoch + 1, hook=disturb)
            except es.StorageError as error:  # raised where the epoch ends: it is finished, its snapshot is missing
                said.append(str(error))
                drawn += [one for one in expected.drawn if one[0] == epoch]
    assert said
    assert all("No space left on device" in text for text in said)
    assert sum("cannot write its storage" in str(one.message) for one in warned) == 1
    assert failures
    assert "No space left on device" in failures[0]
    found = driving.outcome(selectors, drawn)
    assert found == expected
