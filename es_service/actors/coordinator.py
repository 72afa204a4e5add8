"""What concerns all shards of a run: who takes part, which epoch is open, when snapshots are taken.

Where the ranks are, and the plan of the open epoch, is in the journal before a rank receives it, so that a server that
restarts continues where it was. Where its journal cannot be read it starts from the last finished epoch; ranks that had
joined get ServerRestartedError and join again, which takes all shards back to it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from es_service import errors
from es_service.actors.checkpoints import Checkpoints
from es_service.actors.epoch_state import EpochState
from es_service.actors.run_progress import RunProgress
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_group import ShardGroup
from es_service.actors.snapshot_writer import SnapshotWriter
from es_service.ledger import Ledger
from es_service.selection.membership import out_of_order
from es_service.selection.plans import Plan
from es_service.selection.run import Caller, Share
from es_service.storage import runs

__all__ = ["Coordinator"]

_epoch_log = logging.getLogger("es_service.epochs")
_MAX_TRIES = 5  # to write the last snapshot, while processes go down
_LOGGED = ("num_reports", "num_observed", "num_selected", "num_overlaps", "table_bytes")


class Coordinator:
    """See the module's text.

    Args:
        run: that is served.
        shards: all of them; the journal of the first keeps the state of the epochs.
        epochs: that state.
    """

    def __init__(self, run: ServedRun, shards: ShardGroup, epochs: EpochState) -> None:
        self._storage, self._config, self._shards, self._shard = run.storage, run.config, shards, shards.own
        self._epochs, self.membership = epochs, epochs.membership
        self.snapshots = SnapshotWriter(run.storage, shards, run.check_write)
        self.checkpoints = Checkpoints(run, shards, epochs, self.snapshots)
        self._epoch_begun_at = time.monotonic()
        self.progress = RunProgress(run, epochs)

    def _keep(self, *, plan: Plan | None = None) -> None:
        """Write the state of the epochs to the journal, see `ShardState.write`."""
        self._shard.state.write(*self._epochs.records(plan))

    def join(
        self, rank: int, generation: str, world_size: int, config: dict[str, Any], opens: int | None = None
    ) -> int:
        """Enter the run, or enter it again; a new generation first takes the table back to the last finished epoch.

        Args:
            rank: the caller's.
            generation: the caller's.
            world_size: of the generation.
            config: `runs.config_to_dict` of the caller's.
            opens: the epoch that the caller is about to open; None where it loads a state or resets first.

        Returns:
            How many rewinds this rank has asked for in this generation; it counts on.

        Raises:
            RunMismatchError: the caller's config is not the run's.
            ConfigError, EpochOrderError: see `Membership.join`; or a new generation would be refused the epoch that it
                opens, so that the one before it is left alone.
            StorageError: the new generation cannot be written; or the end of the epoch before the one that it opens
                could not be written.
        """
        runs.check_same(self._storage.run, self._config, runs.config_from_dict(config))
        self._config.check_world(world_size, rank)
        with self._epochs.lock:
            if not self.membership.knows(generation):
                stands_at, goes_back = self._where_new_ranks_begin()
                if opens is not None and opens != stands_at:
                    if stands_at < opens <= self.membership.finished_epochs:
                        raise self._not_stored(stands_at)
                    raise out_of_order(rank, opens, stands_at, self._config.num_epochs)
                if goes_back:
                    self.checkpoints.go_back()  # another shard may stand elsewhere
                self._shards.all("begin", generation)
                self._epochs.begin()
            self.membership.join(Caller(rank, generation), world_size)
            asked = self._epochs.rewinds.setdefault(rank, 0)
            self._keep()
            self._shard.state.journal.flush()  # a server that came back without it would take this rank for an old one
            return asked

    def next_epoch(self, generation: str) -> int:
        """Return the epoch that a rank of this generation, which need not have joined, opens next (group `read`)."""
        with self._epochs.lock:
            return (
                self.membership.finished_epochs
                if self.membership.knows(generation)
                else self._where_new_ranks_begin()[0]
            )

    def _where_new_ranks_begin(self) -> tuple[int, bool]:
        """Return at which epoch a new generation begins, and whether the table has to go back to its start."""
        self.snapshots.wait()
        goes_back = self._shards.count > 1 or self.membership.open_epoch_number is not None
        return self._storage.snapshots.newest() if goes_back else self.membership.finished_epochs, goes_back

    def _not_stored(self, stored: int) -> errors.StorageError:
        failure = self.snapshots.failure
        return errors.StorageError(
            f"epoch {stored} of run {self._storage.run!r} was finished, but its end is not on storage"
            f"{'' if failure is None else f' ({failure})'}: a new group of ranks begins at epoch {stored}. "
            "Make the storage writable and continue there, or load a later checkpoint's state_dict on every rank"
        )

    def whereabouts(self, rank: int, generation: str) -> tuple[int, bool]:
        """Return how many epochs this rank has closed, and whether it has one open: less than it knows after a crash.

        Raises:
            EpochOrderError: it is fenced.
        """
        self._shard.check_begun()
        with self._epochs.lock:
            self.membership.check(Caller(rank, generation))
            return self.membership.place_of(rank)

    def open_epoch(
        self, rank: int, generation: str, epoch: int, streamed: bool = False, turn: str = ""
    ) -> Share | list[int]:
        """Open an epoch; return the rank's share, or the ranks still in the epoch before.

        Raises:
            EpochOrderError: see `Membership.open_epoch`; or another rank has taken the run back, and this one has not
                followed yet. Its reports that are still under way would otherwise open the epoch for it.
        """
        self._shard.check_begun()
        with self._epochs.lock:
            caller = Caller(rank, generation)
            self.membership.check(caller)
            if rank in self._epochs.outdated:
                raise errors.EpochOrderError(
                    f"rank {rank} opens epoch {epoch}, but another rank has reset the run or loaded a state since: "
                    "every rank must reset or load as often as the others"
                )
            if self._epochs.is_repeated(caller, turn) and epoch == self.membership.open_epoch_number:
                opened = self.membership.has_opened(rank)
                if opened is not None:
                    return opened
            is_new = self.membership.open_epoch_number is None
            share = self.membership.open_epoch(caller, epoch, streamed=streamed)
            if isinstance(share, list):
                return share
            if is_new:
                self._epoch_begun_at = time.monotonic()
                self._shards.all("open_steps", self.membership.open_steps)
            self._epochs.turns[rank] = turn
            self._keep(plan=self.membership.plan if is_new else None)
            return share

    def close_epoch(
        self,
        rank: int,
        generation: str,
        epoch: int,
        num_steps: int = 0,
        seqs: Sequence[int] = (),
        ledger: dict[str, Any] | None = None,
        turn: str = "",
    ) -> bool:
        """Close an epoch for one rank; return whether it was the last one.

        With it the snapshot starts: every shard has taken a copy of its rows when this returns, and writes it in
        the background. The end of the last epoch is on storage when this returns. Whether the close itself is, and
        the reports before it, `settle` says.

        Args:
            rank: the caller's.
            generation: the caller's.
            epoch: the open one.
            num_steps: that this rank made.
            seqs: of its last report to each shard; for none it has not reported anything.
            ledger: of the rank, `Ledger.to_dict`.
            turn: see the module's text.

        Raises:
            ServerRestartedError: a shard lacks reports of this rank; nothing is closed before it has them again.
            StorageError: the snapshot of the epoch before, or of the last one, could not be written; this epoch is
                finished all the same. Called again, the last one is tried again.
        """
        self._shard.check_begun()
        with self._epochs.lock:
            caller = Caller(rank, generation)
            if self._epochs.is_repeated(caller, turn) and self.membership.has_closed(rank, epoch):
                self._finish_run()
                return epoch < self.membership.finished_epochs
            if seqs:
                try:
                    self._shards.each("check_reports", [(rank, generation, seq) for seq in seqs])
                except errors.ServerRestartedError:  # they come again, where an earlier try to close left no step open
                    self._reopen_steps()
                    raise
            before = self.membership.to_dict(), self.membership.plan
            counted = None if ledger is None else Ledger.from_dict(ledger)
            self.progress.count(rank, epoch, counted)
            if not self.membership.close_epoch(caller, epoch, num_steps, self._epochs.ledgers_of(epoch)):
                self._epochs.turns[rank] = turn
                self._keep()
                return False
            turns, self._epochs.turns = self._epochs.turns, {**self._epochs.turns, rank: turn}
            try:
                failure = self.snapshots.wait()
                self._shards.all("open_steps", range(0))
                copied = self.snapshots.copy(self.membership.epoch_starts, self.membership.past)
            except errors.ServerError:  # a shard is away: the rank comes again
                self.membership.take_up(*before)
                self._epochs.turns = turns
                self._reopen_steps()
                raise
            finally:
                self._keep()
            self.snapshots.begin(copied)
            self.progress.finish_epoch()
            with contextlib.suppress(errors.ServerError):  # a shard that is away: the epoch is finished all the same
                self._log_epoch(epoch)
            self._finish_run()
            if isinstance(failure, errors.StorageError):
                raise failure
            return True

    def _reopen_steps(self) -> None:
        """Let the shards take reports of the open epoch again, as far as they are there."""
        if self.membership.open_epoch_number is not None:
            with contextlib.suppress(errors.ServerError):  # the rank comes again, and so does this
                self._shards.all("open_steps", self.membership.open_steps)

    def _finish_run(self) -> None:
        """Where all epochs are finished: return once the end of the last one is on storage."""
        finished = self.membership.finished_epochs
        if finished < self._config.num_epochs:
            return
        failure = self.snapshots.wait()
        for _ in range(_MAX_TRIES):
            if failure is None and self._storage.snapshots.newest() == finished:
                return
            # a process went down, with what it had copied
            failure = self.snapshots.write(self.membership.epoch_starts, self.membership.past)
            if isinstance(failure, errors.StorageError):
                break
        if failure is not None:
            raise failure

    def settle(self, rank: int, generation: str, seq: int, num_closed: int = 0) -> bytes:
        """See `ScoreShard.settle`; that this rank has closed so many epochs is to be on storage, too."""
        if self.whereabouts(rank, generation)[0] < num_closed:
            raise errors.ServerRestartedError(
                f"rank {rank} has closed {num_closed} epochs, which is not known here: a process went down before it "
                "could be written; connect again and continue from the last checkpoint, if this is not repeated"
            )
        return self._shard.settle(rank, generation, seq)

    def stored_epochs(self) -> int:
        """Return the epochs behind the newest snapshot on storage, once none is being written any more (group `read`).

        Raises:
            StorageError: the last one could not be written.
        """
        failure = self.snapshots.wait()
        if isinstance(failure, errors.StorageError):
            raise failure
        return self._storage.snapshots.newest()

    def _log_epoch(self, epoch: int) -> None:
        """Log an epoch as one line of JSON; counts are since this process began."""
        counts = self._shards.all("counts")
        sums = {name: sum(one[name] for one in counts) for name in _LOGGED}
        starts, now = self.membership.epoch_starts, time.monotonic()
        line = {
            "event": "epoch_finished",
            "run": self._storage.run,
            "epoch": epoch,
            "finished_epochs": self.membership.finished_epochs,
            "num_epochs": self._config.num_epochs,
            "run_step": starts[-1],
            "steps": starts[-1] - starts[-2],
            "world_size": self.membership.world_size,
            "shards": self._shards.count,
            "seconds": round(now - self._epoch_begun_at, 3),
            **sums,
        }
        _epoch_log.info("%s", json.dumps(line))
