"""The scorekeeper of one run: its engine, how far the run has come, and which rank is where.

Lifecycle of a run      epoch 0 open → closed → epoch 1 open → closed → … → epoch E-1 closed
Lifecycle of a rank     join → (open epoch e → its steps → close epoch e), e rising by one
Invariant               an epoch opens when every rank has closed the one before; its plan is drawn once, then

An attempt is one life of the group of ranks, from its start to its end or its death. When a group is started again,
the first rank of the new attempt retires the old one: whatever the old one still sends is refused.

No Ray, no lock: the embedded exchange holds one directly, a score server holds one behind its lock.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import plans
from es_service.selection.config import Selection
from es_service.selection.engine import NOTHING, Draw, Engine
from es_service.selection.methods.base import Columns
from es_service.selection.settings import as_integer

__all__ = ["Caller", "RunConfig", "RunState", "Scorekeeper", "Share"]

I64: TypeAlias = NDArray[np.int64]
F32: TypeAlias = NDArray[np.float32]

_MAX_STEPS = 2**31 - 1  # last_step is an int32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run is; two callers with another one do not belong to the same run.

    Args:
        selection: what to select, and how.
        num_samples: n; ids number the samples from 0.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of one rank.

    Raises:
        ConfigError: a count below 1, or a table that would need more than the machine has.
    """

    selection: Selection
    num_samples: int
    num_epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_epochs", "batch_size"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name), least=1))

    def check_world(self, world_size: int, rank: int = 0) -> None:
        """Raise ConfigError where this many ranks cannot each fill one meta-batch, or the rank is none of them."""
        if not 0 <= rank < world_size:
            raise errors.ConfigError(f"rank {rank} is outside [0, world_size={world_size})")
        share = plans.rank_share(self.selection.num_kept(self.num_samples), world_size)
        if self.batch_size > share:
            raise errors.ConfigError(
                f"batch_size={self.batch_size} is larger than the plan: {self.num_samples:,} samples, pruned by "
                f"{self.selection.prune_ratio:g} and split over {world_size} rank(s), leave {share:,} each; "
                f"use a batch_size of at most {share:,}"
            )

    def is_annealing(self, epoch: int) -> bool:
        """Return whether this epoch selects and prunes nothing."""
        return self.selection.is_annealing(epoch, self.num_epochs)

    def num_steps(self, epoch: int, world_size: int) -> int:
        """Return each rank's steps in this epoch, as far as can be said before it opens.

        Exact where `Selection.prune_ratio` says how long a plan is, unless the samples never observed outnumber its
        places; the most there may be for methods that decide it by the losses (infobatch, kakurenbo).
        """
        kept = self.num_samples if self.is_annealing(epoch) else self.selection.num_kept(self.num_samples)
        return plans.num_steps(kept, world_size, self.batch_size)


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a rank of an attempt."""

    rank: int
    attempt: str


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
    """

    ids: I64
    first_step: int
    scale: F32 | None = None
    ratio: float | None = None
    hidden: I64 = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    learning_rate_factor: float = 1.0

    def rows(self, step: int, ids_B: I64, batch_size: int) -> slice | I64:
        """Return where the share holds these ids: a slice where they are the step's own, looked up otherwise.

        An id that it does not hold has row -1.
        """
        start = step * batch_size
        planned = slice(start, start + ids_B.size)
        if np.array_equal(self.ids[planned], ids_B):
            return planned
        rows = _places(self.ids[start : start + batch_size], ids_B)  # what was drawn of them, say
        return start + rows if rows.min() >= 0 else _places(self.ids, ids_B)

    def window(self, step: int, batch_size: int, num: int) -> I64:
        """Return the ids of the `num` samples at most that came before this step of the epoch."""
        start = step * batch_size
        return self.ids[max(0, start - num) : start]


def _places(ids_m: I64, ids_B: I64) -> I64:
    """Return where each of the ids stands among others, int64[B]; -1 where it does not."""
    if not ids_m.size:
        return np.full(ids_B.size, -1)
    order = np.argsort(ids_m, kind="stable")
    places = order[np.minimum(np.searchsorted(ids_m, ids_B, sorter=order), order.size - 1)]
    return np.where(ids_m[places] == ids_B, places, -1)


@dataclasses.dataclass(frozen=True, slots=True)
class RunState:
    """A run between two epochs: records[n] of its table, the epochs behind it, and the run step each began at."""

    records: NDArray[np.void]
    finished_epochs: int
    epoch_starts: tuple[int, ...]


class Scorekeeper:
    """See the module's text. Every method either does all it says or raises and changes nothing."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.engine = Engine(config.selection, config.num_samples)
        self.finished_epochs = 0
        self._starts: list[int] = [0]  # run step at which each epoch began, and the next one will
        self._attempt: str | None = None
        self._world_size = 1
        self._opened: set[int] = set()
        self._closed: set[int] = set()
        self._shares: list[Share] | None = None

    @property
    def open_epoch_number(self) -> int | None:
        """The epoch that is open, or None between two."""
        return self.finished_epochs if self._shares is not None else None

    @property
    def attempt(self) -> str | None:
        """The current attempt, None before anybody joined."""
        return self._attempt

    @property
    def world_size(self) -> int:
        """Ranks of the current attempt."""
        return self._world_size

    def join(self, caller: Caller, world_size: int) -> None:
        """Enter an attempt; the first rank of a new one retires the attempt before it.

        Raises:
            ConfigError: the rank is not in [0, world_size), or the plan is too small for so many.
            EpochOrderError: the other ranks of this attempt said another world size.
        """
        self.config.check_world(world_size, caller.rank)
        if caller.attempt != self._attempt:
            self._attempt, self._world_size = caller.attempt, world_size
            self._opened, self._closed, self._shares = set(), set(), None
        elif world_size != self._world_size:
            raise errors.EpochOrderError(
                f"rank {caller.rank} joined with world_size={world_size}, the ranks before it with "
                f"{self._world_size}: every rank must name the same"
            )

    def open_epoch(self, caller: Caller, epoch: int) -> Share | list[int]:
        """Open an epoch for one rank; the first to come draws the plan.

        Returns:
            The rank's share; or, where it has to wait, the ranks that have not yet closed the epoch before.

        Raises:
            EpochOrderError: superseded, already opened by this rank, or not the next epoch of the run.
        """
        self.check(caller)
        current = self.finished_epochs
        if epoch == current + 1 and caller.rank in self._closed:
            return sorted(set(range(self._world_size)) - self._closed)
        if epoch != current:
            raise errors.EpochOrderError(
                f"rank {caller.rank} opens epoch {epoch}, but the run stands before epoch {current}: epochs go up by "
                "one; to continue a run load its state_dict, to start over call selector.reset()"
            )
        if caller.rank in self._opened:
            raise errors.EpochOrderError(
                f"rank {caller.rank} opens epoch {epoch} a second time: does every worker have a rank of its own? "
                "After a restart, connect again as a new attempt"
            )
        if self._shares is None:
            self._shares = self._deal(epoch)
        self._opened.add(caller.rank)
        return self._shares[caller.rank]

    def _deal(self, epoch: int) -> list[Share]:
        config, world_size, first_step = self.config, self._world_size, self._starts[epoch]
        plan = self.engine.plan(epoch, config.num_epochs, self._starts)
        end = first_step + plans.num_steps(plan.ids.size, world_size, config.batch_size)
        if end > _MAX_STEPS:
            raise errors.ConfigError(f"the run would pass {_MAX_STEPS:,} steps: use a larger batch_size")
        order = plans.shuffle(plan.ids, seed=config.selection.seed, epoch=epoch)
        parts = plans.split(order, world_size=world_size, num_samples=config.num_samples, epoch=epoch)
        hidden = plans.shuffle(plan.hidden, seed=config.selection.seed, epoch=epoch)  # batches of all kinds, like steps
        del self._starts[epoch + 1 :]
        self._starts.append(end)
        return [
            Share(
                ids=ids,
                first_step=first_step,
                scale=None if plan.scale is None else plan.scale[np.searchsorted(plan.ids, ids)],
                ratio=plan.ratio,
                hidden=hidden[rank::world_size],
                learning_rate_factor=plan.learning_rate_factor,
            )
            for rank, ids in enumerate(parts)
        ]

    def is_planned(self, caller: Caller, ids_B: I64, run_step: int) -> bool:
        """Return whether these are the very ids that the open epoch's plan has for this step: then they are valid."""
        if self._shares is None or not 0 <= caller.rank < len(self._shares):
            return False
        start = (run_step - self._starts[self.finished_epochs]) * self.config.batch_size
        return (
            ids_B.size > 0
            and start >= 0
            and np.array_equal(self._shares[caller.rank].ids[start : start + self.config.batch_size], ids_B)
        )

    def step(self, caller: Caller, ids_B: I64, seen: Columns, num: int, run_step: int) -> Draw:
        """Observe and draw, see `Engine.step`; the rank must have its epoch open."""
        self.check_open(caller)
        return self.engine.step(ids_B, seen, num, run_step, self._recent(caller, run_step))

    def draw(self, caller: Caller, ids_B: I64, num: int, run_step: int) -> Draw:
        """Draw by what is known, see `Engine.draw`; the rank must have its epoch open."""
        self.check_open(caller)
        return self.engine.draw(ids_B, num, run_step, self._recent(caller, run_step))

    def record(self, caller: Caller, ids_B: I64, seen: Columns | None, positions_b: I64, run_step: int) -> None:
        """Observe what was drawn elsewhere, see `Engine.record`; the rank must have its epoch open."""
        self.check_open(caller)
        self.engine.record(ids_B, seen, positions_b, run_step)

    def lease(self, caller: Caller) -> dict[str, NDArray[Any]]:
        """Return what the rank needs in order to draw on its own this epoch, see `Engine.lease`."""
        self.check_open(caller)
        assert self._shares is not None
        return self.engine.lease(self._shares[caller.rank].ids)

    def _recent(self, caller: Caller, run_step: int) -> F32:
        """Return the weights of this rank's samples before this step, where the method looks at them."""
        num = self.config.selection.method.window - self.config.batch_size
        if num <= 0 or self._shares is None:
            return NOTHING
        share = self._shares[caller.rank]
        ids = share.window(run_step - share.first_step, self.config.batch_size, num)
        return self.engine.recent(ids)

    def close_epoch(self, caller: Caller, epoch: int) -> bool:
        """Close an epoch for one rank; return True for the last one, with which the epoch is finished."""
        self.check_open(caller)
        if epoch != self.finished_epochs:
            raise errors.EpochOrderError(
                f"rank {caller.rank} closes epoch {epoch}, but epoch {self.finished_epochs} is open"
            )
        self._closed.add(caller.rank)
        if len(self._closed) < self._world_size:
            return False
        self.finished_epochs += 1
        self._opened, self._closed, self._shares = set(), set(), None
        return True

    def state(self) -> RunState:
        """Return a copy of the run as it stands; only between two epochs is that a state to continue from."""
        starts = tuple(self._starts[: self.finished_epochs + 1])
        return RunState(self.engine.table.copy_records(), self.finished_epochs, starts)

    def restore(self, state: RunState, *, open_share: Share | None = None) -> None:
        """Go to another state of the same run; ranks that had an epoch open have it no longer.

        Args:
            state: to go to.
            open_share: where a lone rank saved its state inside an epoch, its share of that epoch: opening it again
                gives this one, not a new plan.

        Raises:
            StorageError: the state is not one of a run of this size.
        """
        if state.records.size != self.config.num_samples or len(state.epoch_starts) != state.finished_epochs + 1:
            raise errors.StorageError(
                f"the state holds {state.records.size:,} samples and {len(state.epoch_starts)} epoch starts, "
                f"expected {self.config.num_samples:,} and {state.finished_epochs + 1}"
            )
        if state.records.dtype != self.engine.table.dtype:
            raise errors.StorageError(
                f"the state has the columns {', '.join(state.records.dtype.names or ())}, expected "
                f"{', '.join(self.engine.table.dtype.names or ())}: it is of a run with another method"
            )
        self.engine.table.load_records(state.records)
        self.finished_epochs = state.finished_epochs
        self._starts = list(state.epoch_starts)
        self._opened, self._closed, self._shares = set(), set(), None
        if open_share is not None:
            steps = plans.num_steps(open_share.ids.size, 1, self.config.batch_size)
            self._starts.append(self._starts[-1] + steps)
            self._shares = [open_share]

    def reset(self) -> None:
        """Forget every observation and stand before epoch 0 again."""
        self.engine.table.clear()
        self.finished_epochs, self._starts = 0, [0]
        self._opened, self._closed, self._shares = set(), set(), None

    def check(self, caller: Caller) -> None:
        """Raise EpochOrderError unless the caller belongs to the current attempt."""
        if self._attempt is None or caller.attempt != self._attempt:
            raise errors.EpochOrderError(
                f"rank {caller.rank} belongs to an attempt that a newer one has superseded: this worker should end"
            )
        if not 0 <= caller.rank < self._world_size:
            raise errors.EpochOrderError(f"rank {caller.rank} has not joined: there are {self._world_size}")

    def check_open(self, caller: Caller) -> None:
        """Raise EpochOrderError unless the caller has its epoch open."""
        self.check(caller)
        if caller.rank not in self._opened or caller.rank in self._closed:
            raise errors.EpochOrderError(
                f"rank {caller.rank} has no epoch open: iterate selector.epoch(e), which opens and closes it"
            )
