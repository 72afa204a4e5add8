"""The plan of an epoch: which ids it holds, in which order, and which rank gets which of them.

Shapes: n samples, m ids in the plan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, keys

__all__ = ["num_steps", "prune", "rank_share", "shuffle", "split"]


def prune(
    weights_n: NDArray[np.floating],
    num_kept: int,
    *,
    seed: int,
    epoch: int,
    unobserved_n: NDArray[np.bool_],
    overdue_n: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Draw the ids that stay, int64[m], ascending.

    Places go first to samples never observed (all of them, even where they are more than `num_kept`), then to those
    that are overdue, the rest by an exponential race with p ∝ w. Put-back samples take places, they add none.

    Args:
        weights_n: float[n], at least 0.
        num_kept: m, unless the never observed alone are more.
        seed: of the run.
        epoch: makes each epoch's draw its own.
        unobserved_n: bool[n], never to be pruned.
        overdue_n: bool[n], left out for too long.
    """
    ids = np.arange(weights_n.size, dtype=np.int64)
    arrivals = draws.race_keys(weights_n, keys.uniforms(seed, keys.Purpose.PRUNE, epoch, ids))
    overdue = arrivals[overdue_n]
    arrivals[overdue_n] = overdue / (1.0 + overdue) - 1.0  # in [-1, 0]: ahead of the race, in racing order
    arrivals[unobserved_n] = -2.0
    num_kept = max(num_kept, int(unobserved_n.sum()))
    if num_kept >= ids.size:
        return ids
    kept = np.argpartition(arrivals, num_kept - 1)[:num_kept]
    kept.sort()
    return kept


def shuffle(ids_m: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the ids in this epoch's random order, the same for the same (seed, epoch, set of ids)."""
    order = np.argsort(keys.hashes(seed, keys.Purpose.SHUFFLE, epoch, ids_m), kind="stable")
    return ids_m[order]


def split(ids_m: NDArray[np.int64], *, world_size: int, num_samples: int, epoch: int) -> list[NDArray[np.int64]]:
    """Deal the plan out to the ranks, equally many each: rank r gets every world_size-th id from the r-th on.

    The m mod world_size ids that do not come out even sit this epoch out. They are neighbours by id from a place that
    moves on by as many with each epoch, so in plans that are not pruned everybody sits out in turn. Since the ids are
    dealt in turn, one step of all ranks together covers the same stretch of the plan whatever the number of ranks, at
    equal total batch size.

    Raises:
        ConfigError: fewer ids than ranks.
    """
    if ids_m.size < world_size:
        raise errors.ConfigError(
            f"a plan of {ids_m.size} ids cannot feed {world_size} ranks: use fewer workers or prune less"
        )
    odd = ids_m.size % world_size
    if odd:
        start = epoch * odd % num_samples
        behind_start = (ids_m - start) % num_samples
        stays = np.ones(ids_m.size, dtype=np.bool_)
        stays[np.argpartition(behind_start, odd - 1)[:odd]] = False
        ids_m = ids_m[stays]
    return [np.ascontiguousarray(ids_m[rank::world_size]) for rank in range(world_size)]


def rank_share(num_ids: int, world_size: int) -> int:
    """Return how many ids of a plan each rank gets."""
    return num_ids // world_size


def num_steps(num_ids: int, world_size: int, batch_size: int) -> int:
    """Return each rank's number of steps in an epoch; the last one may be smaller."""
    return -(-rank_share(num_ids, world_size) // batch_size)
