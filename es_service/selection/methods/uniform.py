"""Methods that ignore the loss: the baselines everything else has to beat."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from es_service.selection.methods.base import F32, Columns, Method
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed

__all__ = ["Full", "Random", "RandomSubset", "full", "random", "random_subset"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Uniform(Method):
    """Every sample weighs the same; s simply holds the last observed value."""

    needs_losses: ClassVar[bool] = False

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 1: equal weights from the start."""
        return 1.0

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's arguments
        """Return (ℓ, 1)."""
        return {"s": values_B, "w": np.ones_like(values_B)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Full(_Uniform):
    """Standard training; make it with `full()`."""

    name: ClassVar[str] = "full"
    selects: ClassVar[bool] = False
    prunes: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Random(_Uniform):
    """A uniform draw each step; make it with `random()`."""

    name: ClassVar[str] = "random"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RandomSubset(_Uniform):
    """A uniform subset each epoch; make it with `random_subset()`."""

    name: ClassVar[str] = "random_subset"
    selects: ClassVar[bool] = False
    keeps_unobserved: ClassVar[bool] = False

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return `num_kept` ids, every set of them equally likely, whatever was trained on before."""
        subset = yield from prospect.lowest(prospect.uniforms(), prospect.num_kept)
        return Plan(ids=prospect.ids[subset])


def full() -> Full:
    """Standard training: every sample of every meta-batch is back-propagated."""
    return Full()


def random() -> Random:
    """Draw b of B uniformly each step; no scoring pass, so it costs b/B of full training."""
    return Random()


def random_subset() -> RandomSubset:
    """Train on a fresh uniform subset each epoch, (1-r)·n with r = `Selection.prune_ratio`, all of every meta-batch.

    An epoch has fewer steps: give `selector.steps(epoch)` to the learning-rate schedule.

    Reference: Okanovic et al., *Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning* (RS2), arXiv
    2305.18424.
    """
    return RandomSubset()
