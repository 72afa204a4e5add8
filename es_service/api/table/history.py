"""History of one sample: from the run's history where it keeps one, and from the snapshots it still has."""

from __future__ import annotations

from typing import Any

import numpy as np

from es_service import errors
from es_service.api.runs.catalogue import Catalogue
from es_service.api.table.view import floats

__all__ = ["history"]

_MOST_POINTS = 10_000
_COLUMNS = ("s", "w", "last_loss", "loss_mean", "loss_std", "visits", "selected")


def history(catalogue: Catalogue, run: str, sample_id: int) -> dict[str, Any]:
    """Return a sample's observations and its rows at the epochs' ends.

    Raises:
        RunNotFoundError, StorageError: there is no such run, or it cannot be read.
    """
    ids, rows = np.array([sample_id]), []
    for epoch in catalogue.snapshots(run):
        try:
            view = catalogue.view_at(run, epoch)
        except errors.StorageError:  # dropped a moment ago
            continue
        if sample_id < view.num_rows:
            rows.append({"epoch": epoch, **view.rows(ids, _COLUMNS)[0]})
    points, truncated = _points(catalogue, run, sample_id)
    return {
        "run": run,
        "id": sample_id,
        "source": "snapshots" if points is None else "journal",
        "points": points or {"run_step": [], "epoch": [], "loss": [], "selected": []},
        "truncated": truncated,
        "snapshots": rows,
    }


def _points(catalogue: Catalogue, run: str, sample_id: int) -> tuple[dict[str, list[Any]] | None, bool]:
    """Return the journal's observations of a sample, None where the run keeps none; and whether there were more."""
    storage = catalogue.opened(run)
    if not storage.history.epochs():
        return None, False
    table = storage.history.sample(sample_id)
    more = table.num_rows > _MOST_POINTS
    table = table.slice(max(0, table.num_rows - _MOST_POINTS))
    return {
        "run_step": table.column("run_step").to_pylist(),
        "epoch": table.column("epoch").to_pylist(),
        "loss": floats(table.column("loss").to_numpy()),
        "selected": table.column("selected").to_pylist(),
    }, more
