"""From the state of a run to the plan of its next epoch: annealing, the method's own plan, and the guard around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.selection import decisions
from es_service.selection.config import Selection
from es_service.selection.guard import checks_variance, guarded
from es_service.selection.past import Past
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed
from es_service.selection.staleness import noted

__all__ = ["plan_epoch"]


def plan_epoch(
    selection: Selection,
    num_samples: int,
    ids: NDArray[np.int64],
    column: Callable[[str], NDArray[Any]],
    epoch: int,
    num_epochs: int,
    epoch_starts: Sequence[int],
    past: Past,
) -> Agreed[Plan]:
    """Return a shard's part of what an epoch trains on: everything where it anneals, else what the method plans.

    Args:
        selection: of the run.
        num_samples: n.
        ids: int64[n/S], of the shard.
        column: name -> copy of a column of the shard's table, [n/S].
        epoch: counted from 0.
        num_epochs: E.
        epoch_starts: the run step at which each epoch up to this one began.
        past: what the run has behind it.
    """
    annealing = selection.annealing(num_epochs)
    if annealing.is_whole(epoch):
        return Plan(ids=ids)
    prospect = Prospect(
        epoch=epoch,
        num_epochs=num_epochs,
        first_epoch=annealing.first_epoch,
        is_last=epoch + 1 >= annealing.end_epoch,
        epoch_starts=tuple(epoch_starts),
        num_samples=num_samples,
        num_kept=selection.num_kept(num_samples),
        max_age=selection.max_age,
        prune_unobserved=selection.prune_unobserved,
        seed=selection.seed,
        signal=selection.signal,
        ids=ids,
        column=column,
        scoring_cost=past.scoring_cost * selection.score_share if selection.is_scoring(epoch, num_epochs) else 0.0,
    )
    plan = yield from selection.method.plan(prospect)
    if selection.is_guarded:
        power = selection.power if checks_variance(selection.method, selection.draw) else None
        ratio = selection.ratio if plan.ratio is None else plan.ratio
        plan = yield from guarded(plan, prospect, past, ratio, power)
    if selection.score_share < 1:
        plan = noted(plan, prospect)
    if plan.decision is None:
        return plan
    return dataclasses.replace(plan, decision=decisions.filled(plan.decision, epoch, prospect.scoring_cost))
