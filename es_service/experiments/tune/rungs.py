"""How far a trial is trained before it is compared with others, and which settings make that hard to say."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["REDUCTION", "cheapening", "rungs_of"]

REDUCTION = 3
_CHEAPENING = frozenset({"anneal", "ratio", "prune_ratio", "r", "score_every", "interrupt"})
_MOST_HALVINGS = 3


def cheapening(searched: Iterable[str]) -> bool:
    """Return whether a setting is searched that makes epochs cheaper: cheap epochs look bad at first."""
    return bool(_CHEAPENING & set(searched))


def rungs_of(epochs: int, searched: Iterable[str]) -> tuple[int, ...]:
    """Return after how many epochs HyperBand compares trials: all of them, a third, a ninth, ..., the fewest first.

    Where a setting is searched that makes epochs cheaper, there is one look on the way only.

    Example:
        >>> rungs_of(20, ["beta1"]), rungs_of(20, ["ratio"]), rungs_of(2, ["beta1"]), rungs_of(1, ["beta1"])
        ((2, 7, 20), (7, 20), (1, 2), (1,))
    """
    if epochs < 2:
        return (epochs,)
    halvings = 1
    while not cheapening(searched) and halvings < _MOST_HALVINGS and REDUCTION ** (halvings + 1) <= epochs:
        halvings += 1
    return tuple(math.floor(epochs / REDUCTION**k + 0.5) for k in range(halvings, -1, -1))
