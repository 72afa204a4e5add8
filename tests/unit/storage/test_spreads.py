"""Spreads: counts that shards make for themselves, add up, and that are close to what the whole table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.selection.run import RunState
from es_service.selection.table import ScoreTable
from es_service.storage import spreads
from es_service.storage.snapshots import Snapshots
from es_service.storage.terms import NOBODY

LOCAL = fs.LocalFileSystem()


def records_of(num: int = 5000, seed: int = 3) -> NDArray[np.void]:
    rng = np.random.default_rng(seed)
    records = ScoreTable(num, 0.25).copy_records()
    seen = rng.random(num) < 0.9
    records["w"] = rng.lognormal(-2, 1.5, num)
    records["last_loss"][seen] = rng.exponential(1.0, num)[seen]
    records["loss_mean"][seen] = rng.exponential(1.0, num)[seen]
    records["loss_var"][seen] = rng.exponential(0.2, num)[seen]
    records["visits"][seen] = rng.integers(1, 9, num)[seen]
    records["selected"] = np.minimum(records["visits"], rng.integers(0, 9, num))
    return records


def spread_of(records: NDArray[np.void], column: str) -> spreads.Spread:
    return spreads.Spread.from_dict(spreads.spreads_of(records)[column])


def test_every_value_is_counted_once() -> None:
    records = records_of()
    seen = records["visits"] > 0
    for column, found in spreads.spreads_of(records).items():
        spread = spreads.Spread.from_dict(found)
        assert spread.num_values + spread.num_missing == records.size, column
    for column, values in {
        "w": records["w"],
        "last_loss": records["last_loss"][seen],
        "loss_mean": records["loss_mean"][seen],
        "loss_std": np.sqrt(records["loss_var"][seen]),
        "selected": records["selected"],
        "picked_share": (records["selected"] / np.maximum(1, records["visits"]))[seen],
    }.items():
        spread = spread_of(records, column)
        assert spread.num_values == values.size
        assert spread.num_below == np.count_nonzero(values <= 0)
        assert spread.mean == pytest.approx(values.mean(), rel=1e-5)
        assert spread.edges[0] <= values[values > 0].min()
        assert spread.edges[-1] > values.max()
        assert np.array_equal(spread.counts, np.histogram(values[values > 0], spread.edges)[0])
        assert np.all(spread.edges[1:] / spread.edges[:-1] <= 1.125 + 1e-9)


@pytest.mark.parametrize("is_log", [False, True])
def test_over_other_edges_it_is_close_to_the_truth(is_log: bool) -> None:
    records = records_of()
    spread, values = spread_of(records, "w"), records["w"].astype(np.float64)
    low, high = values.min(), values.max()
    edges = np.geomspace(low, high, 21) if is_log else np.linspace(low, high, 21)
    counts = spread.over(edges.tolist(), is_log=is_log)
    assert counts.sum() == records.size
    truth = np.histogram(values, edges)[0]
    assert np.abs(np.cumsum(counts) - np.cumsum(truth)).max() <= 0.02 * records.size


def test_values_of_nothing_count_in_a_linear_scale_only() -> None:
    records = records_of()
    spread = spread_of(records, "selected")
    assert spread.num_below == np.count_nonzero(records["selected"] == 0) > 0
    assert spread.over([0.0, 0.5, 8.0], is_log=False).tolist() == [
        spread.num_below,
        records.size - spread.num_below,
    ]
    assert spread.over([1.0, 2.0, 9.0], is_log=True).sum() == records.size - spread.num_below


def test_quantiles_are_close_to_the_truth() -> None:
    records = records_of()
    spread = spread_of(records, "w")
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert spread.quantile(share) == pytest.approx(np.quantile(records["w"], share), rel=0.13)
    assert spread_of(records_of(100)[:0], "w").quantile(0.5) is None
    assert spread_of(records, "selected").quantile(0.01) == 0.0


@pytest.mark.parametrize("num_shards", [2, 7])
def test_shards_add_up_to_the_whole(num_shards: int) -> None:
    records = records_of()
    parts = [spreads.spreads_of(np.ascontiguousarray(records[index::num_shards])) for index in range(num_shards)]
    whole, found = spreads.spreads_of(records), spreads.merged(parts)
    for column in spreads.COLUMNS:
        assert found[column].pop("sum") == pytest.approx(whole[column].pop("sum"), rel=1e-6)
        assert found[column] == whole[column]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of()
    whole = spreads.spreads_of(records)
    monkeypatch.setattr(spreads, "_BLOCK", 999)
    for column, found in spreads.spreads_of(records).items():
        assert found["counts"] == whole[column]["counts"]
        assert found["sum"] == pytest.approx(whole[column]["sum"])


def write(run: Path, finished: int, **options: Any) -> None:
    state = RunState(records_of(50, seed=finished), finished, tuple(range(0, 5 * (finished + 1), 5)))
    Snapshots(LOCAL, str(run)).write(state, **options)


def test_they_stay_when_the_snapshot_goes_and_go_when_the_run_goes_back(tmp_path: Path) -> None:
    for finished in range(1, 7):
        write(tmp_path, finished)
    assert Snapshots(LOCAL, str(tmp_path)).epochs() == [4, 5, 6]
    assert spreads.SpreadFiles(LOCAL, str(tmp_path)).epochs() == [1, 2, 3, 4, 5, 6]
    first = spreads.SpreadFiles(LOCAL, str(tmp_path)).read(1)["w"]
    assert first.mean == pytest.approx(records_of(50, seed=1)["w"].mean(), rel=1e-5)
    manifest = json.loads(next(tmp_path.glob("snapshots/00000006-*/manifest.json")).read_text())
    assert "spreads" not in manifest["files"]["shard-0.arrow"]
    Snapshots(LOCAL, str(tmp_path)).drop_after(4, NOBODY)
    assert spreads.SpreadFiles(LOCAL, str(tmp_path)).epochs() == [1, 2, 3, 4]
    write(tmp_path, 3)
    assert spreads.SpreadFiles(LOCAL, str(tmp_path)).epochs() == [1, 2, 3]


@pytest.mark.parametrize("damage", ["{}", '{"format": 1}', '{"format": 1, "columns": {"w": {"first": -1}}}', "[", "3"])
def test_damaged_ones_are_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1)
    (tmp_path / "spreads" / "00000001.json").write_text(damage)
    with pytest.raises(errors.StorageError):
        spreads.SpreadFiles(LOCAL, str(tmp_path)).read(1)


def test_another_format_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "spreads" / "00000001.json").write_text('{"format": 9, "columns": {}}')
    with pytest.raises(errors.StorageError, match="format 9, this version reads 1"):
        spreads.SpreadFiles(LOCAL, str(tmp_path)).read(1)


def test_a_run_without_any_has_none(tmp_path: Path) -> None:
    assert spreads.SpreadFiles(LOCAL, str(tmp_path)).epochs() == []
