"""The guard: an epoch selects nothing where the run's own figures say that selection does not pay.

    selects ──(does not pay)──► stopped 2 epochs ──► looks again ──(pays)──► selects
                                      ▲                  │
                                      └── 4, 8, 16 … ◄───┘ (does not pay)

What it does follows from the table, the plan and `Past` alone: the same on any topology and after a restart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from es_service.selection import reductions
from es_service.selection.methods.base import Method
from es_service.selection.past import Past
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed

__all__ = ["checks_variance", "guarded"]

_FIRST_WAIT = 2
_MOST = np.float32(1e30)


def checks_variance(method: Method, draw: str) -> bool:
    """Return whether w is what a meta-batch is drawn by, in proportion."""
    return type(method).weigh is Method.weigh and not method.signed and draw != "topk"


def guarded(plan: Plan, prospect: Prospect, past: Past, ratio: float, power: float | None) -> Agreed[Plan]:
    """Return a method's plan, or one of everything, unscored, where selection does not pay.

    Args:
        plan: the method's.
        prospect: of the epoch.
        past: of the run.
        ratio: b/B of the plan.
        power: α, with which meta-batches are drawn by w^α; None where they are drawn by something else.
    """
    [left_out] = yield reductions.Sum(np.array([prospect.ids.size - plan.ids.size]))
    last: dict[str, Any] = dict((past.decision or {}).get("guard") or {})
    if ratio >= 1.0 and not left_out:  # it selects nothing anyway
        if plan.decision is None or not last or _has_paid(past, last):
            return plan
        again = max(last["again"], prospect.epoch + 1)
        return dataclasses.replace(plan, decision={**plan.decision, "guard": {**last, "again": again}})
    decision: dict[str, Any] = {"ratio": ratio, **(plan.decision or {})}
    if last and prospect.epoch < last["again"]:
        return _stopped(prospect, decision, last["reason"], last)
    reason = None
    if past.time_saved is not None and past.time_saved <= 0:
        reason = "stopped_time"
    elif power is not None and (yield from _is_worse(prospect, ratio, power)):
        reason = "stopped_variance"
    looks_again = bool(last) and prospect.epoch == last["again"]
    if reason is None:
        trial = {"guard": last} if looks_again else {}  # this epoch shows whether it pays now
        return dataclasses.replace(plan, decision={**decision, **trial})
    wait = 2 * last["wait"] if last else _FIRST_WAIT
    return _stopped(prospect, decision, reason, {"reason": reason, "wait": wait, "again": prospect.epoch + wait})


def _has_paid(past: Past, last: dict[str, Any]) -> bool:
    """Return whether the last epoch was the one that looked again, and nothing says that it did not pay."""
    is_slow = past.time_saved is not None and past.time_saved <= 0
    return past.decision is not None and past.decision["epoch"] == last["again"] and not is_slow


def _stopped(prospect: Prospect, decision: dict[str, Any], reason: str, guard: dict[str, Any]) -> Plan:
    """Return the plan of an epoch on everything; what the method would have done stays in the decision."""
    stopped = {
        "ratio": 1.0,
        "cost_otherwise": decision["ratio"] + prospect.scoring_cost,
        "reason": reason,
        "guard": guard,
    }
    return Plan(ids=prospect.ids, ratio=1.0, decision={**decision, **stopped})


def _is_worse(prospect: Prospect, ratio: float, power: float) -> Agreed[bool]:
    """Return whether draws by weight estimate the gradient worse than uniform ones at equal cost.

    With the last losses ℓ for the norms of gradients, a draw by w has V = mean(w)·mean(ℓ²/w)/mean(ℓ²) times the
    variance of a uniform draw of as many samples. Of a meta-batch, b = q·B cost c + q; uniform draws have q + c for it.
    """
    losses = prospect.column("last_loss")
    seen = (prospect.column("visits") > 0) & np.isfinite(losses)
    [num] = yield from reductions.count(seen)
    if not num:
        return False
    losses, weights = losses[seen], prospect.column("w")[seen] ** np.float32(power)
    [impossible] = yield from reductions.count((weights <= 0) & (losses != 0))
    mean_loss = yield from reductions.exact_mean(np.abs(losses))
    mean_weight = yield from reductions.exact_mean(weights)
    if not mean_loss:
        return False  # nothing is left to learn from by these losses
    if impossible or not mean_weight:
        return True  # samples with a gradient that are never drawn
    relative = losses / np.float32(mean_loss)
    shares = weights / np.float32(mean_weight)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        squares = np.minimum(relative * relative, _MOST)
        drawn = np.where(losses == 0, np.float32(0), np.minimum(squares / shares, _MOST))
    even = yield from reductions.exact_mean(squares)
    by_weight = yield from reductions.exact_mean(drawn)
    return by_weight / even > ratio / (ratio + prospect.scoring_cost)
