"""Pruning as a bandit: keep what is hard on average, and explore what is uncertain or chance.

Reference: Raju, Daruwalla, Lipasti, *Accelerating Deep Learning with Dynamic Data Pruning*, arXiv 2111.12621.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from es_service import errors
from es_service.selection import reductions
from es_service.selection.methods.base import F32, Columns, Method
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed
from es_service.selection.settings import as_integer, exact_share, make_plain

__all__ = ["EpsilonGreedy", "Ucb", "epsilon_greedy", "ucb"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Bandit(Method):
    """Chooses a subset every few epochs and keeps it in between; steps take all of a meta-batch."""

    needs_losses: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    beta: float = 0.8
    every: int = 1

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0.0 <= self.beta <= 1.0:
            raise errors.ConfigError(f"beta must lie in [0, 1], got {self.beta}: it is the weight of the past")
        as_integer("every", self.every, least=1)

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 0; a sample never observed is never pruned."""
        return 0.0

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return a new subset, or in the epochs between two choices what the last one chose."""
        since = (prospect.epoch - prospect.first_epoch) % self.every
        if since:
            # What was chosen then has been trained on, and so observed, ever since.
            chosen = prospect.column("last_step") >= prospect.epoch_starts[prospect.epoch - since]
            chosen |= prospect.unobserved()
            [num_chosen] = yield from reductions.count(chosen)
            return Plan(ids=prospect.ids[chosen] if num_chosen else prospect.ids)
        if prospect.num_kept == prospect.num_samples:
            return Plan(ids=prospect.ids)
        return (yield from self._choose(prospect))

    def _choose(self, prospect: Prospect) -> Agreed[Plan]:
        raise NotImplementedError  # abstract


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ucb(_Bandit):
    """Mean plus variance; make it with `ucb()`."""

    name: ClassVar[str] = "ucb"
    reads: ClassVar[tuple[str, ...]] = ("s", "variance", "visits")
    columns: ClassVar[tuple[str, ...]] = ("variance",)
    c: float = 1.0

    def __post_init__(self) -> None:
        _Bandit.__post_init__(self)
        if not 0.0 <= self.c < math.inf:
            raise errors.ConfigError(f"c must be at least 0 and finite, got {self.c}: it weighs the variance")

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = β·s + (1-β)·ℓ, variance = β·variance + (1-β)·(ℓ-s)², w = s + c·variance; first s = ℓ."""
        beta, first = np.float32(self.beta), old["visits"] == 0
        mean_B = np.where(first, values_B, beta * old["s"] + (1 - beta) * values_B)
        surprise_B = values_B - mean_B
        variance_B = np.where(first, np.float32(0), beta * old["variance"] + (1 - beta) * surprise_B * surprise_B)
        return {"s": mean_B, "variance": variance_B, "w": mean_B + np.float32(self.c) * variance_B}

    def _choose(self, prospect: Prospect) -> Agreed[Plan]:
        everything = np.ones(prospect.ids.size, dtype=np.bool_)
        return (yield from prospect.keep([(everything, -prospect.column("w").astype(np.float64))]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonGreedy(_Bandit):
    """The hardest, and some by chance; make it with `epsilon_greedy()`."""

    name: ClassVar[str] = "epsilon_greedy"
    reads: ClassVar[tuple[str, ...]] = ("s", "visits")
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        _Bandit.__post_init__(self)
        if not 0.0 <= self.epsilon <= 1.0:
            raise errors.ConfigError(f"epsilon must lie in [0, 1], got {self.epsilon}: the share drawn by chance")

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = w = β·s + (1-β)·ℓ; first s = ℓ."""
        beta = np.float32(self.beta)
        mean_B = np.where(old["visits"] == 0, values_B, beta * old["s"] + (1 - beta) * values_B)
        return {"s": mean_B, "w": mean_B}

    def _choose(self, prospect: Prospect) -> Agreed[Plan]:
        num_greedy = prospect.num_kept - math.floor(exact_share(self.epsilon, prospect.num_kept))
        keys_n = -prospect.column("w").astype(np.float64)
        greedy = yield from prospect.lowest(keys_n, num_greedy)
        return (yield from prospect.keep([(greedy, keys_n), (~greedy, prospect.uniforms())]))


def ucb(c: float = 1.0, *, beta: float = 0.8, every: int = 1) -> Ucb:
    """Keep the (1-r)·n samples with the highest upper confidence bound of their loss, r = `Selection.prune_ratio`.

        m ← β·m + (1-β)·ℓ          v ← β·v + (1-β)·(ℓ - m)²          keep the largest m + c·v

    The first loss sets m, with v = 0. Samples never observed, and those out for `max_age` epochs, come first.

    Args:
        c: at least 0; how much uncertainty counts.
        beta: in [0, 1]; weight of the past.
        every: epochs between two choices.

    Reference: Raju et al., arXiv 2111.12621.
    """
    return Ucb(c=c, beta=beta, every=every)


def epsilon_greedy(epsilon: float = 0.1, *, beta: float = 0.8, every: int = 1) -> EpsilonGreedy:
    """Keep (1-r)·n samples: a share 1-ε of them those with the largest mean loss, ε drawn uniformly from the rest.

    Args:
        epsilon: in [0, 1].
        beta: in [0, 1]; weight of the past in the mean m ← β·m + (1-β)·ℓ, which the first loss sets.
        every: epochs between two choices.

    Reference: Raju et al., arXiv 2111.12621.
    """
    return EpsilonGreedy(epsilon=epsilon, beta=beta, every=every)
