"""Runs in a storage folder: names, descriptions, who belongs to whom."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from es_service import errors
from es_service.selection import methods
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig, RunState
from es_service.selection.shards import Shard
from es_service.storage import files, runs
from es_service.storage.journal import Journal
from es_service.storage.runs import RunStorage

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("name", ["a", "9", "run-1", "A.b_c-d", "x" * 100])
def test_good_names(name: str) -> None:
    assert runs.check_run_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", "-a", "_a", ".a", "a b", "a\n", "ä", "x" * 101, "a\0", "a:b", None, 3]
)
def test_names_that_could_leave_their_folder(name: Any) -> None:
    with pytest.raises(errors.RunNameError, match="cannot be used"):
        runs.check_run_name(name)
    with pytest.raises(errors.RunNameError):
        RunStorage("/tmp", name)


def test_a_run_begins_and_is_found_again(tmp_path: Path, make_config: MakeConfig) -> None:
    storage, config = RunStorage(str(tmp_path / "deep" / "er"), "mine"), make_config(prune_ratio=0.25)
    assert not storage.exists()
    storage.begin(config)
    assert storage.exists()
    again = RunStorage(str(tmp_path / "deep" / "er"), "mine")
    assert again.config() == config
    assert again.snapshots.newest() == 0
    assert again.snapshots.position() == (0, (0,))
    assert sorted(path.name for path in (tmp_path / "deep" / "er" / "mine").iterdir()) == ["run.json"]


def test_beginning_twice_is_fine_with_the_same_config(tmp_path: Path, make_config: MakeConfig) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    before = (tmp_path / "mine" / "run.json").read_bytes()
    storage.begin(make_config())
    assert (tmp_path / "mine" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"seed": 12}, ["seed: run 11, yours 12"]),
        ({"num_samples": 30, "batch_size": 5}, ["num_samples: run 24, yours 30", "batch_size: run 6, yours 5"]),
        ({"ratio": 0.25}, ["ratio: run 0.5, yours 0.25"]),
        ({"method": methods.evolved(0.1)}, ["beta1: run 0.2, yours 0.1"]),
        ({"method": methods.loss()}, ["method: run 'evolved', yours 'loss'", "beta1: run 0.2, yours has none"]),
        ({"method": methods.ema()}, ["method: run 'evolved', yours 'ema'", "beta: run None, yours 0.9"]),
    ],
    ids=str,
)
def test_another_config_is_refused_with_every_key_that_differs(
    tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any], differing: list[str]
) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    with pytest.raises(errors.RunMismatchError) as caught:
        storage.begin(make_config(**changes))
    for one in differing:
        assert one in str(caught.value)
    same = {"num_epochs", "draw"} - set(changes)
    assert not any(f"{key}:" in str(caught.value) for key in same)
    assert storage.config() == make_config()


def test_configs_travel_as_plain_values(make_config: MakeConfig) -> None:
    config = make_config(methods.ema(0.3), draw="systematic", max_age=None)
    assert runs.config_from_dict(json.loads(json.dumps(runs.config_to_dict(config)))) == config


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"selection": {}},
        {"selection": {"method": "nobody"}},
        {"selection": None},
        {"selection": "abc"},
        {"selection": {"method": "evolved", "anneal": 3}},
        {"selection": {"method": "evolved"}},
        {"selection": {"method": "evolved"}, "num_samples": 0, "num_epochs": 1, "batch_size": 1},
        {"selection": {"method": "evolved"}, "num_samples": 5, "num_epochs": 1, "batch_size": 1, "more": 2},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(errors.StorageError, match="description is damaged"):
        runs.config_from_dict(values)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1, "config": "abc"}', '{"format": 1, "config": 3}'])
def test_a_damaged_run_json_is_refused(tmp_path: Path, make_config: MakeConfig, content: str) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    (tmp_path / "mine" / "run.json").write_text(content)
    with pytest.raises(errors.StorageError):
        storage.config()


def test_a_newer_format_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    path = tmp_path / "mine" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(errors.StorageError, match="has format 3, this version reads 2: upgrade"):
        storage.config()
    with pytest.raises(errors.StorageError, match="has format 3"):
        storage.begin(make_config())


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path), "nobody")
    with pytest.raises(errors.RunNotFoundError, match="no run 'nobody' in"):
        storage.config()
    with pytest.raises(errors.RunNotFoundError):
        storage.table()
    assert storage.result() is None


def test_a_run_may_be_a_trial_of_a_search(tmp_path: Path, make_config: MakeConfig) -> None:
    trial, other = RunStorage(str(tmp_path), "trial-0001"), RunStorage(str(tmp_path), "other")
    trial.begin(make_config(), search="found")
    other.begin(make_config())
    assert (trial.search(), other.search()) == ("found", None)


def test_results_are_kept(tmp_path: Path, make_config: MakeConfig) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    assert storage.result() is None
    storage.write_result({"accuracy": 0.5})
    storage.write_result({"accuracy": 0.75})
    assert storage.result() == {"accuracy": 0.75}
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["result.json", "run.json"]


def test_snapshots_of_a_run(tmp_path: Path, make_config: MakeConfig) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    with pytest.raises(errors.StorageError, match="no snapshot yet"):
        storage.table()
    state = RunState(LocalRun(make_config()).state().records, 2, (0, 4, 8))
    storage.write_snapshot(state)
    assert storage.snapshots.read(2).records.tobytes() == state.records.tobytes()
    assert storage.snapshots.position() == (2, (0, 4, 8))
    assert storage.table().num_rows == 24
    assert not storage.snapshots.holds(2, "0" * 64)
    assert not storage.snapshots.holds(7, "0" * 64)


@pytest.mark.parametrize("writers", [1, 2, 5])
@pytest.mark.parametrize("readers", [1, 2, 3, 5])
def test_a_snapshot_of_any_number_of_shards_is_read_by_any_other(
    tmp_path: Path, make_config: MakeConfig, writers: int, readers: int
) -> None:
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    records = LocalRun(make_config()).state().records
    records["s"] = np.arange(records.size)
    beside = storage.begin_snapshot(1)
    parts = [storage.snapshots.write_part(beside, records[i::writers], Shard(i, writers)) for i in range(writers)]
    assert storage.snapshots.newest() == 0  # not before it is whole
    storage.finish_snapshot(beside, (0, 4), records.size, parts)
    for index in range(readers):
        state = storage.snapshots.read(1, Shard(index, readers))
        assert state.records.tobytes() == records[index::readers].tobytes()
        assert state.epoch_starts == (0, 4)
    assert storage.table().column("s").to_pylist() == list(range(24))
    assert storage.table().column("id").to_pylist() == list(range(24))


def test_a_part_that_is_not_to_be_seen_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    """A shard on another node wrote it to that node's own disk."""
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(make_config())
    records = LocalRun(make_config()).state().records
    beside = storage.begin_snapshot(1)
    parts = [storage.snapshots.write_part(beside, records[i::2], Shard(i, 2)) for i in range(2)]
    Path(beside, "shard-1.arrow").unlink()
    with pytest.raises(errors.StorageError, match=r"shard-1\.arrow was written by its shard but is not to be seen"):
        storage.finish_snapshot(beside, (0, 4), records.size, parts)
    assert storage.snapshots.newest() == 0


def test_runs_are_listed_and_other_things_are_not(tmp_path: Path, make_config: MakeConfig) -> None:
    assert runs.list_runs(str(tmp_path)) == []
    for name in ("b", "a", "c"):
        RunStorage(str(tmp_path), name).begin(make_config())
    (tmp_path / "just-a-folder").mkdir()
    (tmp_path / "just-a-file").write_text("")
    assert sorted(runs.list_runs(str(tmp_path))) == ["a", "b", "c"]
    with pytest.raises(errors.StorageError, match=r"cannot list .*no such file or folder"):
        runs.list_runs(str(tmp_path / "nowhere"))


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.StorageError, match=f"{tmp_path}/file"):
        RunStorage(str(tmp_path / "file"), "mine").begin(make_config())


def test_a_storage_of_an_unknown_kind_is_named() -> None:
    with pytest.raises(errors.StorageError, match="'gopher://x/y' is neither a folder nor a URI"):
        RunStorage("gopher://x/y", "mine")


def test_file_uris_and_paths_are_the_same_place(tmp_path: Path, make_config: MakeConfig) -> None:
    RunStorage(f"file://{tmp_path}", "mine").begin(make_config())
    assert RunStorage(str(tmp_path), "mine").config() == make_config()


def test_writing_leaves_nothing_beside_even_over_an_old_file(tmp_path: Path) -> None:
    filesystem, root = files.open_filesystem(str(tmp_path))
    for number in range(3):
        files.write_json(filesystem, f"{root}/x.json", {"number": number})
    assert files.read_json(filesystem, f"{root}/x.json") == {"number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    files.write_atomically(filesystem, f"{root}/y.json", b"[1]")
    with pytest.raises(errors.StorageError, match="expected an object"):
        files.read_json(filesystem, f"{root}/y.json")


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(errors.StorageError, match=r"s3://… holds a password") as caught:
        runs.RunStorage("s3://key:hunter2@bucket/folder", "mine")
    assert "hunter2" not in str(caught.value)


def test_every_folder_is_brought_to_the_disk_by_the_one_above_it(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was made is lost with the power as long as the folder above it is not on the disk."""
    synced, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    storage = RunStorage(str(tmp_path / "deep" / "runs"), "mine")
    storage.begin(make_config())
    keeper = LocalRun(make_config())
    storage.claim("one")
    storage.claim_journal(runs.WHOLE)
    writer = Journal(storage.journal(runs.WHOLE), 0)
    writer.append("state", b"{}")
    writer.flush()
    storage.write_snapshot(RunState(keeper.engine.table.copy_records(), 1, (0, 4)))
    writer.close()
    folders = {str(folder) for folder, _, _ in os.walk(tmp_path)}
    assert len(folders) > 8
    assert folders - synced == set()


def test_a_link_or_a_file_planted_beside_is_not_written_through(tmp_path: Path) -> None:
    filesystem, root = files.open_filesystem(str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("x.json.partial", f"x.json.partial-{os.getpid()}"):
        (tmp_path / "runs" / name).symlink_to(victim)
    files.write_json(filesystem, f"{root}/x.json", {})
    (tmp_path / "runs" / "part").symlink_to(victim)
    with pytest.raises(errors.StorageError), files.new_file(filesystem, f"{root}/part") as file:
        file.write(b"theirs")
    assert victim.read_text() == "mine"
