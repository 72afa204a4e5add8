"""Epochs whose snapshots were deleted: distributions of a column, from the summary that a run keeps of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from es_service import errors
from es_service.api.table.statistics import QUANTILES
from es_service.storage.runs import RunStorage
from es_service.storage.spreads import COLUMNS, Spread

__all__ = ["ends", "rows", "spreads_before"]

_MOST = 27  # epochs, so that with the newest and a live table there are about 30 to look at


def spreads_before(storage: RunStorage, column: str, epoch: int) -> dict[int, Spread]:
    """Return how a column spread at the ends of epochs before this one, ascending; evenly chosen where there are many.

    Nothing for a column that no spread is kept of.
    """
    if column not in COLUMNS:
        return {}
    kept = [one for one in storage.spreads.epochs() if one < epoch]
    places = np.unique(np.linspace(0, len(kept) - 1, min(_MOST, len(kept))).round().astype(int))
    found = {}
    for place in places:
        try:
            found[kept[place]] = storage.spreads.read(kept[place])[column]
        except (errors.StorageError, KeyError):  # dropped a moment ago, or damaged: the others are of use without it
            continue
    return found


def ends(spreads: Sequence[Spread], *, is_log: bool) -> list[float]:
    """Return the lowest and the highest value of each, of their logarithms if asked for."""
    found: list[float] = []
    for spread in spreads:
        if spread.counts.size:
            outer = [float(spread.edges[0]), float(spread.edges[-1])]
            found += np.log10(outer).tolist() if is_log else outer
        if spread.num_below and not is_log:
            found.append(0.0)
    return found


def rows(spreads: dict[int, Spread], edges: Sequence[float], *, is_log: bool) -> list[dict[str, Any]]:
    """Return each as the route's answer: counts between these edges, and quantiles, both approximate."""
    return [
        {
            "epoch": epoch,
            "source": "summary",
            "counts": spread.over(edges, is_log=is_log).tolist(),
            "below": spread.num_below if is_log else 0,
            "num_missing": spread.num_missing,
            "mean": spread.mean,
            "quantiles": {f"{share:g}": spread.quantile(share) for share in QUANTILES},
        }
        for epoch, spread in spreads.items()
    ]
