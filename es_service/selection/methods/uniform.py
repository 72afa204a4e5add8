"""Methods that ignore the loss: the baselines everything else has to beat."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from es_service.selection.methods.base import F32, Method

__all__ = ["Full", "Random", "full", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Uniform(Method):
    """Every sample weighs the same; s simply holds the last observed loss."""

    needs_losses: ClassVar[bool] = False

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 1: equal weights from the start."""
        return 1.0

    def update(self, s_B: F32, losses_B: F32) -> tuple[F32, F32]:
        """Return (ℓ, 1)."""
        return losses_B, np.ones_like(s_B)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Full(_Uniform):
    """Standard training; make it with `full()`."""

    name: ClassVar[str] = "full"
    selects: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Random(_Uniform):
    """A uniform draw each step; make it with `random()`."""

    name: ClassVar[str] = "random"


def full() -> Full:
    """Standard training: every sample of every meta-batch is back-propagated."""
    return Full()


def random() -> Random:
    """Draw b of B uniformly each step; no scoring pass, so it costs b/B of full training."""
    return Random()
