"""Draws by one key per sample, the b best of which win: they merge over shards, in any order of the candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.selection import compiled
from es_service.selection.draws.base import F64, I64, TINY, Drawn, check_weights

__all__ = ["first_arrivals", "priority", "race", "race_keys", "topk"]


def _first(keys_B: F64, num: int) -> tuple[I64, float]:
    """Return the positions of the `num` smallest keys, ascending by position, and the smallest key left out."""
    if num == keys_B.size:
        return np.arange(num), np.inf
    threshold = float(np.partition(keys_B, num)[num])
    if (code := compiled.loops()) is not None:
        positions = np.empty(num, dtype=np.int64)
        num_below = code.positions_below(keys_B, threshold, positions)
    else:
        positions = np.flatnonzero(keys_B < threshold)
        num_below = positions.size
    if num_below != num:  # equal keys at the threshold: let the partition pick among them
        positions = np.sort(np.argpartition(keys_B, num)[:num])
    return positions, threshold


def race_keys(weights_B: NDArray[np.floating], uniforms_B: F64) -> F64:
    """Return float64[B] arrival times Exp(1)/w: the smallest win, so keys of several tables can simply be merged."""
    weights = np.ascontiguousarray(weights_B, dtype=np.float64)
    keys = np.log(uniforms_B)
    if (code := compiled.loops()) is not None:
        code.arrivals(weights, TINY, keys)
        return keys
    keys /= np.maximum(weights, TINY)
    return np.negative(keys, out=keys)


def race(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Take the `num` first arrivals of an exponential race: successive draws with p ∝ w, as torch.multinomial does.

    With τ the arrival time of the first one left out, P(i arrives before τ | all others) = 1 - exp(-w_i·τ), and
    weighting by its inverse is unbiased (rank conditioning).

    Args:
        weights_B: float[B], at least 0.
        num: b, in [1, B].
        uniforms_B: float64[B] in (0, 1), independent.

    Raises:
        ConfigError: b outside [1, B].
        InputError: a negative or non-finite weight.

    Reference: Efraimidis & Spirakis 2006; Cohen & Kaplan, *Summarizing data using bottom-k sketches*, 2007.
    """
    weights = check_weights(weights_B, num)
    return first_arrivals(weights, race_keys(weights, uniforms_B), num)


def first_arrivals(weights_B: NDArray[np.floating], keys_B: F64, num: int) -> Drawn:
    """Take the `num` first of the arrival times float64[B], see `race`; the weights are those they came from."""
    positions, threshold = _first(keys_B, num)

    def inclusion() -> F64:
        weights = np.maximum(weights_B[positions].astype(np.float64), TINY)
        with np.errstate(over="ignore"):  # τ is huge where only weights of 0 were left out, and π is then 1
            inclusions: F64 = -np.expm1(-weights * threshold)
        return inclusions

    return Drawn(positions, inclusion)


def priority(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Take the `num` largest w/u; given the (b+1)-th of them, 1/τ, item i is in with probability min(1, w_i·τ).

    Arguments and errors as in `race`. Reference: Duffield, Lund, Thorup, *Priority sampling*, J. ACM 2007.
    """
    weights = np.maximum(check_weights(weights_B, num), TINY)
    positions, threshold = _first(uniforms_B / weights, num)

    def inclusion() -> F64:
        with np.errstate(over="ignore"):  # as in `race`
            return np.minimum(1.0, weights[positions] * threshold)

    return Drawn(positions, inclusion)


def topk(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Take the `num` largest weights; the uniforms only order equal weights. No inclusion probability exists.

    Arguments and errors as in `race`, but a weight may be negative, e.g. a loss less its irreducible part.
    Reference: Kawaguchi & Lu, *Ordered SGD*, 2020; Mindermann et al., *RHO-LOSS*, 2022.
    """
    weights = check_weights(weights_B, num, any_sign=True)
    order = np.lexsort((uniforms_B, -weights))[:num]
    order.sort()
    return Drawn(order, None)
