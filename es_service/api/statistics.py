"""Figures of a whole table: how values spread, the data map, what was never seen or picked, what weights are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.api import filters
from es_service.api.tables import TableView, floats

__all__ = ["QUANTILES", "common_range", "coverage", "data_map", "distribution", "effective_sample_size", "staleness"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOP = (0.01, 0.1)
_CLIP = 0.999
F64 = NDArray[np.float64]


def _values(view: TableView, column: str, conditions: Sequence[str]) -> tuple[NDArray[Any], int]:
    """Return the values there are, and how many samples that meet the conditions have none."""
    mask, has_value = filters.select(view, conditions), view.has_value(column)
    values = view.column(column)
    num = view.num_rows if mask is None else int(mask.sum())
    allowed = has_value if mask is None else mask if has_value is None else mask & has_value
    if allowed is not None:
        values = values[allowed]
    return values, num - values.size


def _positions(values: NDArray[Any], low: float, high: float, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value, those outside in the first or last; equal values throughout all in one."""
    width = (high - low) or 1.0
    scaled = (values - np.float64(low)) * (bins / width)
    return np.clip(scaled, 0, bins - 1).astype(np.int64)


def _logs(values: NDArray[Any]) -> tuple[F64, int]:
    above = values[values > 0]
    return np.log10(above.astype(np.float64)), values.size - above.size


def _edges(low: float, high: float, bins: int, *, is_log: bool) -> list[float]:
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    return [float(f"{edge:.9g}") for edge in (10.0**edges if is_log else edges)]


def _quantiles(values: NDArray[Any]) -> dict[str, float | None]:
    """Return quantiles, the lower of two neighbours: a value that there is."""
    if not values.size:
        return {f"{share:g}": None for share in QUANTILES}
    places = [int(share * (values.size - 1)) for share in QUANTILES]
    ordered = np.partition(values, places)
    return dict(zip((f"{share:g}" for share in QUANTILES), floats(ordered[places].astype(np.float64)), strict=True))


def common_range(views: Sequence[TableView], column: str, *, is_log: bool) -> tuple[float, float]:
    """Return the lowest and the highest value of a column over several tables, of their logarithms if asked for."""
    ends = []
    for view in views:
        values, _ = _values(view, column, ())
        scaled = _logs(values)[0] if is_log else values
        if scaled.size:
            ends += [float(scaled.min()), float(scaled.max())]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def distribution(
    view: TableView,
    column: str,
    bins: int,
    *,
    scale: str = "linear",
    conditions: Sequence[str] = (),
    between: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return how the values of a column spread, over bins of equal width between its ends or the two given."""

    def work() -> dict[str, Any]:
        values, missing = _values(view, column, conditions)
        is_log = scale == "log"
        scaled, below = _logs(values) if is_log else (values, 0)
        low, high = between or ((float(scaled.min()), float(scaled.max())) if scaled.size else (0.0, 0.0))
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts = np.bincount(_positions(scaled, low, high, bins), minlength=bins)
        spread: dict[str, float | None] = {"mean": None, "std": None, "min": None, "max": None}
        if values.size:
            found = [values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), values.max()]
            spread = dict(zip(spread, floats(np.array(found, dtype=np.float64)), strict=True))
        return {
            "column": column,
            "scale": scale,
            "edges": _edges(low, high, bins, is_log=is_log),
            "counts": counts.tolist(),
            "below": below,
            "num_values": int(values.size),
            "num_missing": missing,
            **spread,
            "quantiles": _quantiles(values),
        }

    view.check_column(column, numeric=True)
    return view.once(("distribution", column, bins, scale, tuple(sorted(set(conditions))), between), work)


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
    ids = np.flatnonzero(seen)
    x, y = view.column("loss_mean")[ids], view.column("loss_std")[ids]
    share = view.column("picked_share")[ids]
    binned = ids.size > points
    bins = max(1, math.isqrt(points))
    axes: list[dict[str, Any]] = []
    for name, values in (("loss_mean", x), ("loss_std", y)):
        low = float(values.min(initial=np.inf)) if values.size else 0.0
        place = int(_CLIP * (values.size - 1))
        high = float(np.partition(values, place)[place]) if values.size else 0.0
        clipped = int((values > high).sum())
        if not binned and values.size:
            high, clipped = float(values.max()), 0
        low, high = floats(np.array([low, high]))  # type: ignore[assignment]
        axes.append({"column": name, "min": low, "max": high, "bins": bins if binned else 0, "clipped": clipped})
    if binned:
        cells = _positions(x, axes[0]["min"], axes[0]["max"], bins) * bins
        cells += _positions(y, axes[1]["min"], axes[1]["max"], bins)
        found = _per_cell(cells, bins * bins, [x, y, share], view.column("w")[ids])
        (x, y, share), counts, which = found
    else:
        counts, which = np.ones(ids.size, dtype=np.int64), np.arange(ids.size)
    examples = ids[which]
    labels = view.labels
    return {
        "binned": binned,
        "num_samples": num,
        "num_unseen": num - ids.size,
        "x": axes[0],
        "y": axes[1],
        "points": {
            "loss_mean": floats(x),
            "loss_std": floats(y),
            "picked_share": floats(share),
            "count": counts.tolist(),
            "id": examples.tolist(),
            "label": [None if labels is None else labels.name(int(labels.codes_n[one])) for one in examples.tolist()],
        },
    }


def _per_cell(
    cells: NDArray[np.int64], num_cells: int, columns: Sequence[NDArray[Any]], weights: NDArray[Any]
) -> tuple[list[F64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the means of the columns in each cell that is not empty, its count, and the place of its heaviest."""
    counts = np.bincount(cells, minlength=num_cells)
    filled = np.flatnonzero(counts)
    means = [np.bincount(cells, weights=column, minlength=num_cells)[filled] / counts[filled] for column in columns]
    heaviest = np.full(num_cells, -np.inf, dtype=np.float32)
    np.maximum.at(heaviest, cells, weights)
    which = np.zeros(num_cells, dtype=np.int64)
    hits = np.flatnonzero(weights == heaviest[cells])
    which[cells[hits[::-1]]] = hits[::-1]  # of several, the lowest id
    return means, counts[filled], which[filled]


def _doubling(values: NDArray[Any]) -> dict[str, int]:
    """Count values 0, 1, 2-3, 4-7, … up to the highest class there is."""
    classes = np.bincount(np.minimum(values, 64), minlength=65)
    highest = int(values.max(initial=0))
    found = {"0": int(classes[0])}
    low = 1
    while low <= highest:
        high = 2 * low - 1
        num = int(classes[low : high + 1].sum()) if high < 64 else int(((values >= low) & (values <= high)).sum())
        found[str(low) if low == high else f"{low}-{high}"] = num
        low *= 2
    return found


def coverage(view: TableView) -> dict[str, Any]:
    """Return what was never seen and never picked, overall and by label."""
    return view.once(("coverage",), lambda: _coverage(view))


def _coverage(view: TableView) -> dict[str, Any]:
    visits, selected = view.column("visits"), view.column("selected")
    never_seen, never_picked = view.num_rows - np.count_nonzero(visits), view.num_rows - np.count_nonzero(selected)
    total = int(selected.sum(dtype=np.int64))
    labels = None
    if view.labels is not None:
        codes, num = view.labels.codes_n, view.labels.num

        def per_label(weights: NDArray[Any]) -> F64:
            sums: F64 = np.bincount(codes, weights=weights.astype(np.float64), minlength=num).astype(np.float64)
            return sums

        counts = np.bincount(codes, minlength=num)
        seen, picked = per_label(visits), per_label(selected)
        unseen, unpicked, weight = per_label(visits == 0), per_label(selected == 0), per_label(view.column("w"))
        labels = [
            {
                "label": view.labels.name(code),
                "num_samples": int(counts[code]),
                "never_seen": int(unseen[code]),
                "never_picked": int(unpicked[code]),
                "visits": int(seen[code]),
                "selected": int(picked[code]),
                "picked_share": _share(picked[code], seen[code]),
                "share_of_selected": _share(picked[code], total),
                "mean_weight": _share(weight[code], counts[code]),
            }
            for code in range(num)
        ]
    return {
        "num_samples": view.num_rows,
        "seen": view.num_rows - int(never_seen),
        "never_seen": int(never_seen),
        "picked": view.num_rows - int(never_picked),
        "never_picked": int(never_picked),
        "total_visits": int(visits.sum(dtype=np.int64)),
        "total_selected": total,
        "visits": _doubling(visits),
        "selected": _doubling(selected),
        "labels": labels,
    }


def _share(part: float, whole: float) -> float | None:
    return float(f"{part / whole:.7g}") if whole else None


def staleness(view: TableView, bins: int) -> dict[str, Any]:
    """Return how long ago, in run steps, samples were last observed."""
    spread = distribution(view, "age", bins)
    starts, older = view.epoch_starts, None
    if starts is not None and len(starts) > 1:
        begun = starts[-2]  # the last finished epoch's first step
        last = view.column("last_step")
        older = view.once(("older", begun), lambda: int(((last >= 0) & (last < begun)).sum()))
    return {
        "step": view.step,
        "never_seen": spread["num_missing"],
        **{name: spread[name] for name in ("mean", "max", "quantiles", "edges", "counts")},
        "older_than_epoch": older,
    }


def effective_sample_size(view: TableView) -> dict[str, Any]:
    """Return (Σw)²/Σw², and what share of all weight the heaviest hold."""
    return view.once(("ess",), lambda: _effective_sample_size(view))


def _effective_sample_size(view: TableView) -> dict[str, Any]:
    weights = view.column("w")
    total = float(weights.sum(dtype=np.float64))
    usable = weights.size > 0 and float(weights.min()) >= 0 and 0 < total < math.inf
    effective: float | None = None
    top: dict[str, float | None] = {f"{share:g}": None for share in _TOP}
    if usable:
        squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in np.array_split(weights, 64))
        effective = float(f"{total**2 / squares:.7g}")
        numbers = [max(1, round(share * weights.size)) for share in _TOP]
        ordered = np.partition(weights, [weights.size - num for num in numbers])
        sums = [float(ordered[-num:].sum(dtype=np.float64)) for num in numbers]
        top = dict(zip(top, (_share(part, total) for part in sums), strict=True))
    return {
        "num_samples": view.num_rows,
        "effective": effective,
        "share": None if effective is None else _share(effective, view.num_rows),
        "top_share": top,
    }
