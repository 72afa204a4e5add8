"""Weighted draws: which b of B, and how likely each of them was to be taken.

Every draw is a pure function of (weights, b, uniforms). Shapes: B candidates, b taken.

    draw                  inclusion probability          of which kind
    race                  1 - exp(-w·τ)                  conditional on the other keys: 1/π weights are exactly unbiased
    priority              min(1, w·τ)                    likewise
    systematic            min(1, b·w/Σw), iterated       exact
    pivotal               min(1, b·w/Σw), iterated       exact
    conditional_poisson   min(1, b·w/Σw), iterated       exact
    topk                  none: it is deterministic
    replacement           b·w/Σw, expected number        exact; a position may be taken several times

Weights are non-negative (topk takes any finite ones); a weight of 0 is taken only once every positive one has been, and
by `replacement` only where all are 0. `docs/explanation/draws.md` has their measured figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service.selection.draws.base import F64, TINY, Drawn, check_weights, inclusion_targets, sharpened
from es_service.selection.draws.exact import conditional_poisson, pivotal, systematic
from es_service.selection.draws.keyed import first_arrivals, priority, race, race_keys, topk
from es_service.selection.draws.with_replacement import replacement

__all__ = [
    "DRAWS",
    "TINY",
    "DrawFunction",
    "Drawn",
    "check_weights",
    "conditional_poisson",
    "first_arrivals",
    "inclusion_targets",
    "pivotal",
    "priority",
    "race",
    "race_keys",
    "replacement",
    "sharpened",
    "systematic",
    "topk",
]

DrawFunction: TypeAlias = Callable[[NDArray[np.floating], int, F64], Drawn]

DRAWS: Mapping[str, DrawFunction] = MappingProxyType(
    {
        "race": race,
        "systematic": systematic,
        "pivotal": pivotal,
        "topk": topk,
        "conditional_poisson": conditional_poisson,
        "priority": priority,
        "replacement": replacement,
    }
)
"""Every draw by the name that `Selection.draw` takes."""
