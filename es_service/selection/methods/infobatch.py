"""InfoBatch: leave out some of the well-learned samples, and let the others of them weigh more.

Reference: Qin et al., *InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning*, arXiv 2303.04947.
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

__all__ = ["InfoBatch", "infobatch"]

_INITIAL_SCORE = 3.0  # as published; no sample is below the mean before losses were seen


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InfoBatch(LastValue):
    """Unbiased dynamic pruning; make it with `infobatch()`."""

    name: ClassVar[str] = "infobatch"
    needs_losses: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    r: float = 0.5

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0.0 <= self.r < 1.0:
            raise errors.ConfigError(f"r must lie in [0, 1), got {self.r}: the share of the well-learned to leave out")

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 3, as published."""
        return _INITIAL_SCORE

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return all but a share r of the well-learned, drawn uniformly; the rest of those weigh 1/(1-r)."""
        scores = prospect.column("s")
        mean = yield from reductions.exact_mean(scores)
        well_learned = scores < np.float64(mean)  # a bare float would be rounded to float32
        [num_well_learned] = yield from reductions.count(well_learned)
        num_out = math.floor(exact_share(self.r, num_well_learned))
        out = yield from prospect.lowest(prospect.uniforms(), num_out, well_learned)
        weight = num_well_learned / (num_well_learned - num_out) if num_out else 1.0
        scale = np.where(well_learned, np.float32(weight), np.float32(1))
        return Plan(ids=prospect.ids[~out], scale=scale[~out])


def infobatch(r: float = 0.5) -> InfoBatch:
    """InfoBatch: each epoch leaves out a share r of the samples whose last loss is below the mean, at random.

        loss < mean:  out with probability r, else trained on with its loss times 1/(1-r)
        otherwise:    trained on, weight 1

    so that the expected gradient is that of full training. (The weight is m/(m-⌊r·m⌋) for m well-learned samples,
    which is 1/(1-r) where r·m is whole.) `Selection.anneal=(0, 0.125)` ends with full epochs of weight 1, as
    published: δ = 0.875. All of a meta-batch is trained on; losses come from the training pass, none is scored.

    Epochs get shorter: give `selector.steps(epoch)` to the learning-rate schedule. r is a share of the well-learned
    samples, not of the set: r = 0.5 saves perhaps a fifth.

    Args:
        r: in [0, 1).

    Reference: Qin et al., arXiv 2303.04947.
    """
    return InfoBatch(r=r)
