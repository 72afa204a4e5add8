"""Statistics of a whole table: distributions, coverage, staleness, effective sample size."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.api.table import filters
from es_service.api.table.view import TableView, floats

__all__ = [
    "BLOCK",
    "QUANTILES",
    "common_range",
    "coverage",
    "distribution",
    "effective_sample_size",
    "ordered",
    "positions",
    "staleness",
]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOP = (0.01, 0.1)
BLOCK = 1 << 18  # rows
F64 = NDArray[np.float64]


def ordered(view: TableView, column: str) -> NDArray[Any]:
    """Return the values that a column has, ascending; sorted once, since half of what is asked can be read off that."""
    return view.once(("ordered", column), lambda: np.sort(_there(view, column, ())))


def _there(view: TableView, column: str, conditions: Sequence[str]) -> NDArray[Any]:
    """Return the values there are of the samples that meet the conditions, in order of id."""
    mask, has_value = filters.select(view, conditions), view.has_value(column)
    allowed = has_value if mask is None else mask if has_value is None else mask & has_value
    values = view.column(column)
    return values if allowed is None else values[allowed]


def positions(values: NDArray[Any], low: float, high: float, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value, those outside in the first or last; equal values throughout all in one."""
    scaled = values - np.float64(low)
    scaled *= bins / ((high - low) or 1.0)
    np.clip(scaled, 0, bins - 1, out=scaled)
    return scaled.astype(np.int64)


def _edges(low: float, high: float, bins: int, *, is_log: bool) -> F64:
    edges = np.linspace(low, high, bins + 1)
    return 10.0**edges if is_log else edges


def _histogram(ordered_n: NDArray[Any], edges: F64) -> NDArray[np.int64]:
    """Return how many of these ascending values lie from each edge to the next, those outside in the first or last."""
    inner = [bisect.bisect_left(ordered_n, edge) for edge in edges[1:-1]]  # np.searchsorted would copy all to float64
    return np.diff([0, *inner, ordered_n.size])


def _not_positive(ordered_n: NDArray[Any]) -> int:
    """Return how many values are 0 or less."""
    return int(np.searchsorted(ordered_n, ordered_n.dtype.type(0), side="right"))


def _quantiles(ordered_n: NDArray[Any]) -> dict[str, float | None]:
    """Return quantiles, the lower of two neighbours: a value that there is."""
    if not ordered_n.size:
        return {f"{share:g}": None for share in QUANTILES}
    places = [int(share * (ordered_n.size - 1)) for share in QUANTILES]
    return dict(zip((f"{share:g}" for share in QUANTILES), floats(ordered_n[places].astype(np.float64)), strict=True))


def _mean_and_std(values: NDArray[Any]) -> tuple[float, float]:
    """Return the mean and the population standard deviation; a block at a time, so that no copy is made of all."""
    mean = float(values.mean(dtype=np.float64))
    parts = (values[start : start + BLOCK] for start in range(0, values.size, BLOCK))
    return mean, math.sqrt(sum(float(np.square(part - np.float64(mean)).sum()) for part in parts) / values.size)


def _range(ordered_n: NDArray[Any], *, is_log: bool) -> tuple[float, float] | None:
    """Return the lowest and the highest value, of their logarithms if asked for; None where there is none."""
    there = ordered_n[_not_positive(ordered_n) :] if is_log else ordered_n
    if not there.size:
        return None
    low, high = float(there[0]), float(there[-1])
    return (math.log10(low), math.log10(high)) if is_log else (low, high)


def common_range(views: Sequence[TableView], column: str, *, is_log: bool) -> tuple[float, float]:
    """Return the lowest and the highest value of a column over several tables, of their logarithms if asked for."""
    found = [_range(ordered(view, column), is_log=is_log) for view in views]
    ends = [end for one in found if one is not None for end in one]
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
        mask = filters.select(view, conditions)
        values = ordered(view, column) if mask is None else np.sort(_there(view, column, conditions))
        is_log = scale == "log"
        below = _not_positive(values) if is_log else 0
        low, high = between or _range(values, is_log=is_log) or (0.0, 0.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = _edges(low, high, bins, is_log=is_log)
        spread: dict[str, float | None] = {"mean": None, "std": None, "min": None, "max": None}
        if values.size:
            found = [*_mean_and_std(values), values[0], values[-1]]
            spread = dict(zip(spread, floats(np.array(found, dtype=np.float64)), strict=True))
        return {
            "column": column,
            "scale": scale,
            "edges": [float(f"{edge:.9g}") for edge in edges],
            "counts": _histogram(values[below:], edges).tolist(),
            "below": below,
            "num_values": int(values.size),
            "num_missing": (view.num_rows if mask is None else int(mask.sum())) - int(values.size),
            **spread,
            "quantiles": _quantiles(values),
        }

    view.check_column(column, numeric=True)
    return view.once(("distribution", column, bins, scale, tuple(sorted(set(conditions))), between), work)


def _doubling(counts: NDArray[np.int64], highest: int) -> dict[str, int]:
    """Return how many values are 0, 1, 2-3, 4-7, … up to the class of the highest; counts[k] are those of k bits."""
    found = {"0": int(counts[0])}
    for bits in range(1, highest.bit_length() + 1):
        low, high = 1 << (bits - 1), (1 << bits) - 1
        found[str(low) if low == high else f"{low}-{high}"] = int(counts[bits])
    return found


def coverage(view: TableView) -> dict[str, Any]:
    """Return what was never seen and never picked, overall and by label."""
    return view.once(("coverage",), lambda: _coverage(view))


def _coverage(view: TableView) -> dict[str, Any]:
    num_labels = view.labels.num if view.labels is not None else 1
    sums = {name: np.zeros(num_labels) for name in ("num", "visits", "selected", "unseen", "unpicked", "weight")}
    bits = {name: np.zeros(33, dtype=np.int64) for name in ("visits", "selected")}
    highest = dict.fromkeys(bits, 0)
    for start in range(0, view.num_rows, BLOCK):
        visits, selected, weights = (view.block(name, start, start + BLOCK) for name in ("visits", "selected", "w"))
        codes = np.zeros(visits.size, dtype=np.intp)
        if view.labels is not None:
            codes += view.block("label", start, start + BLOCK)
        for name, values in (("visits", visits), ("selected", selected)):
            bits[name] += np.bincount(np.frexp(values.astype(np.float64))[1], minlength=33)
            highest[name] = max(highest[name], int(values.max()))
        sums["num"] += np.bincount(codes, minlength=num_labels)
        for name, values in (
            ("visits", visits),
            ("selected", selected),
            ("unseen", visits == 0),
            ("unpicked", selected == 0),
            ("weight", weights),
        ):
            sums[name] += np.bincount(codes, weights=values, minlength=num_labels)
    whole = {name: int(part.sum()) for name, part in sums.items() if name != "weight"}
    return {
        "num_samples": view.num_rows,
        "seen": view.num_rows - whole["unseen"],
        "never_seen": whole["unseen"],
        "picked": view.num_rows - whole["unpicked"],
        "never_picked": whole["unpicked"],
        "total_visits": whole["visits"],
        "total_selected": whole["selected"],
        "visits": _doubling(bits["visits"], highest["visits"]),
        "selected": _doubling(bits["selected"], highest["selected"]),
        "labels": None
        if view.labels is None
        else [
            {
                "label": view.labels.name(code),
                "num_samples": int(sums["num"][code]),
                "never_seen": int(sums["unseen"][code]),
                "never_picked": int(sums["unpicked"][code]),
                "visits": int(sums["visits"][code]),
                "selected": int(sums["selected"][code]),
                "picked_share": _share(sums["selected"][code], sums["visits"][code]),
                "share_of_selected": _share(sums["selected"][code], whole["selected"]),
                "mean_weight": _share(sums["weight"][code], sums["num"][code]),
            }
            for code in range(num_labels)
        ],
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
    weights = ordered(view, "w")
    total = float(weights.sum(dtype=np.float64))
    usable = 0 < weights.size == view.num_rows and float(weights[0]) >= 0 and 0 < total < math.inf
    effective: float | None = None
    top: dict[str, float | None] = {f"{share:g}": None for share in _TOP}
    if usable:
        squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in np.array_split(weights, 64))
        effective = float(f"{total**2 / squares:.7g}")
        numbers = [max(1, round(share * weights.size)) for share in _TOP]
        sums = [float(weights[-num:].sum(dtype=np.float64)) for num in numbers]
        top = dict(zip(top, (_share(part, total) for part in sums), strict=True))
    return {
        "num_samples": view.num_rows,
        "effective": effective,
        "share": None if effective is None else _share(effective, view.num_rows),
        "top_share": top,
    }
