"""Epochs whose snapshots are gone: told from what is kept of them, few enough to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from es_service.api.table import past_epochs
from es_service.selection.table import ScoreTable
from es_service.storage import spreads
from es_service.storage.runs import RunStorage

LOCAL = fs.LocalFileSystem()


@pytest.fixture
def run(tmp_path: Path) -> RunStorage:
    """A run with spreads of 100 epochs: at epoch k the weights lie around k."""
    for epoch in range(1, 101):
        records = ScoreTable(500).copy_records()
        records["w"] = epoch + np.random.default_rng(epoch).normal(0, 0.1, 500)
        records["s"] = 0.0
        spreads.SpreadFiles(LOCAL, str(tmp_path / "run")).write(epoch, spreads.spreads_of(records))
    return RunStorage(str(tmp_path), "run")


def test_many_epochs_are_thinned_out_evenly(run: RunStorage) -> None:
    found = past_epochs.spreads_before(run, "w", 98)
    epochs = list(found)
    assert (epochs[0], epochs[-1], len(epochs)) == (1, 97, 27)
    assert set(np.diff(epochs)) <= {3, 4}
    assert [one["quantiles"]["0.5"] for one in past_epochs.rows(found, [0.0, 200.0], is_log=False)] == pytest.approx(
        epochs, rel=0.1
    )


def test_few_are_all_told_and_none_where_none_is_kept(run: RunStorage) -> None:
    assert list(past_epochs.spreads_before(run, "w", 4)) == [1, 2, 3]
    assert past_epochs.spreads_before(run, "w", 1) == {}
    assert past_epochs.spreads_before(run, "suspicion", 50) == {}


def test_their_ends_hold_all_values(run: RunStorage) -> None:
    found = list(past_epochs.spreads_before(run, "w", 4).values())
    ends = past_epochs.ends(found, is_log=False)
    assert min(ends) <= 0.9
    assert 3 < max(ends) < 4
    assert past_epochs.ends(found, is_log=True) == pytest.approx(np.log10(ends))
    assert past_epochs.ends(list(past_epochs.spreads_before(run, "s", 4).values()), is_log=False) == [0.0, 0.0, 0.0]


def test_a_damaged_one_does_not_hide_the_others(run: RunStorage, tmp_path: Path) -> None:
    (tmp_path / "run" / "spreads" / "00000002.json").write_text("{}")
    assert list(past_epochs.spreads_before(run, "w", 4)) == [1, 3]


def test_counts_are_over_the_edges_asked_for(run: RunStorage) -> None:
    found = past_epochs.spreads_before(run, "w", 3)
    [first, second] = past_epochs.rows(found, [0.5, 1.5, 2.5], is_log=False)
    assert first["counts"][0] >= 490
    assert second["counts"][1] >= 490
    assert sum(first["counts"]) == sum(second["counts"]) == 500
    assert (first["epoch"], first["source"], first["num_missing"]) == (1, "summary", 0)
