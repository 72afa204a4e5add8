"""The plan of an epoch: which ids it holds, in which order, and which rank gets which of them.

    Prospect (what is known when the epoch opens) ── Method.plan ──► Plan ── shuffle ── split ──► ids of each rank

A prospect is that of one shard, and so is the plan made from it; for questions about all rows see `reductions`.
Shapes: n samples, of which this shard has n/S; m ids in the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, keys, reductions
from es_service.selection.reductions import Agreed

__all__ = ["Plan", "Prospect", "joined", "num_steps", "rank_share", "shuffle", "split"]

_NONE = np.empty(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an epoch trains on, or a shard's part of it.

    Attributes:
        ids: int64[m], ascending.
        scale: float32[m], by which each id's loss is multiplied; None for ones.
        ratio: b/B of this epoch's steps; None for the selection's own.
        hidden: int64[h], left out, but to be observed by a forward pass at the epoch's end.
        learning_rate_factor: by which the learning rate of this epoch is multiplied.
        decision: what a method that decides from the run itself has decided, and by which figures; JSON-ready.
        staleness: uint8[m], how stale each id's score is, where steps score a part of their samples; see `staleness`.
    """

    ids: NDArray[np.int64]
    scale: NDArray[np.float32] | None = None
    ratio: float | None = None
    hidden: NDArray[np.int64] = dataclasses.field(default_factory=lambda: _NONE)
    learning_rate_factor: float = 1.0
    decision: Mapping[str, Any] | None = None
    staleness: NDArray[np.uint8] | None = None


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
        scoring_cost: what scoring a meta-batch costs, as a share of a full step over it.
        signal: what the method goes by, as in `Selection`.
        ids: int64[n/S], ascending: the samples of this shard.
        column: name -> copy of a column of the shard's table, [n/S].
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
    ids: NDArray[np.int64]
    column: Callable[[str], NDArray[Any]]
    scoring_cost: float = 0.35
    signal: str = "loss"

    def uniforms(self) -> NDArray[np.float64]:
        """Return this epoch's random numbers for pruning, float64[n/S] in (0, 1)."""
        return keys.uniforms(self.seed, keys.Purpose.PRUNE, self.epoch, self.ids)

    def unobserved(self) -> NDArray[np.bool_]:
        """Return which samples must not be left out because their loss was never seen, bool[n/S]."""
        if self.prune_unobserved:
            return np.zeros(self.ids.size, dtype=np.bool_)
        unobserved: NDArray[np.bool_] = self.column("visits") == 0
        return unobserved

    def overdue(self) -> NDArray[np.bool_]:
        """Return which samples have been left out for `max_age` epochs, bool[n/S]."""
        if self.max_age is None or self.epoch < self.max_age:
            return np.zeros(self.ids.size, dtype=np.bool_)
        # Last seen before the epoch `max_age` ago: it has sat out that one and every one since.
        last_step = self.column("last_step")
        overdue: NDArray[np.bool_] = (last_step >= 0) & (last_step < self.epoch_starts[self.epoch - self.max_age])
        return overdue

    def lowest(
        self, keys_n: NDArray[np.float64], num: int, among_n: NDArray[np.bool_] | None = None
    ) -> Agreed[NDArray[np.bool_]]:
        """Return which samples have the `num` lowest keys of all shards, of those flagged; see `reductions.lowest`."""
        return reductions.lowest(keys_n, self.ids, num, among_n)

    def pruned_by(self, column: str) -> Agreed[Plan]:
        """Return the plan that draws `num_kept` ids by this column, with p ∝ its value; see `keep`."""
        if self.num_kept == self.num_samples:
            return Plan(ids=self.ids)
        arrivals = draws.race_keys(self.column(column), self.uniforms())
        return (yield from self.keep([(np.ones(self.ids.size, dtype=np.bool_), arrivals)]))

    def keep(self, groups: Sequence[tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> Agreed[Plan]:
        """Return the plan of `num_kept` ids, the groups served in turn, within each the lowest keys first.

        Before any group places go to the samples never observed (all of them, even where they are more than
        `num_kept`), then to those that are overdue, by the first group's keys. They take places, they add none.

        Args:
            groups: (bool[n/S], who is in it; float64[n/S], their keys) each.
        """
        stays = self.unobserved()
        [taken] = yield from reductions.count(stays)
        for among, keys_n in [(self.overdue(), groups[0][1]), *groups]:
            places = self.num_kept - taken
            if places <= 0:
                break
            waiting = among & ~stays
            [num_waiting] = yield from reductions.count(waiting)
            num = min(places, num_waiting)
            stays |= waiting if num == num_waiting else (yield from self.lowest(keys_n, num, waiting))
            taken += num
        return Plan(ids=self.ids[stays])


def joined(parts: Sequence[Plan]) -> Plan:
    """Return the plan that the shards' parts make together."""
    if len(parts) == 1:
        return parts[0]
    ids, hidden = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "hidden"))
    order = np.argsort(ids, kind="stable")
    per_id: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("scale", "staleness")
        if getattr(parts[0], name) is not None
    }
    return dataclasses.replace(parts[0], ids=ids[order], hidden=np.sort(hidden), **per_id)


def shuffle(ids_m: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the ids in this epoch's random order, the same for the same (seed, epoch, set of ids)."""
    hashes_m = keys.hashes(seed, keys.Purpose.SHUFFLE, epoch, ids_m)
    hashes_m.sort()  # and back to ids: sorting plain words is many times as fast as finding their order
    return keys.ids_of(hashes_m, seed, keys.Purpose.SHUFFLE, epoch)


def split(
    ids_m: NDArray[np.int64], *, world_size: int, num_samples: int, epoch: int, share: int | None = None
) -> list[NDArray[np.int64]]:
    """Deal the plan out to the ranks, equally many each: rank r gets every world_size-th id from the r-th on.

    Each gets `share` ids, see `rank_share`; as many as there are for None. The others sit this epoch out: neighbours by
    id from a place that moves on by as many with each epoch, so in plans that are not pruned every sample sits out in
    turn. Since the ids are dealt in turn, one step of all ranks together covers the same stretch of the plan whatever
    the number of ranks, at equal total batch size.

    Raises:
        ConfigError: fewer ids than ranks.
    """
    if ids_m.size < world_size:
        raise errors.ConfigError(
            f"a plan of {ids_m.size} ids cannot feed {world_size} ranks: use fewer workers or prune less"
        )
    odd = ids_m.size - world_size * (ids_m.size // world_size if share is None else share)
    if odd:
        start = epoch * odd % num_samples
        behind_start = (ids_m - start) % num_samples
        stays = np.ones(ids_m.size, dtype=np.bool_)
        stays[np.argpartition(behind_start, odd - 1)[:odd]] = False
        ids_m = ids_m[stays]
    return [np.ascontiguousarray(ids_m[rank::world_size]) for rank in range(world_size)]


def rank_share(num_ids: int, world_size: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Return how many ids of a plan each rank gets: an equal part, less what the last meta-batch is not made of.

    A last meta-batch of a single sample, from which BatchNorm cannot learn, is left out; with `drop_last` any that is
    not full. A rank that cannot fill one meta-batch keeps what it has.
    """
    share = num_ids // world_size
    last = share % batch_size
    return share - last if share > batch_size and (drop_last or last == 1) else share


def num_steps(share: int, batch_size: int) -> int:
    """Return a rank's number of steps in an epoch, of its number of ids; the last one may be smaller."""
    return -(-share // batch_size)
