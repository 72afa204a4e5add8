"""Two runs over the same samples: rank correlation, and the samples that they rank most differently."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.api.table.view import TableView, floats

__all__ = ["COMPARED", "compare"]

COMPARED = ("w", "s", "loss_mean", "last_loss", "selected", "visits")
_TOP = (0.01, 0.1)


def compare(a: TableView, b: TableView, column: str, limit: int) -> dict[str, Any]:
    """Return how the ranks of a column agree over the ids that both have, and the samples that moved most.

    Reference: Spearman's rank correlation, ties sharing their mean rank.
    """
    key = ("compare", b.version, id(b), column, limit)
    return a.once(key, lambda: _compare(a, b, column, limit), beside=b)


def _compare(a: TableView, b: TableView, column: str, limit: int) -> dict[str, Any]:
    num = min(a.num_rows, b.num_rows)
    values_a, values_b = a.column(column)[:num], b.column(column)[:num]
    both = np.isfinite(values_a) & np.isfinite(values_b)
    ids = np.flatnonzero(both)
    if ids.size < num:
        values_a, values_b = values_a[ids], values_b[ids]
    ranks_a, ranks_b = _ranks(values_a), _ranks(values_b)
    shift = ranks_b - ranks_a
    size = np.abs(shift)
    most = min(limit, ids.size)
    chosen = np.argpartition(-size, most - 1)[:most] if most else np.empty(0, dtype=np.int64)
    chosen = chosen[np.lexsort((ids[chosen], -size[chosen]))]
    labels = a.labels or b.labels
    return {
        "column": column,
        "num_common": int(ids.size),
        "rank_correlation": _correlation(ranks_a, ranks_b),
        "overlap": {f"{share:g}": _overlap(ranks_a, ranks_b, share) for share in _TOP},
        "moved": [
            {
                "id": int(ids[place]),
                "label": None if labels is None else labels.name(int(labels.codes_n[ids[place]])),
                "a": floats(values_a[[place]].astype(np.float64))[0],
                "b": floats(values_b[[place]].astype(np.float64))[0],
                "a_rank": round(float(ranks_a[place]), 6),
                "b_rank": round(float(ranks_b[place]), 6),
                "shift": round(float(shift[place]), 6),
            }
            for place in chosen
        ],
    }


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return ranks float64[m] as shares in 0..1, the highest 1; equal values share the mean of theirs."""
    from scipy import stats  # takes a second to import

    ranks: NDArray[np.float64] = (stats.rankdata(values) - 1) / max(1, values.size - 1)
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return Pearson's correlation of ranks, which is Spearman's of the values; None where one side is constant."""
    from scipy import stats

    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(f"{stats.pearsonr(a, b).statistic:.7g}")


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], share: float) -> float | None:
    if not a.size:
        return None
    num = max(1, round(share * a.size))
    top_a, top_b = (np.argpartition(-ranks, num - 1)[:num] for ranks in (a, b))
    return float(f"{np.intersect1d(top_a, top_b).size / num:.7g}")
