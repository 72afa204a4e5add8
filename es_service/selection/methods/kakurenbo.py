"""KAKURENBO: hide the easiest samples for an epoch, if the model is sure of them.

Reference: Nguyen et al., *KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training*, arXiv 2310.10102.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from es_service import errors
from es_service.selection import reductions
from es_service.selection.methods.base import LastValue
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed
from es_service.selection.settings import exact_share, make_plain

__all__ = ["Kakurenbo", "kakurenbo"]

_STAGES = ((0.8, 0.4), (0.6, 0.6), (0.3, 0.8), (0.0, 1.0))  # from this share of the epochs on, times the fraction


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kakurenbo(LastValue):
    """Hide what is easy and certain; make it with `kakurenbo()`."""

    name: ClassVar[str] = "kakurenbo"
    needs_losses: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    observes: ClassVar[tuple[str, ...]] = ("correct", "confidence")
    columns: ClassVar[tuple[str, ...]] = ("correct", "confidence")
    fraction: float = 0.3
    threshold: float = 0.7

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0.0 <= self.fraction < 1.0:
            raise errors.ConfigError(f"fraction must lie in [0, 1), got {self.fraction}: the share to hide at most")
        if not 0.0 <= self.threshold <= 1.0:
            raise errors.ConfigError(f"threshold must lie in [0, 1], got {self.threshold}: it is a probability")

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return all but the hidden, which are to be observed again at the epoch's end if it is not the last."""
        done = prospect.epoch / prospect.num_epochs
        share = self.fraction * next(factor for begin, factor in _STAGES if done >= begin)
        num_easy = math.floor(exact_share(round(share, 12), prospect.num_samples))
        losses = np.where(prospect.column("visits") > 0, prospect.column("s").astype(np.float64), np.inf)
        easy = yield from prospect.lowest(losses, num_easy)
        with np.errstate(invalid="ignore"):  # NaN, never observed, is not certain
            certain = (prospect.column("correct") > 0) & (prospect.column("confidence") >= self.threshold)
        hidden = easy & certain
        [num_hidden] = yield from reductions.count(hidden)
        return Plan(
            ids=prospect.ids[~hidden],
            hidden=prospect.ids[hidden & (not prospect.is_last)],
            learning_rate_factor=prospect.num_samples / (prospect.num_samples - num_hidden),
        )


def kakurenbo(fraction: float = 0.3, *, threshold: float = 0.7) -> Kakurenbo:
    """KAKURENBO: each epoch hides those of the ⌊F_e·n⌋ smallest losses that are predicted right and with certainty.

        F_e = fraction · (1, 0.8, 0.6, 0.4) from 0, 30, 60 and 80 % of the epochs on
        hidden = among the F_e·n lowest losses, correct, confidence ≥ threshold; the others move back
        learning rate × 1/(1 - hidden/n), see `selector.learning_rate_factor`

    At the epoch's end the hidden get a forward pass, which refreshes loss, correctness and confidence:
    `selector.hidden_batches()` hands them out; `es.SelectiveLoader` calls it. Without that pass they stay
    hidden. All of a meta-batch is trained on; its losses come from the training pass.

    Args:
        fraction: F, in [0, 1); the most that is ever hidden.
        threshold: in [0, 1]; confidence, the largest class probability, from which on a prediction counts as certain.

    Reference: Nguyen et al., arXiv 2310.10102. (Their code takes the softmax over the batch; here it is over classes.)
    """
    return Kakurenbo(fraction=fraction, threshold=threshold)
