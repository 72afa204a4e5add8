"""The plan of an epoch: which ids it holds, in which order, and which rank gets which of them.

    Prospect (what is known when the epoch opens) ── Method.plan ──► Plan ── shuffle ── split ──► ids of each rank

Shapes: n samples, m ids in the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, keys

__all__ = ["Plan", "Prospect", "num_steps", "prune", "rank_share", "shuffle", "split"]

_NONE = np.empty(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an epoch trains on.

    Attributes:
        ids: int64[m], ascending.
        scale: float32[m], by which each id's loss is multiplied; None for ones.
        ratio: b/B of this epoch's steps; None for the selection's own.
        hidden: int64[h], left out, but to be observed by a forward pass at the epoch's end.
        learning_rate_factor: by which the learning rate of this epoch is multiplied.
    """

    ids: NDArray[np.int64]
    scale: NDArray[np.float32] | None = None
    ratio: float | None = None
    hidden: NDArray[np.int64] = dataclasses.field(default_factory=lambda: _NONE)
    learning_rate_factor: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prospect:
    """What a method may go by when an epoch opens.

    Attributes:
        epoch: counted from 0; not an annealing one, for those are not planned.
        num_epochs: E.
        first_epoch: the first that is not annealing.
        is_last: whether no later epoch will be planned.
        epoch_starts: the run step at which each epoch up to this one began.
        num_samples: n.
        num_kept: n - ⌊r·n⌋, with r = `Selection.prune_ratio`.
        max_age: as in `Selection`.
        prune_unobserved: as in `Selection`.
        seed: of the run.
        column: name -> copy of a column of the table, [n].
    """

    epoch: int
    num_epochs: int
    first_epoch: int
    is_last: bool
    epoch_starts: tuple[int, ...]
    num_samples: int
    num_kept: int
    max_age: int | None
    prune_unobserved: bool
    seed: int
    column: Callable[[str], NDArray[Any]]

    @property
    def everything(self) -> NDArray[np.int64]:
        """All ids, int64[n]."""
        return np.arange(self.num_samples, dtype=np.int64)

    def uniforms(self) -> NDArray[np.float64]:
        """Return this epoch's random numbers for pruning, float64[n] in (0, 1)."""
        return keys.uniforms(self.seed, keys.Purpose.PRUNE, self.epoch, self.everything)

    def unobserved(self) -> NDArray[np.bool_]:
        """Return which samples must not be left out because their loss was never seen, bool[n]."""
        if self.prune_unobserved:
            return np.zeros(self.num_samples, dtype=np.bool_)
        unobserved: NDArray[np.bool_] = self.column("visits") == 0
        return unobserved

    def overdue(self) -> NDArray[np.bool_]:
        """Return which samples have been left out for `max_age` epochs, bool[n]."""
        if self.max_age is None or self.epoch < self.max_age:
            return np.zeros(self.num_samples, dtype=np.bool_)
        # Last seen before the epoch `max_age` ago: it has sat out that one and every one since.
        last_step = self.column("last_step")
        overdue: NDArray[np.bool_] = (last_step >= 0) & (last_step < self.epoch_starts[self.epoch - self.max_age])
        return overdue

    def pruned_by(self, column: str) -> Plan:
        """Return the plan that draws `num_kept` ids by this column, see `prune`."""
        if self.num_kept == self.num_samples:
            return Plan(ids=self.everything)
        arrivals = draws.race_keys(self.column(column), self.uniforms())
        return Plan(ids=prune(arrivals, self.num_kept, unobserved_n=self.unobserved(), overdue_n=self.overdue()))


def prune(
    keys_n: NDArray[np.float64],
    num_kept: int,
    *,
    unobserved_n: NDArray[np.bool_],
    overdue_n: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the ids that stay, int64[m], ascending: those with the smallest keys.

    Places go first to samples never observed (all of them, even where they are more than `num_kept`), then to those
    that are overdue, the rest in the order of the keys. Put-back samples take places, they add none.

    Args:
        keys_n: float64[n]; arrival times of `draws.race_keys` make it an exponential race with p ∝ w.
        num_kept: m, unless the never observed alone are more.
        unobserved_n: bool[n], never to be pruned.
        overdue_n: bool[n], left out for too long.
    """
    stays = unobserved_n.copy()
    for group in (overdue_n & ~unobserved_n, ~(overdue_n | unobserved_n)):
        places = num_kept - int(np.count_nonzero(stays))
        if places <= 0:
            break
        members = np.flatnonzero(group)
        if members.size > places:
            members = members[np.argpartition(keys_n[members], places - 1)[:places]]
        stays[members] = True
    return np.flatnonzero(stays)


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
