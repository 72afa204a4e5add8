"""Draws of fixed size whose inclusion probabilities are exactly min(1, b·w/Σw), iterated. They differ in joint ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.draws.base import F64, Drawn, inclusion_targets, shuffled

__all__ = ["conditional_poisson", "pivotal", "systematic"]

_NEGLIGIBLE = 1e-9  # an inclusion probability this close to 0 or 1 is taken for it, where it has to be solved for


def systematic(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Systematic sampling with probability proportional to size, in random order: exact π at O(B log B).

    The uniforms give the order; the start of the comb is a further number made from the first of them (`shuffled`).
    Arguments and errors as in `race`. Reference: Madow 1949; Tillé, *Sampling Algorithms*, 2006, §7.1.
    """
    targets = inclusion_targets(weights_B, num)
    order, numbers = shuffled(uniforms_B)
    edges = np.cumsum(targets[order])
    edges *= num / edges[-1]  # Σπ = b up to rounding: make it so to the last bit
    start = max(numbers[0], 2.0**-28)  # not 0: a tooth on an edge would take its unit twice
    teeth = start + np.arange(num)
    taken = np.minimum(np.searchsorted(edges, teeth, side="right"), edges.size - 1)
    positions = order[taken]
    positions.sort()
    return Drawn(positions, lambda: targets[positions])


def pivotal(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Pivotal method in random order: units duel over their probabilities, one after the other. Exact π at O(B log B).

    The unit that stands, with a, meets the next, with c. Where a + c < 1, one of the two (the first with probability
    a/(a+c)) continues with a + c and the other is out. Otherwise one (the first with probability (1-c)/(2-a-c)) is
    taken and the other continues with a + c - 1. Each duel keeps every π; the last unit to stand has 0 or 1.

    The uniforms give the order and, behind the bits used for that, one number per duel (`shuffled`).
    Arguments and errors as in `race`. Reference: Deville & Tillé, *Unequal probability sampling without replacement
    through a splitting method*, Biometrika 1998.
    """
    targets = inclusion_targets(weights_B, num)
    order, numbers = shuffled(uniforms_B)
    taken: list[int] = []
    standing, stake = -1, 0.0
    for unit, target, number in zip(order.tolist(), targets[order].tolist(), numbers[order].tolist(), strict=True):
        total = stake + target
        if total < 1.0:
            if number * total >= stake:
                standing = unit
            stake = total
        else:
            if number * (2.0 - total) < 1.0 - target:
                taken.append(standing)
                standing = unit
            else:
                taken.append(unit)
            stake = total - 1.0
    if len(taken) < num:  # the last stake is 1, up to rounding
        taken.append(standing)
    positions = np.sort(np.array(taken, dtype=np.int64))
    return Drawn(positions, lambda: targets[positions])


def _counts_behind(probs: F64, num: int) -> F64:
    """Return float64[B+1, b+1]: row i holds P(j of the units i.. are in) for independent units, j = 0..b."""
    behind = np.zeros((probs.size + 1, num + 1))
    behind[-1, 0] = 1.0
    for i in range(probs.size - 1, -1, -1):
        behind[i] = behind[i + 1] * (1.0 - probs[i])
        behind[i, 1:] += behind[i + 1, :-1] * probs[i]
    return behind


def _conditional_inclusions(probs: F64, num: int) -> F64:
    """π_i of independent units with these probabilities, given that exactly b of them are in."""
    behind = _counts_behind(probs, num)
    ahead = _counts_behind(probs[::-1], num)[::-1]  # row i: counts among the units before i
    others = np.einsum("ij,ij->i", ahead[:-1, :num], behind[1:, num - 1 :: -1] if num > 1 else behind[1:, :1])
    inclusions: F64 = probs * others / behind[0, num]
    return inclusions


def _calibrate(targets: F64, num: int, *, tolerance: float = 1e-10, max_rounds: int = 200) -> F64:
    """Find the independent probabilities whose conditional inclusions are `targets` (all strictly inside (0, 1))."""
    probs = targets.copy()
    for _ in range(max_rounds):
        reached = _conditional_inclusions(probs, num)
        if np.max(np.abs(reached - targets)) <= tolerance:
            return probs
        odds = probs / (1.0 - probs)
        # Half a step on the logarithm: a whole one goes back and forth for ever where two units are left.
        odds *= np.sqrt(targets * (1.0 - reached) / (reached * (1.0 - targets)))
        probs = _with_sum(odds, num)
    raise errors.InputError(
        f"conditional Poisson weights did not settle in {max_rounds} rounds: the weights span "
        f"{targets.max() / targets.min():.1e}; use draw='systematic', whose probabilities are as exact"
    )


def _with_sum(odds: F64, num: int) -> F64:
    """Scale the odds so that the probabilities sum to b, which keeps P(exactly b) far from underflow."""
    log_scale = 0.0
    for _ in range(50):
        probs: F64 = odds * np.exp(log_scale) / (1.0 + odds * np.exp(log_scale))
        gap = num - probs.sum()
        if abs(gap) < 1e-9:
            break
        log_scale += np.clip(gap / np.sum(probs * (1.0 - probs)), -2.0, 2.0)
    return probs


def conditional_poisson(weights_B: NDArray[np.floating], num: int, uniforms_B: F64) -> Drawn:
    """Maximum-entropy draw with exact π, unit after unit: O(B·b) memory and time per calibration round.

    The reference among the exact draws; at B = 1,024 it takes milliseconds where the race takes microseconds.
    Arguments and errors as in `race`. Reference: Chen, Dempster, Liu, Biometrika 1994.
    """
    targets = inclusion_targets(weights_B, num)
    taken = targets >= 1.0 - _NEGLIGIBLE
    open_units = np.flatnonzero(~taken & (targets > _NEGLIGIBLE))
    left = num - int(taken.sum())
    if left > 0 and open_units.size <= left:
        taken[open_units] = True
    elif left > 0:
        probs = _calibrate(targets[open_units] * (left / targets[open_units].sum()), left)
        behind = _counts_behind(probs, left)
        for i, unit in enumerate(open_units):
            chance = probs[i] * behind[i + 1, left - 1] / behind[i, left]
            if uniforms_B[unit] < chance:
                taken[unit] = True
                left -= 1
                if left == 0:
                    break
    positions = np.flatnonzero(taken)
    return Drawn(positions, lambda: targets[positions])
