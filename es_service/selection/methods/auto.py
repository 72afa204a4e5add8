"""`auto`: Evolved Sampling whose share of each meta-batch follows from the run itself, epoch by epoch."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from es_service import errors
from es_service.selection import reductions
from es_service.selection.methods.evolved import Evolved
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed

__all__ = ["Auto", "auto"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Auto(Evolved):
    """Evolved Sampling that decides its own share; make it with `auto()`."""

    name: ClassVar[str] = "auto"
    decides: ClassVar[bool] = True
    prunes: ClassVar[bool] = False
    beta1: float = 0.2
    beta2: float = 0.9
    least: float = 0.25
    progress: float = 0.4

    def __post_init__(self) -> None:
        Evolved.__post_init__(self)
        if not 0.0 < self.least <= 1.0:
            raise errors.ConfigError(f"least must lie in (0, 1], got {self.least}: the smallest share to train on")
        if not 0.0 <= self.progress <= 1.0:
            raise errors.ConfigError(f"progress must lie in [0, 1], got {self.progress}: a share of the mean loss")

    def settings(self) -> dict[str, Any]:
        """Return the settings that are free."""
        return {"beta1": self.beta1, "beta2": self.beta2, "least": self.least, "progress": self.progress}

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return all ids, the share of each meta-batch to train on, and why."""
        share = yield from self._effective_share(prospect)
        progress = yield from self._progress(prospect)
        if share is None:
            reason, ratio = "no_losses", 1.0
        elif max(share, self.least) + prospect.scoring_cost >= 1:
            reason, ratio = "weights_even", 1.0
        elif progress is not None and progress < self.progress:
            reason, ratio = "losses_stay", 1.0
        else:
            reason, ratio = "weights_concentrate", max(share, self.least)
        decision = {"reason": reason, "ratio": ratio, "share": share, "progress": progress}
        if share is not None and ratio == 1.0:
            decision["cost_otherwise"] = max(share, self.least) + prospect.scoring_cost
        return Plan(ids=prospect.ids, ratio=ratio, decision=decision)

    def _effective_share(self, prospect: Prospect) -> Agreed[float | None]:
        """Return ESS/n of the weights observed so far, None where there are none."""
        weights = prospect.column("w")[prospect.column("visits") > 0]
        [num, num_weighing] = yield from reductions.count(np.ones(weights.size, dtype=np.bool_), weights > 0)
        if num == 0:
            return None
        if num_weighing == 0:
            return 1.0
        mean = yield from reductions.exact_mean(weights)
        # Of weights relative to their mean, so that squares of tiny ones do not vanish.
        square = yield from reductions.exact_mean(np.square(weights / np.float32(mean)))
        return min(1.0, 1.0 / square)

    def _progress(self, prospect: Prospect) -> Agreed[float | None]:
        """Return by which share the mean of the last losses is below that of the earlier ones; None without those."""
        if prospect.signal != "loss" or not 0.0 < self.beta2 < 1.0:  # the score holds no earlier losses
            return None
        visits = prospect.column("visits")
        seen = visits > 1
        last = prospect.column("last_loss")[seen]
        # The score before the last observation, without the weight that 1/n still has in it.
        earlier = (prospect.column("s")[seen] - (1 - self.beta2) * last.astype(np.float64)) / self.beta2
        of_first = self.beta2 ** (visits[seen] - 1.0)
        earlier = (earlier - of_first * self.initial_score(prospect.num_samples)) / (1 - of_first)
        [num] = yield from reductions.count(seen)
        if num == 0:
            return None
        now = yield from reductions.exact_mean(last)
        before = yield from reductions.exact_mean(np.maximum(earlier, 0).astype(np.float32))
        return 1 - now / before if before > 0 else 0.0


def auto(beta1: float = 0.2, beta2: float = 0.9, *, least: float = 0.25, progress: float = 0.4) -> Auto:
    """Evolved Sampling that decides at each epoch's start which share of a meta-batch to train on, or all of it.

        r = (Σw)²/(n·Σw²)                  the effective share of the samples, over those observed so far
        c                                  what scoring a meta-batch costs, as a share of a full step over it
        p = 1 - mean ℓ/mean earlier ℓ      by how much the losses have fallen

    Where max(r, least) + c ≥ 1 a draw by weight is not worth its scoring pass: the epoch trains on everything, and its
    losses are observed on the way. So it does where p is below `progress`: what is left to learn is then mostly noise,
    which large losses are drawn to. Else b = ⌈max(r, least)·B⌉ of each meta-batch. The first epoch, with no losses
    yet, trains on everything, so there is no annealing to choose.

    A uniform draw of r·B + c·B samples has the gradient variance of r·B drawn by w and re-weighted, where w is
    proportional to the gradients' norms: that is where r + c = 1 comes from.

    Args:
        beta1: in [0, 1]; how much of the weight is the old score.
        beta2: in [0, 1]; how slowly the score follows the loss. At 0 and 1 it holds no earlier losses to compare with.
        least: in (0, 1]; the smallest share of a meta-batch to train on.
        progress: in [0, 1]; 0 selects whatever the losses do.

    Reference: weights of arXiv 2509.23461; the bound is that of Katharopoulos & Fleuret, arXiv 1803.00942.
    """
    return Auto(beta1=beta1, beta2=beta2, least=least, progress=progress)
