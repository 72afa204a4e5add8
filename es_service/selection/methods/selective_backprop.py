"""Selective Backprop: back-propagate a sample with a probability that rises with the rank of its loss.

Reference: Jiang et al., *Accelerating Deep Learning by Focusing on the Biggest Losers*, arXiv 1910.00762.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.methods.base import F32, LastValue
from es_service.selection.settings import as_integer, make_plain

__all__ = ["SelectiveBackprop", "selective_backprop"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveBackprop(LastValue):
    """P ∝ CDF(ℓ)^β; make it with `selective_backprop()`."""

    name: ClassVar[str] = "selective_backprop"
    beta: float = 3.0
    history: int = 1024

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0.0 <= self.beta <= 100.0:
            raise errors.ConfigError(f"beta must lie in [0, 100], got {self.beta}: it is the power of a share")
        as_integer("history", self.history, least=0, end=2**24)

    @property
    def window(self) -> int:
        """Return R."""
        return self.history

    def weigh(self, weights_B: F32, recent_R: F32) -> NDArray[np.floating]:
        """Return CDF_R(ℓ)^β: the share of the last R losses, these among them, that are no larger."""
        losses_R = np.sort(np.concatenate((recent_R[~np.isnan(recent_R)], weights_B)))
        shares_B = np.searchsorted(losses_R, weights_B, side="right") / losses_R.size
        powered: NDArray[np.float64] = shares_B**self.beta
        return powered


def selective_backprop(beta: float = 3.0, *, history: int = 1024) -> SelectiveBackprop:
    """Selective Backprop: a sample is taken with P = CDF_R(ℓ)^β, its loss's rank among the last R losses of the rank.

        E[CDF^β] = 1/(1+β), so that ratio = 1/(1+β) with draw="systematic" takes each with just this probability,
        and always b of B; at another ratio P is scaled.

    The last R are those of this rank's last meta-batches in the epoch, the one at hand among them. Losses that are
    re-used (StaleSB) are `Selection.score_every`: 2 or 3 epochs in the paper.

    Composer's version: β = 1/keep - 1 = 1, history=0 (rank within the meta-batch), ratio = keep = 0.5, anneal =
    (0.5, 0.1), interrupt = 2: preset `selective_backprop_composer`.

    Args:
        beta: in [0, 100]; selectivity.
        history: R; 0 compares within the meta-batch only.

    Reference: Jiang et al., arXiv 1910.00762; Composer, `algorithms/selective_backprop`.
    """
    return SelectiveBackprop(beta=beta, history=history)
