"""Snapshots: what was written comes back, and whatever is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from es_service import errors
from es_service.selection.run import RunState
from es_service.selection.shards import WHOLE, Shard
from es_service.selection.table import ScoreTable, records_to_arrow
from es_service.storage import table_files
from es_service.storage.snapshots import Snapshots
from es_service.storage.terms import NOBODY

LOCAL = fs.LocalFileSystem()


def state_of(finished: int, num_samples: int = 11) -> RunState:
    records = ScoreTable(num_samples, 0.25).copy_records()
    records["w"] = np.arange(num_samples) + finished
    records["visits"] = finished
    return RunState(records, finished, tuple(range(0, 5 * (finished + 1), 5)))


def write(run: Path, finished: int, **options: Any) -> str:
    return Snapshots(LOCAL, str(run)).write(state_of(finished), **options)


def read(run: Path, finished: int) -> RunState:
    return Snapshots(LOCAL, str(run)).read(finished)


def folder(run: Path, finished: int) -> Path:
    [found] = (run / "snapshots").glob(f"{finished:08d}-*")
    return found


def change_manifest(run: Path, finished: int, **changes: Any) -> None:
    path = folder(run, finished) / "manifest.json"
    values = {**json.loads(path.read_text()), "sha256": "drop", **changes}  # as those before had none
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "drop"}))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    digest = write(tmp_path, 3)
    state = read(tmp_path, 3)
    assert state.records.tobytes() == state_of(3).records.tobytes()
    assert (state.finished_epochs, state.epoch_starts) == (3, (0, 5, 10, 15))
    assert Snapshots(LOCAL, str(tmp_path)).table_sha256(3) == digest
    table = Snapshots(LOCAL, str(tmp_path)).table()
    assert table.equals(records_to_arrow(state.records)) or table.column("w").to_pylist() == [
        3.0 + i for i in range(11)
    ]


def test_the_newest_few_are_kept_and_nothing_partial_is_left(tmp_path: Path) -> None:
    for finished in range(1, 8):
        write(tmp_path, finished)
        assert Snapshots(LOCAL, str(tmp_path)).epochs() == list(range(max(1, finished - 2), finished + 1))
    assert sorted(path.name[:9] for path in (tmp_path / "snapshots").iterdir()) == [
        "00000005-",
        "00000006-",
        "00000007-",
    ]
    for path in (tmp_path / "snapshots").iterdir():
        assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "shard-0.arrow"]


def test_as_many_are_kept_as_asked_for(tmp_path: Path) -> None:
    for finished in range(1, 6):
        write(tmp_path, finished, keep=1)
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == [5]


def test_writing_the_same_epoch_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 2)
    other = RunState(state_of(9).records, 2, (0, 1, 2))
    Snapshots(LOCAL, str(tmp_path)).write(other)
    assert read(tmp_path, 2).records.tobytes() == other.records.tobytes()
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == [2]


def test_a_crash_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    """What a killed writer leaves is a folder without a manifest: never listed, never read."""
    write(tmp_path, 1)
    partial = Path(Snapshots(LOCAL, str(tmp_path)).begin(2))
    (partial / "shard-0.arrow").write_bytes(b"half")
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == [1]
    assert Snapshots(LOCAL, str(tmp_path)).table().num_rows == 11
    write(tmp_path, 2)
    assert read(tmp_path, 2).finished_epochs == 2
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


def test_later_snapshots_can_be_dropped(tmp_path: Path) -> None:
    for finished in (1, 2, 3):
        write(tmp_path, finished)
    Snapshots(LOCAL, str(tmp_path)).drop_after(1, NOBODY)
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == [1]
    Snapshots(LOCAL, str(tmp_path)).drop_after(0, NOBODY)
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == []


def test_no_snapshots_at_all(tmp_path: Path) -> None:
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == []
    with pytest.raises(errors.StorageError, match="holds no snapshot yet"):
        Snapshots(LOCAL, str(tmp_path)).table()
    with pytest.raises(errors.StorageError, match="holds no snapshot of the end of epoch 0"):
        read(tmp_path, 1)


def test_a_damaged_byte_anywhere_in_the_table_is_found(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = folder(tmp_path, 1) / "shard-0.arrow"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(errors.StorageError, match="sha256 is not the one in the manifest"):
            read(tmp_path, 1)
    path.write_bytes(good)
    read(tmp_path, 1)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_a_table_of_another_length_is_found(tmp_path: Path, change: Any) -> None:
    write(tmp_path, 1)
    path = folder(tmp_path, 1) / "shard-0.arrow"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(errors.StorageError, match="damaged"):
        read(tmp_path, 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (folder(tmp_path, 1) / "shard-0.arrow").unlink()
    with pytest.raises(errors.StorageError, match=r"shard-0\.arrow: no such file"):
        read(tmp_path, 1)


def test_without_its_manifest_it_is_no_snapshot(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (folder(tmp_path, 1) / "manifest.json").unlink()
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == []
    with pytest.raises(errors.StorageError, match="holds no snapshot of the end of epoch 0"):
        read(tmp_path, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b"{}"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 1)
    (folder(tmp_path, 1) / "manifest.json").write_bytes(content)
    with pytest.raises(errors.StorageError):
        read(tmp_path, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch_starts": "drop"},
        {"epoch_starts": None},
        {"epoch_starts": ["a"]},
        {"num_samples": "drop"},
        {"num_samples": "many"},
        {"num_samples": 12},
        {"files": "drop"},
        {"files": {}},
        {"files": {"shard-0.arrow": {}}},
        {"files": []},
    ],
    ids=str,
)
def test_a_manifest_with_a_part_damaged_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, 1)
    change_manifest(tmp_path, 1, **changes)
    with pytest.raises(errors.StorageError):
        read(tmp_path, 1)


def test_a_snapshot_of_the_format_before_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    change_manifest(tmp_path, 1, format=1)
    assert read(tmp_path, 1).finished_epochs == 1
    assert Snapshots(LOCAL, str(tmp_path)).note(1, WHOLE) is None


@pytest.mark.parametrize("old", ['"epoch_starts": [\n    0', '"num_samples": 1', '"sha256": "'])
def test_a_manifest_that_says_something_else_than_was_written_is_noticed(tmp_path: Path, old: str) -> None:
    """A wrong start of an epoch would make other draws, a wrong place in the journal another table."""
    write(tmp_path, 1)
    path = folder(tmp_path, 1) / "manifest.json"
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, old[:-1] + ("2" if old[-1].isdigit() else '"0'), 1))
    for read_it in (read, lambda run, finished: Snapshots(LOCAL, str(run)).position(finished)):
        with pytest.raises(errors.StorageError, match=r"manifest\.json"):
            read_it(tmp_path, 1)


def test_what_a_shard_notes_comes_back_to_that_shard_alone(tmp_path: Path) -> None:
    own = Snapshots(LOCAL, str(tmp_path))
    beside = own.begin(1)
    parts: dict[str, Any] = {}
    for index in range(2):
        shard = Shard(index, 2)
        parts |= own.write_part(beside, state_of(1).records[index::2], shard, {"journal": 7 + index})
    own.finish(beside, (0, 5), 11, parts)
    assert Snapshots(LOCAL, str(tmp_path)).note(1, Shard(1, 2)) == {"journal": 8}
    assert Snapshots(LOCAL, str(tmp_path)).note(1, Shard(0, 2)) == {"journal": 7}
    assert Snapshots(LOCAL, str(tmp_path)).note(1, Shard(1, 3)) is None
    assert Snapshots(LOCAL, str(tmp_path)).note(1, WHOLE) is None


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    places = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in places if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in places if path.is_file()} == {0o600}


@pytest.mark.parametrize("version", [3, 0, None, "1"])
def test_another_format_is_refused_with_advice(tmp_path: Path, version: Any) -> None:
    write(tmp_path, 1)
    change_manifest(tmp_path, 1, format=version)
    with pytest.raises(errors.StorageError, match=f"has format {version!r}, this version reads 2: upgrade es_service"):
        read(tmp_path, 1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.StorageError, match=f"cannot .*{tmp_path}/file/run"):
        Snapshots(LOCAL, f"{tmp_path}/file/run").write(state_of(1))


def test_tables_travel_as_arrow_files() -> None:
    table = records_to_arrow(state_of(2).records)
    data = table_files.encode_table(table)
    assert table_files.encode_table(table) == data, "the same table must give the same bytes, its sha256 is compared"
    assert table_files.decode_table(data, "it").to_pydict()["w"] == table.to_pydict()["w"]


@pytest.mark.parametrize("data", [b"", b"ARROW1", b"ARROW1\0\0" + bytes(100), b"x" * 1000])
def test_bytes_that_are_no_table_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(errors.StorageError, match="the thing is damaged"):
        table_files.decode_table(data, "the thing")


def test_a_table_of_other_columns_is_refused() -> None:
    with pytest.raises(errors.StorageError, match="the thing has columns \\['a'\\], expected"):
        table_files.decode_table(table_files.encode_table(pa.table({"a": [1]})), "the thing")


def test_every_truncation_of_a_table_is_refused() -> None:
    data = table_files.encode_table(records_to_arrow(state_of(1).records))
    for end in range(0, len(data), 11):
        with pytest.raises(errors.StorageError):
            table_files.decode_table(data[:end], "it")
