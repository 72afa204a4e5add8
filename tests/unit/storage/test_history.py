"""The history: what was observed of each sample and when it was picked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from es_service import errors
from es_service.selection.shards import WHOLE, Shard
from es_service.storage import history
from es_service.storage.history import History

LOCAL = fs.LocalFileSystem()


def rows(ids: list[int], steps: list[int], losses: list[float], selected: list[bool]) -> pa.Table:
    return pa.table(
        {
            "id": np.array(ids, dtype=np.int64),
            "run_step": np.array(steps, dtype=np.int32),
            "rank": np.zeros(len(ids), dtype=np.int32),
            "loss": np.array(losses, dtype=np.float32),
            "selected": np.array(selected, dtype=bool),
        }
    )


def history_of(run: str) -> History:
    return History(LOCAL, run, lambda: 1000)


def write(run: Path, epoch: int, shard: Shard, *columns: list[Any]) -> None:
    history_of(str(run)).write(epoch, shard, rows(*columns))


def sample(run: Path, sample_id: int) -> list[tuple[Any, ...]]:
    table = history_of(str(run)).sample(sample_id)
    assert table.schema.names == ["run_step", "epoch", "loss", "selected"]
    return [tuple(row.values()) for row in table.to_pylist()]


def test_a_samples_rows_come_back_in_order_over_epochs_and_shards(tmp_path: Path) -> None:
    write(tmp_path, 1, WHOLE, [3, 0], [11, 10], [0.5, 2.5], [True, False])
    write(tmp_path, 0, Shard(0, 2), [2, 0, 0], [4, 9, 1], [3.0, 1.0, 0.25], [False, False, True])
    write(tmp_path, 0, Shard(1, 2), [3], [2], [7.0], [True])
    assert sample(tmp_path, 0) == [(1, 0, 0.25, True), (9, 0, 1.0, False), (10, 1, 2.5, False)]
    assert sample(tmp_path, 3) == [(2, 0, 7.0, True), (11, 1, 0.5, True)]
    assert sample(tmp_path, 4) == []
    epoch = history_of(str(tmp_path)).epoch(0)
    assert epoch.column("run_step").to_pylist() == [1, 2, 4, 9]
    assert epoch.column("id").to_pylist() == [0, 3, 2, 0]


def test_a_sample_is_found_in_any_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_BATCH_ROWS", 3)
    ids = [number // 2 for number in range(40)]  # each twice, so that some straddle two batches
    write(tmp_path, 0, WHOLE, ids[::-1], list(range(40)), [float(n) for n in range(40)], [False] * 40)
    for one in range(20):
        assert [row[0] for row in sample(tmp_path, one)] == [38 - 2 * one, 39 - 2 * one]
    assert sample(tmp_path, 20) == []


def test_writing_an_epoch_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 0, WHOLE, [1], [0], [1.0], [False])
    write(tmp_path, 0, WHOLE, [1], [0], [2.0], [True])
    assert sample(tmp_path, 1) == [(0, 0, 2.0, True)]
    assert len(list((tmp_path / "history" / "00000000").iterdir())) == 1


def test_an_epoch_of_which_a_shard_is_missing_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, 0, Shard(0, 2), [2], [0], [1.0], [False])
    assert sample(tmp_path, 2) == []
    with pytest.raises(errors.StorageError, match="holds no history of epoch 0"):
        history_of(str(tmp_path)).epoch(0)


def test_going_back_drops_what_comes_after(tmp_path: Path) -> None:
    for epoch in range(4):
        write(tmp_path, epoch, WHOLE, [1], [epoch], [1.0], [False])
    history_of(str(tmp_path)).drop_from(2)
    assert history_of(str(tmp_path)).epochs() == [0, 1]


def test_the_oldest_epochs_go_where_it_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, WHOLE, [1], [0], [1.0], [False])
    [first] = (tmp_path / "history" / "00000000").iterdir()
    monkeypatch.setattr(history, "_MAX_BYTES", int(2.5 * first.stat().st_size))
    for epoch in range(1, 5):
        write(tmp_path, epoch, WHOLE, [1], [epoch], [1.0], [False])
        assert history_of(str(tmp_path)).epochs() == list(range(max(0, epoch - 1), epoch + 1))
    monkeypatch.setattr(history, "_MAX_BYTES", 1)
    write(tmp_path, 5, WHOLE, [1], [5], [1.0], [False])
    assert history_of(str(tmp_path)).epochs() == [5]  # the newest stays


def test_an_empty_epoch_can_be_written(tmp_path: Path) -> None:
    write(tmp_path, 0, WHOLE, [], [], [], [])
    assert history_of(str(tmp_path)).epoch(0).num_rows == 0
    assert sample(tmp_path, 0) == []


def test_a_file_that_was_right_is_looked_at_again_once_it_has_changed(tmp_path: Path) -> None:
    write(tmp_path, 0, WHOLE, [1, 2], [0, 1], [1.0, 2.0], [False, True])
    [path] = (tmp_path / "history" / "00000000").iterdir()
    assert sample(tmp_path, 1) == sample(tmp_path, 1) == [(0, 0, 1.0, False)]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    path.write_bytes(damaged)
    os.utime(path, (0, 0))
    with pytest.raises(errors.StorageError, match="its checksum is not the one in its name"):
        sample(tmp_path, 1)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, WHOLE, [1, 2], [0, 1], [1.0, 2.0], [False, True])
    [path] = (tmp_path / "history" / "00000000").iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(errors.StorageError, match=f"{path} is damaged"):
            sample(tmp_path, 1)
    path.write_bytes(whole[:-1])
    with pytest.raises(errors.StorageError, match="is damaged"):
        history_of(str(tmp_path)).epoch(0)
