"""The membership of a run: which generation is current, how far the run has come, and which rank is where.

Lifecycle of a run      epoch 0 open → closed → epoch 1 open → closed → … → epoch E-1 closed
Lifecycle of a rank     join → (open epoch e → its steps → close epoch e), e rising by one
Invariant               an epoch opens when every rank has closed the one before; its plan is drawn once, then

A generation is one life of the group of ranks, from its start to its end or its death. When a group is started again,
the first rank of the new generation retires the old one: whatever the old one still sends is refused.

It knows nothing of scores: the owner of the table, or of its shards, gives it the plan of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from es_service import errors
from es_service.ledger import Ledger
from es_service.selection import plans
from es_service.selection.past import BEGINNING, Past
from es_service.selection.plans import Plan
from es_service.selection.run import Caller, RunConfig, Share

__all__ = ["Membership", "fenced", "out_of_order"]

_MAX_STEPS = 2**31 - 1  # last_step is an int32


def fenced(rank: int) -> errors.EpochOrderError:
    """Return the error of a rank whose generation is no longer the current one."""
    return errors.EpochOrderError(
        f"rank {rank} belongs to a generation that a newer one has fenced: end this worker; or, if two jobs share "
        "the run's name, give one of them another; ranks of one job have to connect as one group: initialise "
        "torch.distributed first, or give rank=, world_size= and generation="
    )


def out_of_order(rank: int, epoch: int, current: int, num_epochs: int) -> errors.EpochOrderError:
    """Return the error of a rank that opens another epoch than the run's next one."""
    if current >= num_epochs:
        return errors.EpochOrderError(
            f"rank {rank} opens epoch {epoch}, but the run is finished: all its {current} epochs are made. Take "
            "another run name; or, on every rank, call selector.reset() to start it over, or load_state_dict to go back"
        )
    return errors.EpochOrderError(
        f"rank {rank} opens epoch {epoch}, but the run stands before epoch {current}: epochs go up by one; to continue "
        "a run begin at selector.next_epoch, or load its state_dict; to start over call selector.reset(); where "
        "another job trains it, take another name"
    )


class Membership:
    """See the module's text. Every method either succeeds or raises and changes nothing.

    Args:
        config: what the run is.
        plan: (epoch, epoch starts) -> what the epoch trains on; called once per epoch and generation.
    """

    def __init__(self, config: RunConfig, plan: Callable[[int, Sequence[int]], Plan]) -> None:
        self.config = config
        self._plan = plan
        self.finished_epochs, self.past = 0, BEGINNING
        self._starts: list[int] = [0]  # run step at which each epoch began, and the next one will
        self.generation: str | None = None  # the current one, None before any rank joined
        self._retired: set[str] = set()
        self.world_size = 1  # ranks of the current generation
        self._opened, self._closed, self._is_open = set[int](), set[int](), False
        self.plan: Plan | None = None  # of the open epoch, None where it is a stream
        self._dealt_out: list[Share] | None = None  # the shares of the open epoch, once one was requested
        self._num_streamed: int | None = None  # steps reported of the open epoch, None where it is planned

    @property
    def open_epoch_number(self) -> int | None:
        """The epoch that is open, or None between two."""
        return self.finished_epochs if self._is_open else None

    @property
    def epoch_starts(self) -> tuple[int, ...]:
        """The run step at which each finished epoch began, and the next one will."""
        return tuple(self._starts[: self.finished_epochs + 1])

    @property
    def open_steps(self) -> range:
        """The run steps of the open epoch, none between two."""
        if not self._is_open:
            return range(0)
        starts = self._starts[self.finished_epochs :]
        return range(starts[0], _MAX_STEPS if self._num_streamed is not None else starts[1])

    def knows(self, generation: str) -> bool:
        """Return whether this is the current generation, or one before it."""
        return generation == self.generation or generation in self._retired

    def join(self, caller: Caller, world_size: int) -> None:
        """Enter a generation; the first rank of a new one retires the generation before it.

        Raises:
            ConfigError: the rank is not in [0, world_size), or the plan is too small for so many.
            EpochOrderError: the other ranks of this generation have another world size; or a newer generation began.
        """
        self.config.check_world(world_size, caller.rank)
        if caller.generation in self._retired:
            raise fenced(caller.rank)
        if caller.generation != self.generation:
            if self.generation is not None:
                self._retired.add(self.generation)
            self.generation, self.world_size = caller.generation, world_size
            self._leave_epoch()
        elif world_size != self.world_size:
            raise errors.EpochOrderError(
                f"rank {caller.rank} joined with world_size={world_size}, the ranks before it with "
                f"{self.world_size}: every rank must name the same"
            )

    def open_epoch(self, caller: Caller, epoch: int, *, streamed: bool = False) -> Share | list[int]:
        """Open an epoch for one rank; the first to come draws the plan, unless ids come as a stream.

        Returns:
            The rank's share; or, where it has to wait, the ranks that have not yet closed the epoch before.

        Raises:
            EpochOrderError: fenced, already opened by this rank, or not the next epoch of the run.
        """
        self.check(caller)
        current = self.finished_epochs
        if epoch == current + 1 and caller.rank in self._closed:
            return self.not_closed(current)
        if epoch != current:
            raise out_of_order(caller.rank, epoch, current, self.config.num_epochs)
        if caller.rank in self._opened:
            raise errors.EpochOrderError(
                f"rank {caller.rank} opens epoch {epoch} a second time: does every worker have a rank of its own? "
                "After a restart, connect again as a new generation"
            )
        if not self._is_open:
            if streamed or self.config.grows:
                self.config.check_streams()
            if self.config.grows and not streamed:
                raise errors.ConfigError("ids are not known beforehand: iterate selector.stream(epoch, batches)")
            self.plan = None if streamed else self._plan(epoch, self._starts)
            self._dealt_out = self._deal(epoch, self.plan)
            self._is_open, self._num_streamed = True, 0 if streamed else None
        elif streamed != (self._num_streamed is not None):
            raise errors.EpochOrderError(
                f"rank {caller.rank} opens epoch {epoch} {'as a stream' if streamed else 'by its plan'}, the ranks "
                "before it did not: every rank must iterate selector.epoch, or every rank selector.stream"
            )
        self._opened.add(caller.rank)
        return self._share_of(caller.rank)

    def share(self, caller: Caller) -> Share:
        """Return the rank's share of the open epoch; EpochOrderError where it has none open."""
        self.check_open(caller)
        return self._share_of(caller.rank)

    def _share_of(self, rank: int) -> Share:
        if self._dealt_out is None:
            self._dealt_out = self._deal(self.finished_epochs, self.plan)
        return self._dealt_out[rank]

    def _deal(self, epoch: int, plan: Plan | None) -> list[Share]:
        """Return every rank's share of a plan, or of a stream, and note the step that the next epoch begins at."""
        first_step = self._starts[epoch]
        shares = self.config.shares(plan, epoch, first_step, self.world_size)
        end = first_step + plans.num_steps(shares[0].ids.size, self.config.batch_size)
        if end > _MAX_STEPS:
            raise errors.ConfigError(f"the run would pass {_MAX_STEPS:,} steps: use a larger batch_size")
        self._starts[epoch + 1 :] = [] if plan is None else [end]
        return shares

    def close_epoch(self, caller: Caller, epoch: int, num_steps: int = 0, ledgers: Sequence[Ledger] = ()) -> bool:
        """Close an epoch for one rank; return True for the last one, with which the epoch is finished.

        Args:
            caller: the rank.
            epoch: the open one.
            num_steps: that this rank made, where ids came as a stream.
            ledgers: of all ranks, where this one is the last.
        """
        self.check_open(caller)
        if epoch != self.finished_epochs:
            raise errors.EpochOrderError(
                f"rank {caller.rank} closes epoch {epoch}, but epoch {self.finished_epochs} is open"
            )
        self._closed.add(caller.rank)
        if self._num_streamed is not None:
            self._num_streamed = max(self._num_streamed, num_steps)
        if len(self._closed) < self.world_size:
            return False
        if self._num_streamed is not None:
            self._starts.append(self._starts[epoch] + self._num_streamed)
        self.past = self.past.behind(list(ledgers), self._share_of(caller.rank).decision)
        self.finished_epochs += 1
        self._leave_epoch()
        return True

    def go_to(
        self, finished_epochs: int, epoch_starts: Sequence[int], past: Past = BEGINNING, open_share: Share | None = None
    ) -> None:
        """Stand behind that many epochs; ranks that had an epoch open have it no longer.

        Args:
            finished_epochs: to stand behind.
            epoch_starts: run step at which each of them, and the next one, begins.
            past: of the run there.
            open_share: what a lone rank had of the next epoch: opening it again gives this, not a new plan.

        Raises:
            StorageError: the starts are not those of so many epochs.
        """
        if len(epoch_starts) != finished_epochs + 1:
            raise errors.StorageError(
                f"the state has {len(epoch_starts)} epoch starts, expected {finished_epochs + 1} for as many epochs"
            )
        self.finished_epochs, self.past, self._starts = finished_epochs, past, list(epoch_starts)
        self._leave_epoch()
        if open_share is not None:
            self._starts.append(self._starts[-1] + plans.num_steps(open_share.ids.size, self.config.batch_size))
            self._is_open, self._dealt_out = True, [open_share]

    def _leave_epoch(self) -> None:
        self._opened, self._closed, self._is_open = set(), set(), False
        self.plan, self._dealt_out, self._num_streamed = None, None, None

    def to_dict(self) -> dict[str, Any]:
        """Return where every rank is as plain values, without the open epoch's plan: the input of `take_up`."""
        return {
            "attempt": self.generation,
            "retired": sorted(self._retired),
            "world_size": self.world_size,
            "finished_epochs": self.finished_epochs,
            "starts": self._starts,
            "is_open": self._is_open,
            "opened": sorted(self._opened),
            "closed": sorted(self._closed),
            "num_streamed": self._num_streamed,
            "past": self.past.to_dict(),
        }

    def take_up(self, values: dict[str, Any], plan: Plan | None) -> None:
        """Stand where `to_dict` was called.

        Args:
            values: of `to_dict`.
            plan: of the epoch that was open; None where it was a stream, or none was.

        Raises:
            StorageError: the values are not that.
        """
        try:
            retired, starts = set(map(str, values["retired"])), list(map(int, values["starts"]))
            opened, closed = ({int(rank) for rank in values[name]} for name in ("opened", "closed"))
            finished, world_size = int(values["finished_epochs"]), int(values["world_size"])
            past = Past.from_dict(values["past"]) if "past" in values else BEGINNING
            is_open, num_streamed, generation = values["is_open"], values["num_streamed"], values["attempt"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.StorageError(f"the membership in the journal is damaged: {error!r}") from error
        plan = plan if is_open and num_streamed is None else None
        if is_open and plan is None and num_streamed is None:
            raise errors.StorageError(f"the journal has epoch {finished} open, but no plan of it")
        self.generation, self._retired, self.world_size = generation, retired, world_size
        self.finished_epochs, self._starts, self.past = finished, starts, past
        self._leave_epoch()
        if is_open:
            self._opened, self._closed, self._is_open = opened, closed, True
            self.plan, self._num_streamed = plan, num_streamed

    def has_opened(self, rank: int) -> Share | None:
        """Return the share of a rank that has opened the epoch that is open, whether or not it closed it since."""
        return self._share_of(rank) if self._is_open and rank in self._opened else None

    def place_of(self, rank: int) -> tuple[int, bool]:
        """Return how many epochs a rank of the current generation has closed, and whether it has one open."""
        has_closed = self._is_open and rank in self._closed
        return self.finished_epochs + has_closed, self._is_open and rank in self._opened and not has_closed

    def not_closed(self, epoch: int) -> list[int]:
        """Return the ranks of the current generation that have not closed an epoch."""
        return [rank for rank in range(self.world_size) if not self.has_closed(rank, epoch)]

    def has_closed(self, rank: int, epoch: int) -> bool:
        """Return whether a rank of the current generation has closed an epoch."""
        return epoch < self.finished_epochs or (epoch == self.finished_epochs and rank in self._closed)

    def check(self, caller: Caller) -> None:
        """Raise EpochOrderError unless the caller belongs to the current generation."""
        if self.generation is None or caller.generation != self.generation:
            raise fenced(caller.rank)
        if not 0 <= caller.rank < self.world_size:
            raise errors.EpochOrderError(f"rank {caller.rank} has not joined: there are {self.world_size}")

    def check_open(self, caller: Caller) -> None:
        """Raise EpochOrderError unless the caller has its epoch open."""
        self.check(caller)
        if caller.rank not in self._opened or caller.rank in self._closed:
            raise errors.EpochOrderError(
                f"rank {caller.rank} has no epoch open: iterate selector.epoch(e), which opens and closes it"
            )
