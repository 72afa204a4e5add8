"""Whether a run selects anything at all: settings that each are fine may together train on everything."""

from __future__ import annotations

import warnings

from es_service import errors
from es_service.selection.methods.base import Method
from es_service.selection.run import RunConfig

__all__ = ["warn_if_idle", "why_idle"]


def why_idle(config: RunConfig, world_size: int = 1) -> str | None:
    """Return why this run never selects, and what to change; None where it does, or is full training by its method."""
    selection, method = config.selection, config.selection.method
    draws = selection.num_selected(config.batch_size) < config.batch_size
    plans_itself = not method.prunes and not method.decides and type(method).plan is not Method.plan
    prunes = plans_itself or (method.prunes and selection.num_kept(config.num_samples) < config.num_samples)
    if not draws and not prunes:
        return None if method.name == "full" else _takes_everything(config)
    annealing = selection.annealing(config.num_epochs)
    planned = range(annealing.first_epoch, annealing.end_epoch)
    # Losses are known from the second epoch on; before, only chance leaves anything out.
    by_chance = not method.keeps_unobserved or (method.prunes and selection.prune_unobserved)
    if prunes and any(epoch > 0 or by_chance for epoch in planned[-1:]):
        return None
    if draws and any(
        config.selecting(epoch, None if config.grows else config.num_steps(epoch, world_size)) for epoch in planned
    ):
        return None
    epochs = "the only epoch" if config.num_epochs == 1 else f"all {config.num_epochs} epochs"
    if prunes and not draws and planned:
        return (
            f"it leaves samples out by the losses of an earlier epoch, and {epochs} "
            f"{'has' if config.num_epochs == 1 else 'but the first anneal and have'} none to go by: train for more "
            "epochs, or lower anneal"
        )
    return (
        f"anneal={selection.anneal} lets every step of {epochs} train on everything: lower it, e.g. anneal=(0, 0), or "
        "train for more epochs"
    )


def warn_if_idle(config: RunConfig, world_size: int = 1, *, what: str | None = None) -> None:
    """Warn where this run never selects.

    Args:
        config: of the run.
        world_size: number of ranks.
        what: what to call the run in the message; by default its method.
    """
    reason = why_idle(config, world_size)
    if reason is not None:
        what = what or f"method {config.selection.method.name!r}"
        warnings.warn(f"{what} never selects: {reason}", errors.NothingSelectedWarning, stacklevel=3)


def _takes_everything(config: RunConfig) -> str:
    selection = config.selection
    if not selection.method.selects:
        return f"prune_ratio={selection.prune_ratio:g} leaves nothing out of {config.num_samples:,} samples: raise it"
    return (
        f"ratio={selection.ratio:g} of batch_size={config.batch_size} is all of a meta-batch, and nothing is pruned: "
        "lower ratio, or take a larger batch_size"
    )
