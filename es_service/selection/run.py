"""The values that describe a run: its config, its ranks, a rank's share of an epoch, and its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import plans, staleness
from es_service.selection.config import Selection
from es_service.selection.methods.base import Method
from es_service.selection.past import BEGINNING, Past
from es_service.selection.settings import as_integer, make_plain

__all__ = ["Caller", "RunConfig", "RunState", "Share", "places"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

_FIRST_ROWS = 1024
_END_OF_IDS = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run is; two callers with another one do not belong to the same run.

    Args:
        selection: what to select, and how; kept with what its `anneal_by` comes to.
        num_samples: n; ids number the samples from 0.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of one rank.
        grows: ids are not known beforehand: `num_samples` is what the table begins with, and no epoch is planned.

    Raises:
        ConfigError: a count below 1, or a selection that goes by plans for a run that has none.
    """

    selection: Selection
    num_samples: int
    num_epochs: int
    batch_size: int
    grows: bool = False

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_epochs", "batch_size"):
            as_integer(name, getattr(self, name), least=1)
        make_plain(self)
        object.__setattr__(self, "selection", self.selection.settled(self.num_epochs))
        if self.grows:
            self.check_streams()

    @classmethod
    def of(cls, selection: Selection, num_samples: int | None, num_epochs: int, batch_size: int) -> RunConfig:
        """Return the config of a run over n samples; None lets its table grow with the ids that come."""
        if not isinstance(selection, Selection):
            raise errors.ConfigError(f"selection must be an es.Selection, got {selection!r}")
        if num_samples is None:
            return cls(
                selection=selection, num_samples=_FIRST_ROWS, num_epochs=num_epochs, batch_size=batch_size, grows=True
            )
        return cls(selection=selection, num_samples=num_samples, num_epochs=num_epochs, batch_size=batch_size)

    def loaded(self) -> RunConfig:
        """Return the same config with its method imported, see `Selection.loaded`."""
        return dataclasses.replace(self, selection=self.selection.loaded())

    @property
    def end_of_ids(self) -> int:
        """Ids lie below it."""
        return _END_OF_IDS if self.grows else self.num_samples

    def check_streams(self) -> None:
        """Raise ConfigError where the selection goes by plans, which a stream has none of."""
        method = self.selection.method
        if self.selection.drop_last:
            raise errors.ConfigError(
                "drop_last=True is for epochs that this package plans; the batches of a stream are yours: leave the "
                "last one out there"
            )
        if self.selection.score_share < 1:
            raise errors.ConfigError(
                f"score_share={self.selection.score_share:g} goes by the plan of an epoch, and a stream has none: "
                "leave it out there; score_every re-uses losses in streams too"
            )
        if method.window > self.batch_size:
            raise errors.ConfigError(
                f"method {method.name!r} compares a meta-batch with those before it in the plan, and a stream has "
                f"none: let its history be at most batch_size={self.batch_size}"
            )
        if self.selection.guard or method.decides:
            what = f"method {method.name!r}" if method.decides else "guard=True"
            raise errors.ConfigError(
                f"{what} decides at an epoch's start what its plan trains on, and a stream has no plan: take evolved, "
                "loss, ema, rho or random, without the guard"
            )
        if self.selection.prune_ratio > 0 or type(method).plan is not Method.plan:
            raise errors.ConfigError(
                f"method {method.name!r} with prune_ratio={self.selection.prune_ratio:g} plans which ids an epoch "
                "holds, but those of a stream are not known beforehand: take evolved, loss, ema, rho or random, with "
                "prune_ratio=0"
            )

    def check_world(self, world_size: int, rank: int = 0) -> None:
        """Raise ConfigError where this many ranks cannot each fill one meta-batch, or the rank is none of them."""
        if not 0 <= rank < world_size:
            raise errors.ConfigError(f"rank {rank} is outside [0, world_size={world_size})")
        if self.grows:
            return
        share = self.rank_share(self.selection.num_kept(self.num_samples), world_size)
        if self.batch_size > share:
            what_to_do = f"use a batch_size of at most {share:,}" if share else "use fewer ranks, or prune less"
            raise errors.ConfigError(
                f"batch_size={self.batch_size} is larger than the plan: {self.num_samples:,} samples, pruned by "
                f"{self.selection.prune_ratio:g} and split over {world_size} rank(s), leave {share:,} each; "
                f"{what_to_do}"
            )

    def check_shards(self, num_shards: int) -> None:
        """Raise ConfigError where the table cannot be cut into this many."""
        if not 1 <= num_shards <= self.num_samples:
            raise errors.ConfigError(f"shards must lie in [1, num_samples={self.num_samples:,}], got {num_shards}")

    def is_annealing(self, epoch: int) -> bool:
        """Return whether all of this epoch selects and prunes nothing."""
        return self.selection.is_annealing(epoch, self.num_epochs)

    def selecting(self, epoch: int, num_steps: int | None) -> range:
        """Return the steps that select of an epoch of so many, see `Annealing.selecting`."""
        return self.selection.annealing(self.num_epochs).selecting(epoch, num_steps)

    def num_steps(self, epoch: int, world_size: int) -> int:
        """Return each rank's steps in this epoch, as far as they are known before it opens.

        Exact where `Selection.prune_ratio` determines a plan's length, unless after the first epoch the samples never
        observed outnumber its places; the most there may be for methods that decide it by the losses (infobatch,
        kakurenbo), and under the guard, whose epochs without selection hold all samples.
        """
        selection = self.selection
        all_stay = epoch == 0 and selection.method.keeps_unobserved and not selection.prune_unobserved
        is_whole = all_stay or selection.is_guarded or self.is_annealing(epoch)
        kept = self.num_samples if is_whole else selection.num_kept(self.num_samples)
        return plans.num_steps(self.rank_share(kept, world_size), self.batch_size)

    def rank_share(self, num_ids: int, world_size: int) -> int:
        """Return how many ids of a plan each rank gets, see `plans.rank_share`."""
        return plans.rank_share(num_ids, world_size, self.batch_size, drop_last=self.selection.drop_last)

    def shares(self, plan: plans.Plan | None, epoch: int, first_step: int, world_size: int) -> list[Share]:
        """Return every rank's share of an epoch's plan, equally many ids each; of a stream, which has none, no ids."""
        if plan is None:
            return [Share(ids=np.empty(0, dtype=np.int64), first_step=first_step)] * world_size
        seed = self.selection.seed
        parts = plans.split(
            plans.shuffle(plan.ids, seed=seed, epoch=epoch),
            world_size=world_size,
            num_samples=self.num_samples,
            epoch=epoch,
            share=self.rank_share(plan.ids.size, world_size),
        )
        hidden = plans.shuffle(plan.hidden, seed=seed, epoch=epoch)  # batches of all kinds, like steps
        return [
            Share(
                ids=ids,
                first_step=first_step,
                scale=None if plan.scale is None else plan.scale[np.searchsorted(plan.ids, ids)],
                staleness=None if plan.staleness is None else plan.staleness[np.searchsorted(plan.ids, ids)],
                ratio=plan.ratio,
                hidden=hidden[rank::world_size],
                learning_rate_factor=plan.learning_rate_factor,
                decision=plan.decision,
            )
            for rank, ids in enumerate(parts)
        ]

    def num_selected(self, num_ids: int, ratio: float | None = None) -> int:
        """Return b = ⌈ratio·B⌉ for a meta-batch of B = num_ids, outside annealing; a plan may name another ratio.

        Of a smaller meta-batch than the others at least 2 are drawn, unless a full one gives but 1 as well: BatchNorm
        cannot learn from a single sample.
        """
        num = self.selection.num_selected(num_ids, ratio)
        if num > 1 or num_ids >= self.batch_size:
            return num
        return min(num_ids, 2, self.selection.num_selected(self.batch_size, ratio))


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a rank of a generation."""

    rank: int
    generation: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A rank's part of an opened epoch.

    Attributes:
        ids: int64[m/W], in their order.
        first_step: run step of its first step.
        scale: float32[m/W], by which each id's loss is multiplied; None for ones.
        ratio: b/B of its steps; None for the selection's own.
        hidden: int64[h/W], to be observed by a forward pass at the epoch's end.
        learning_rate_factor: by which the epoch's learning rate is multiplied.
        staleness: uint8[m/W], how stale each id's score is, see `staleness`; None where steps score all or nothing.
        decision: that the plan went by, see `Plan.decision`.
    """

    ids: I64
    first_step: int
    scale: F32 | None = None
    ratio: float | None = None
    hidden: I64 = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    learning_rate_factor: float = 1.0
    staleness: staleness.U8 | None = None
    decision: Mapping[str, Any] | None = None

    def rows(self, step: int, ids_B: I64, batch_size: int) -> slice | I64:
        """Return where the share holds these ids: a slice where they are the step's own, looked up otherwise.

        An id that it does not hold has row -1.
        """
        start = step * batch_size
        planned = slice(start, start + ids_B.size)
        own = self.ids[planned]
        if own.size == ids_B.size and (own == ids_B).all():
            return planned
        rows = places(self.ids[start : start + batch_size], ids_B)  # e.g. what was drawn of them
        return start + rows if rows.min() >= 0 else places(self.ids, ids_B)

    def factors(self, step: int, ids_b: I64, batch_size: int) -> F32 | None:
        """Return what each of these ids' loss is multiplied by, 1 for one that it does not hold; None for all ones."""
        if self.scale is None:
            return None
        rows = self.rows(step, ids_b, batch_size)
        return self.scale[rows] if isinstance(rows, slice) else np.where(rows < 0, np.float32(1), self.scale[rows])

    def to_score(self, step: int, ids_B: I64, batch_size: int, score_share: float) -> I64:
        """Return the positions int64[k], ascending, of those of a step's ids that are to be scored.

        Ids that the share does not hold are among them.
        """
        if self.staleness is None:
            return np.arange(ids_B.size)
        rows = self.rows(step, ids_B, batch_size)
        stale_B = self.staleness[rows]
        return staleness.stalest(
            stale_B if isinstance(rows, slice) else np.where(rows < 0, staleness.NEVER, stale_B), score_share
        )

    def window(self, step: int, batch_size: int, num: int) -> I64:
        """Return the ids of the `num` samples at most that came before this step of the epoch."""
        start = step * batch_size
        return self.ids[max(0, start - num) : start]


def places(ids_m: I64, ids_B: I64) -> I64:
    """Return the position of each id among others, int64[B]; -1 where it is absent."""
    if not ids_m.size:
        return np.full(ids_B.size, -1)
    if ids_m.size == ids_B.size and (ids_m == ids_B).all():  # the usual
        return np.arange(ids_B.size)
    order = np.argsort(ids_m, kind="stable")
    places = order[np.minimum(np.searchsorted(ids_m, ids_B, sorter=order), order.size - 1)]
    return np.where(ids_m[places] == ids_B, places, -1)


@dataclasses.dataclass(frozen=True, slots=True)
class RunState:
    """A run between two epochs: records[n] of its table, the epochs behind it, the run step each began at, its past."""

    records: NDArray[np.void]
    finished_epochs: int
    epoch_starts: tuple[int, ...]
    past: Past = BEGINNING
