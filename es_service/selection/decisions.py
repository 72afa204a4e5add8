"""Decisions of a plan: what its epoch trains on, why, and what that costs; as they are kept, and in words.

epoch           that it is about, from 0
share           r, the share of a meta-batch that the weights ask for; None where nothing was observed
ratio           b/B of the epoch's steps; 1 trains on everything, unscored
progress        by which share the last losses are below the earlier ones; None where that is not known
scoring_cost    of a meta-batch, as a share of a full step over it
cost            of the epoch's steps, as a share of full training
cost_otherwise  of the other choice: all of it where the epoch selects, the selection where it does not
reason          a word of `REASONS`
guard           of the guard: reason, wait and again, the epoch at which it looks again; None where it has not stopped
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["FIGURES", "REASONS", "STOPPED", "checked", "filled", "in_words"]

FIGURES = ("share", "progress", "ratio", "scoring_cost", "cost", "cost_otherwise")
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "fixed_ratio": "the method has a ratio of its own",
        "no_losses": "no losses are known yet",
        "weights_even": "weights are even",
        "losses_stay": "losses hardly fall",
        "weights_concentrate": "weights concentrate",
        "stopped_time": "selection took longer than it saved",
        "stopped_variance": "at equal cost, uniform draws estimate the gradient better",
    }
)
"""Why an epoch trains on what it does."""
STOPPED = ("stopped_time", "stopped_variance")
"""Reasons of epochs in which the guard has stopped selection."""


def filled(decision: Mapping[str, Any], epoch: int, scoring_cost: float) -> dict[str, Any]:
    """Return a decision with all its figures, of one that has "ratio", and "share" where the weights ask for one."""
    share, ratio = decision.get("share"), decision["ratio"]
    selects = ratio < 1.0
    return {
        "epoch": epoch,
        "share": share,
        "progress": None,
        "ratio": ratio,
        "scoring_cost": scoring_cost,
        "cost": ratio + scoring_cost if selects else 1.0,
        "cost_otherwise": 1.0 if selects else None if share is None else min(share, 1.0) + scoring_cost,
        "reason": _reason(selects, share),
        "guard": None,
        **decision,
    }


def _reason(selects: bool, share: float | None) -> str:
    if share is None:
        return "fixed_ratio" if selects else "no_losses"
    return "weights_concentrate" if selects else "weights_even"


def checked(found: Any) -> dict[str, Any] | None:
    """Return a decision as it was kept, or None; ValueError where it is none of `filled`."""
    if found is None:
        return None
    is_one = isinstance(found, dict) and isinstance(found.get("reason"), str) and _is_count(found.get("epoch"))
    figures = FIGURES if is_one else ()
    known = ("ratio", "scoring_cost", "cost")
    are_numbers = all(_is_number(found.get(name)) or (name not in known and found[name] is None) for name in figures)
    guard = found.get("guard") if is_one else None
    is_guard = guard is None or (
        isinstance(guard, dict)
        and isinstance(guard.get("reason"), str)
        and all(_is_count(guard.get(name)) for name in ("wait", "again"))
    )
    if not (is_one and are_numbers and is_guard):
        raise ValueError(f"not what was decided for an epoch: {found!r}"[:200])
    return dict(found)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_words(decision: Mapping[str, Any]) -> str:
    """Return what an epoch trains on, and why."""
    what = "everything" if decision["ratio"] >= 1.0 else f"{decision['ratio']:.0%} of each meta-batch"
    figures = [] if decision["share"] is None else [f"r = {decision['share']:.2f}"]
    if decision["progress"] is not None:
        figures.append(f"p = {decision['progress']:.2f}")
    figures.append(f"scoring costs {decision['scoring_cost']:.0%} of a step")
    reason = decision["reason"]
    return f"trains on {what} ({REASONS.get(reason, reason)}: {'; '.join(figures)})".replace("%", " %")
