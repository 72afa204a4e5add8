"""The data map: mean loss against variability of the loss, in bins, so that the size of an answer is bounded.

Reference: Swayamdipta et al., *Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics*, arXiv
2009.10795, which has confidence and its variability where this has the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.api.table import filters
from es_service.api.table.statistics import BLOCK, positions
from es_service.api.table.view import TableView, floats

__all__ = ["data_map"]

F64 = NDArray[np.float64]
_CLIP = 0.999
_ENOUGH = 1 << 20  # values suffice for the quantile
_AXES = ("loss_mean", "loss_std")


def data_map(view: TableView, points: int, conditions: Sequence[str] = ()) -> dict[str, Any]:
    """Return the data map, in at most `points` bins of mean loss and variability that hold a sample."""
    return view.once(
        ("map", points, tuple(sorted(set(conditions)))),
        lambda: _data_map(view, points, filters.select(view, conditions)),
    )


def _data_map(view: TableView, points: int, mask: NDArray[np.bool_] | None) -> dict[str, Any]:
    seen = view.column("visits") > 0
    num = view.num_rows if mask is None else int(mask.sum())
    if mask is not None:
        seen &= mask
    num_seen = int(np.count_nonzero(seen))
    which = seen if num_seen < view.num_rows else slice(None)
    binned = num_seen > points
    bins = max(1, math.isqrt(points))
    axes = [_axis(view.column(name)[which], name, bins if binned else 0) for name in _AXES]
    if binned:
        means, counts, examples = _per_cell(view, seen, axes)
    else:
        examples = np.flatnonzero(seen)
        means = [view.at(name, examples) for name in (*_AXES, "picked_share")]
        counts = np.ones(examples.size, dtype=np.int64)
    labels = view.labels
    return {
        "binned": binned,
        "num_samples": num,
        "num_unseen": num - num_seen,
        "x": axes[0],
        "y": axes[1],
        "points": {
            **{name: floats(mean) for name, mean in zip((*_AXES, "picked_share"), means, strict=True)},
            "count": counts.tolist(),
            "id": examples.tolist(),
            "label": [None if labels is None else labels.name(int(labels.codes_n[one])) for one in examples.tolist()],
        },
    }


def _axis(values: NDArray[Any], name: str, bins: int) -> dict[str, Any]:
    """Return an axis over these values: up to the highest, or where it has bins, up to what some thousandth exceeds."""
    low, high, clipped = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf)), 0
    if not values.size:
        low = high = 0.0
    elif bins:
        some = values[:: 1 + values.size // _ENOUGH]
        place = int(_CLIP * (some.size - 1))
        high = float(np.partition(some, place)[place])
        clipped = int((values > high).sum())
    [low_shown, high_shown] = floats(np.array([low, high]))
    return {"column": name, "min": low_shown, "max": high_shown, "bins": bins, "clipped": clipped}


def _along(values: NDArray[Any], axis: dict[str, Any]) -> NDArray[np.int64]:
    """Return the bin of each value; they are equally wide in its square root, since losses pile up near 0."""
    low, high = (math.sqrt(max(axis[end], 0.0)) for end in ("min", "max"))
    return positions(np.sqrt(np.maximum(values, 0)), low, high, axis["bins"])


def _per_cell(
    view: TableView, seen: NDArray[np.bool_], axes: Sequence[dict[str, Any]]
) -> tuple[list[F64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the means of each cell that holds a sample, how many it holds, and the id of its heaviest.

    A block of rows at a time: what is worked out on the way stays small.
    """
    num_cells = axes[0]["bins"] * axes[1]["bins"]
    counts, sums = np.zeros(num_cells, dtype=np.int64), np.zeros((3, num_cells))
    heaviest, which = np.full(num_cells, -np.inf, dtype=np.float32), np.zeros(num_cells, dtype=np.int64)
    for start in range(0, view.num_rows, BLOCK):
        here = slice(start, start + BLOCK)
        rows = np.flatnonzero(seen[here])
        chosen = rows if rows.size < seen[here].size else slice(None)
        x, y = (view.column(name)[here][chosen] for name in _AXES)
        share, weights = (view.block(name, start, start + BLOCK)[chosen] for name in ("picked_share", "w"))
        cells = _along(x, axes[0]) * axes[1]["bins"] + _along(y, axes[1])
        counts += np.bincount(cells, minlength=num_cells)
        for total, values in zip(sums, (x, y, share), strict=True):
            total += np.bincount(cells, weights=values, minlength=num_cells)
        before = heaviest.copy()
        np.maximum.at(heaviest, cells, weights)
        hits = np.flatnonzero((weights == heaviest[cells]) & (weights > before[cells]))[::-1]
        which[cells[hits]] = start + rows[hits]  # of several, the lowest id
    filled = np.flatnonzero(counts)
    return [total[filled] / counts[filled] for total in sums], counts[filled], which[filled]
