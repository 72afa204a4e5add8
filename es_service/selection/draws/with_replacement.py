"""The draw with replacement: b independent ones, so that a position may be taken several times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.selection.draws.base import F64, Drawn, check_weights

__all__ = ["replacement"]


def replacement(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Take `num` times one of the B with p = w/Σw, each time from all of them: O(B + b log B).

    The i-th of the b is the inverse of the cumulated weights at the i-th uniform. A position taken k times comes back
    once, with `times_b` k, so that it costs one forward and backward pass. `inclusion_b` is the expected number of
    times, b·p, and may exceed 1. Weights that are all 0 count as equal.

    Arguments and errors as in `race`. Reference: Katharopoulos & Fleuret, arXiv 1803.00942.
    """
    weights = check_weights(weights_B, num)
    if not weights.any():
        weights = np.ones_like(weights)
    edges = np.cumsum(weights)
    total = edges[-1]
    marks = uniforms_B[:num] * total  # below the total, however near to 1 a uniform is
    positions, times = np.unique(np.searchsorted(edges, marks, side="right"), return_counts=True)
    return Drawn(positions, lambda: num * weights[positions] / total, times)
