"""How much each setting mattered, as far as a search of this size can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from es_service.experiments.tune.space import Space

__all__ = ["importance", "omega_squared"]

_GROUPS = 3
_LEAST = 6  # settings below which nothing is said


def importance(space: Space, rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return ω² of each searched setting for the objective; None where too few settings have finished.

    A range is cut into three groups with as many settings each; a listed setting has a group for each value.

    Args:
        space: that was searched.
        rows: of the settings that finished, with `settings` and `value`.
    """
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    found: dict[str, float | None] = {}
    for name, domain in space.domains.items():
        own = [row["settings"][name] for row in rows]
        if domain.listed is not None:
            groups = np.array([domain.listed.index(one) for one in own])
        else:
            groups = (stats.rankdata(own, method="ordinal") - 1) * _GROUPS // max(1, len(own))
        found[name] = omega_squared(values, groups) if len(rows) >= _LEAST else None
    return found


def omega_squared(values: NDArray[np.float64], groups: NDArray[np.integer]) -> float | None:
    """Return the share of the variance that lies between groups, corrected for what chance puts there, at least 0.

    ω² = (SS_between - (k-1)·MS_within) / (SS_total + MS_within). None with fewer than two groups, or where every group
    has a single member: then chance cannot be told from effect.

    Reference: Hays, *Statistics for Psychologists*, 1963.
    """
    present, members = np.unique(groups, return_inverse=True)
    within_freedom = values.size - present.size
    if present.size < 2 or within_freedom < 1:
        return None
    total = float(((values - values.mean()) ** 2).sum())
    means = np.array([values[members == k].mean() for k in range(present.size)])
    within = float(((values - means[members]) ** 2).sum()) / within_freedom
    if total == 0:
        return 0.0
    between = float((np.bincount(members) * (means - values.mean()) ** 2).sum())
    return float(max(0.0, (between - (present.size - 1) * within) / (total + within)))
