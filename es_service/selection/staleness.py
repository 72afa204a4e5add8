"""Which samples of a meta-batch a scoring pass goes over, where it goes over a part only (`Selection.score_share`).

A plan notes how stale the score of each of its ids is, one byte, by the table at the epoch's start. The higher it is,
the earlier the sample is scored again:

    255      never observed
    16·a+u   a: epochs since its last observation, at most 14; u: 16·|ℓ - ℓ̄|/(|ℓ| + |ℓ̄|), at most 15

ℓ is the sample's last loss, ℓ̄ the mean of its losses: among equally old scores, the losses that moved most come first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.plans import Plan, Prospect
from es_service.selection.settings import ceil_share

__all__ = ["NEVER", "U8", "check_scored", "check_share", "noted", "stalest"]

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
NEVER = np.uint8(255)
_LEVELS, _MOST_EPOCHS = 16, 14


def check_share(share: float, *, skips: bool) -> None:
    """Raise ConfigError unless `Selection.score_share` may be this; `skips`: bad losses are to be left out."""
    if not 0.0 < share <= 1.0:
        raise errors.ConfigError(
            f"score_share must lie in (0, 1], got {share}: it is the share of a meta-batch to score"
        )
    if share < 1 and skips:
        raise errors.ConfigError(
            f"score_share={share:g} trains on samples that were not scored, and on_bad_loss='skip' has to know every "
            "loss before: take on_bad_loss='raise', or score_share=1"
        )


def check_scored(scored: Any, num: int, needed_k: I64, *, has_losses: bool) -> I64:
    """Return the positions that were scored of a meta-batch, int64[k].

    Args:
        scored: positions as a caller gave them.
        num: B.
        needed_k: those that have to be among them.
        has_losses: losses of them came too.

    Raises:
        ShapeError: not ascending integers in [0, B), one that is needed is not among them, or no losses came.
    """
    found = np.asarray(scored)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise errors.ShapeError(f"scored must be integers of one dimension, got {found.dtype}{list(found.shape)}")
    found = found.astype(np.int64)
    if found.size and (found[0] < 0 or found[-1] >= num or (np.diff(found) <= 0).any()):
        raise errors.ShapeError(f"scored must be positions in [0, {num}), ascending, as selector.to_score returns them")
    missing = np.setdiff1d(needed_k, found, assume_unique=True)
    if missing.size:
        raise errors.ShapeError(
            f"scored lacks position {missing[0]}, which has to be scored in this step: score what "
            "selector.to_score(ids_B) names, or more"
        )
    if not has_losses and found.size:
        raise errors.ShapeError("scored says of which positions the losses are, but no losses came with it")
    return found


def noted(plan: Plan, prospect: Prospect) -> Plan:
    """Return a shard's part of a plan with the staleness of its ids."""
    rows_m = np.searchsorted(prospect.ids, plan.ids)
    steps_m, losses_m, means_m = (prospect.column(name)[rows_m] for name in ("last_step", "last_loss", "loss_mean"))
    ages_m = prospect.epoch + 1 - np.searchsorted(prospect.epoch_starts[: prospect.epoch + 1], steps_m, side="right")
    losses_m, means_m = losses_m.astype(np.float64), means_m.astype(np.float64)
    sizes_m = np.abs(losses_m) + np.abs(means_m)
    moved_m = np.divide(np.abs(losses_m - means_m), sizes_m, out=np.zeros_like(sizes_m), where=sizes_m > 0)
    unsure_m = np.minimum(moved_m * _LEVELS, _LEVELS - 1).astype(np.uint8)
    stale_m = np.clip(ages_m, 0, _MOST_EPOCHS).astype(np.uint8) * np.uint8(_LEVELS) + unsure_m
    return dataclasses.replace(plan, staleness=np.where(steps_m < 0, NEVER, stale_m))


def stalest(stale_B: U8, share: float) -> I64:
    """Return the positions int64[k], ascending, of the k = ⌈share·B⌉ stalest of a meta-batch; ties by position.

    All that were never observed are among them, and at least two samples: BatchNorm cannot do with one.
    """
    num = max(ceil_share(share, stale_B.size), int(np.count_nonzero(stale_B == NEVER)), min(2, stale_B.size))
    return np.sort(np.argsort(~stale_B, kind="stable")[:num])
