"""A selection method in a package of its own: prefer samples whose loss is near a margin."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from es_service import errors
from es_service.selection.methods.base import F32, Columns, Method

__all__ = ["Margin", "margin"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Margin(Method):
    """w = exp(-|s - m|), with s the moving average of the loss; make it with `margin()`."""

    name: ClassVar[str] = "margin"

    at: float = 0.7
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise errors.ConfigError(f"beta must lie in [0, 1], got {self.beta}: it is the weight of the past")

    def initial_score(self, num_samples: int) -> float:
        """Return the margin itself, where a weight is greatest."""
        return self.at

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:
        """Return s = β·s + (1-β)·ℓ and w = exp(-|s - m|)."""
        beta = np.float32(self.beta)
        mean_B = beta * old["s"] + (1 - beta) * values_B
        return {"s": mean_B, "w": np.exp(-np.abs(mean_B - np.float32(self.at)))}


def margin(at: float = 0.7, beta: float = 0.5) -> Margin:
    """Prefer samples whose loss is near a margin.

    Args:
        at: m, the loss that weighs most.
        beta: weight of the past in s.
    """
    return Margin(at=float(at), beta=float(beta))
