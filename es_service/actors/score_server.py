"""The score server of a run: its first shard, which keeps the roster too. A plain class; `launch` makes an actor of it.

A run's table may be spread over S shards. Ranks speak to each shard for its rows (see `score_shard`), and to the
server alone to join, to open and close epochs, to save and to go back; it then tells the other shards.

Where the ranks are, and the plan of the open epoch, is in the journal before a rank hears of it, so that a server that
restarts goes on where it was. Where its journal cannot be read it starts from the last finished epoch; ranks that had
joined get ServerRestartedError and join again, which takes all shards back to it.

A call that changes the roster may be made again with the same `turn`, any text of the caller's: it is done once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from es_service import errors
from es_service.actors import shard_journal
from es_service.actors.call_times import merged
from es_service.actors.plan_codec import decode_plan, encode_plan
from es_service.actors.score_shard import ScoreShard
from es_service.actors.shard_group import ShardGroup
from es_service.actors.snapshot_writer import SnapshotWriter
from es_service.selection import queries
from es_service.selection.plans import Plan
from es_service.selection.roster import Roster, out_of_order
from es_service.selection.run import Caller, RunConfig, RunState, Share
from es_service.selection.table import arrow_to_records, records_to_arrow
from es_service.storage import runs, snapshots
from es_service.storage.ownership import Ownership
from es_service.storage.segments import Record

__all__ = ["ScoreServer"]

_log = logging.getLogger(__name__)
_epochs = logging.getLogger("es_service.epochs")
_MAX_TRIES = 5  # to write the last snapshot, while processes go down
_LOGGED = ("num_reports", "num_observed", "num_selected", "num_overlaps", "table_bytes")


class ScoreServer(ScoreShard):
    """See the module's text.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.
        config: `runs.config_to_dict` of the run.
        count: S, how many shards there are.
        ask: how the other shards are called, see `ShardGroup`; a server that is alone needs none.
        actor: names this server over restarts of its process, so that no two of them write a run; None does not look.
    """

    def __init__(
        self,
        storage: str,
        run: str,
        config: dict[str, Any],
        count: int = 1,
        ask: Callable[..., Callable[[], Any]] | None = None,
        actor: str | None = None,
    ) -> None:
        self._actor = actor
        self._ownership: Ownership | None = None
        self._roster_lock = threading.Lock()
        self._shards = ShardGroup(self, ask, count)
        self._behind = count > 1  # the other shards may stand elsewhere than the last snapshot
        self._num_rewinds = 0  # done in this attempt
        self._rewinds: dict[int, int] = {}  # of those, how many each rank has asked for
        self._turns: dict[int, str] = {}  # the last change that each rank asked for
        self._plan_read: Plan | None = None  # of the journal, for the roster that comes next
        self._progress: dict[str, Any] = {}
        self._epoch_begun_at = time.monotonic()
        super().__init__(storage, run, config, 0, count)

    def _begin_run(self, config: RunConfig) -> None:
        self._storage.begin(config)
        if self._actor is not None:
            self._ownership = self._storage.claim(self._actor)
        self._storage.begin_journals(self._shards.count)
        self._roster = Roster(config, self._shards.plan)
        self._snapshots = SnapshotWriter(self._storage, self._shards, self._may_write)

    def _may_write(self) -> None:
        super()._may_write()
        if self._ownership is not None:
            try:
                self._ownership.renew()
            except errors.RunExistsError as error:
                raise errors.StorageError(str(error)) from error

    def _ready(self) -> None:
        super()._ready()
        if self._ownership is not None:
            try:
                self._ownership.check()
            except errors.RunExistsError as error:
                if self._storage.exists():
                    raise
                raise self._gone() from error  # no other owner: its file went with the folder

    # -- where the journal left it -------------------------------------------------------------------------------------

    def _load(self, finished_epochs: int, note: dict[str, Any]) -> None:
        super()._load(finished_epochs, note)
        if "roster" in note:
            self._take_up(note["roster"], None)
        else:
            self._roster.go_to(*self._storage.position(finished_epochs))

    def _replay(self, record: Record) -> None:
        if record.kind == "plan":
            self._plan_read = decode_plan(record.payload)
        elif record.kind == "roster":
            self._take_up(shard_journal.from_json(record.payload), self._plan_read)
        else:
            super()._replay(record)

    def _take_up(self, values: dict[str, Any], plan: Plan | None) -> None:
        self._roster.take_up(values, plan)
        try:
            self._num_rewinds = int(values["num_rewinds"])
            self._rewinds = {int(rank): int(num) for rank, num in values["rewinds"].items()}
            self._turns = {int(rank): str(turn) for rank, turn in values["turns"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.StorageError(f"the roster in the journal is damaged: {error!r}") from error

    def _roster_values(self) -> dict[str, Any]:
        return {
            **self._roster.to_dict(),
            "num_rewinds": self._num_rewinds,
            "rewinds": {str(rank): num for rank, num in self._rewinds.items()},
            "turns": {str(rank): turn for rank, turn in self._turns.items()},
        }

    def _note(self) -> dict[str, Any]:
        return {**super()._note(), "roster": self._roster_values()}

    def _keep_roster(self, *, plan: Plan | None = None) -> None:
        """Write where everybody is to the journal; it is on storage when this returns, if it can be written.

        Where it cannot, training goes on: a rank keeps what it said until `settle` says that it is on storage.
        """
        with self._lock:
            if plan is not None:
                self._journal.append("plan", encode_plan(plan))
            self._journal.append("roster", shard_journal.to_json(self._roster_values()))
        self._flush()

    # -- for ranks -----------------------------------------------------------------------------------------------------

    def join(self, rank: int, attempt: str, world_size: int, config: dict[str, Any], opens: int | None = None) -> int:
        """Enter the run, or enter it again; a new attempt first takes the table back to the last finished epoch.

        Args:
            rank: the caller's.
            attempt: the caller's.
            world_size: of the attempt.
            config: `runs.config_to_dict` of the caller's.
            opens: the epoch that the caller is about to open; None where it loads a state or resets first.

        Returns:
            How many rewinds this rank has asked for in this attempt; it counts on.

        Raises:
            RunMismatchError: the caller's config is not the run's.
            ConfigError, EpochOrderError: see `Roster.join`; or a new attempt would be refused the epoch it opens, so
                that the one before it is left alone.
            StorageError: it cannot be written that there is a new attempt.
        """
        self._ready()
        runs.check_same(self._storage.run, self._config, runs.config_from_dict(config))
        self._config.check_world(world_size, rank)
        with self._roster_lock:
            if not self._roster.knows(attempt):
                self._snapshots.wait()
                goes_back = self._shards.count > 1 or self._roster.open_epoch_number is not None
                stands_at = self._storage.finished_epochs() if goes_back else self._roster.finished_epochs
                if opens is not None and opens != stands_at:
                    raise out_of_order(rank, opens, stands_at, self._config.num_epochs)
                if goes_back:
                    self._go_back()  # another shard may stand elsewhere
                self._shards.all("begin", attempt)
                self._rewinds.clear()
                self._turns.clear()
                self._num_rewinds = 0
            self._roster.join(Caller(rank, attempt), world_size)
            asked = self._rewinds.setdefault(rank, 0)
            self._keep_roster()
            self._journal.flush()  # a server that came back without it would take this rank for an old one
            return asked

    def whereabouts(self, rank: int, attempt: str) -> tuple[int, bool]:
        """Return how many epochs this rank has closed, and whether it has one open: less than it knows after a crash.

        Raises:
            EpochOrderError: it is superseded.
        """
        self._check_restart()
        with self._roster_lock:
            self._roster.check(Caller(rank, attempt))
            return self._roster.place_of(rank)

    def open_epoch(
        self, rank: int, attempt: str, epoch: int, streamed: bool = False, turn: str = ""
    ) -> Share | list[int]:
        """Open an epoch; return the rank's share, or the ranks still in the epoch before.

        Raises:
            EpochOrderError: see `Roster.open_epoch`.
        """
        self._check_restart()
        with self._roster_lock:
            caller = Caller(rank, attempt)
            if self._is_repeated(caller, turn) and epoch == self._roster.open_epoch_number:
                opened = self._roster.has_opened(rank)
                if opened is not None:
                    return opened
            was_open = self._roster.open_epoch_number
            share = self._roster.open_epoch(caller, epoch, streamed=streamed)
            if isinstance(share, list):
                return share
            is_new = was_open is None
            if is_new:
                self._epoch_begun_at = time.monotonic()
                self._shards.all("open_steps", self._roster.open_steps)
            self._turns[rank] = turn
            self._keep_roster(plan=self._roster.plan if is_new else None)
            return share

    def _is_repeated(self, caller: Caller, turn: str) -> bool:
        """Return whether the rank makes a call again that was done."""
        self._roster.check(caller)
        return bool(turn) and self._turns.get(caller.rank) == turn

    def close_epoch(
        self, rank: int, attempt: str, epoch: int, num_steps: int = 0, seqs: Sequence[int] = (), turn: str = ""
    ) -> bool:
        """Close an epoch for one rank; return whether it was the last one.

        With it the snapshot is begun: every shard has taken a copy of its rows when this returns, and writes it in
        the background. The end of the last epoch is on storage when this returns. Whether the close itself is, and
        the reports before it, `settle` says.

        Args:
            rank: the caller's.
            attempt: the caller's.
            epoch: the open one.
            num_steps: that this rank made.
            seqs: of its last report to each shard; for none it has not reported anything.
            turn: see the module's text.

        Raises:
            ServerRestartedError: a shard lacks reports of this rank; nothing is closed before it has them again.
            StorageError: the snapshot of the epoch before, or of the last one, could not be written; this epoch is
                finished all the same. Called again, the last one is tried again.
        """
        self._check_restart()
        with self._roster_lock:
            caller = Caller(rank, attempt)
            if self._is_repeated(caller, turn) and self._roster.has_closed(rank, epoch):
                self._finish_run()
                return epoch < self._roster.finished_epochs
            if seqs:
                try:
                    self._shards.each("check_reports", [(rank, attempt, seq) for seq in seqs])
                except errors.ServerRestartedError:  # they come again, where an earlier try to close left no step open
                    self._reopen_steps()
                    raise
            before = self._roster.to_dict(), self._roster.plan
            if not self._roster.close_epoch(caller, epoch, num_steps):
                self._turns[rank] = turn
                self._keep_roster()
                return False
            turns, self._turns = self._turns, {**self._turns, rank: turn}
            try:
                failure = self._snapshots.wait()
                self._shards.all("open_steps", range(0))
                copied = self._snapshots.copy(self._roster.epoch_starts)
            except errors.ServerError:  # a shard is away: the rank comes again
                self._roster.take_up(*before)
                self._turns = turns
                self._reopen_steps()
                raise
            finally:
                self._keep_roster()
            self._snapshots.begin(copied)
            with contextlib.suppress(errors.ServerError):  # a shard that is away: the epoch is finished all the same
                self._log_epoch(epoch)
            self._finish_run()
            if isinstance(failure, errors.StorageError):
                raise failure
            return True

    def _reopen_steps(self) -> None:
        """Let the shards take reports of the open epoch again, as far as they are there."""
        if self._roster.open_epoch_number is not None:
            with contextlib.suppress(errors.ServerError):  # the rank comes again, and so does this
                self._shards.all("open_steps", self._roster.open_steps)

    def _finish_run(self) -> None:
        """Where all epochs are finished: return once the end of the last one is on storage."""
        finished = self._roster.finished_epochs
        if finished < self._config.num_epochs:
            return
        failure = self._snapshots.wait()
        for _ in range(_MAX_TRIES):
            if failure is None and self._storage.finished_epochs() == finished:
                return
            failure = self._snapshots.write(self._roster.epoch_starts)  # a process went down, with what it had copied
            if isinstance(failure, errors.StorageError):
                break
        if failure is not None:
            raise failure

    def settle(self, rank: int, attempt: str, seq: int, num_closed: int = 0) -> bytes:
        """See `ScoreShard.settle`; that this rank has closed so many epochs is to be on storage, too."""
        if self.whereabouts(rank, attempt)[0] < num_closed:
            raise errors.ServerRestartedError(
                f"rank {rank} has closed {num_closed} epochs, which is not known here: a process went down before it "
                "could be written; connect again and continue from the last checkpoint, if it is not said again"
            )
        return super().settle(rank, attempt, seq)

    def _log_epoch(self, epoch: int) -> None:
        """Say in one line of JSON what an epoch was; counts are since this process began."""
        counts = self._shards.all("counts")
        sums = {name: sum(one[name] for one in counts) for name in _LOGGED}
        starts, now = self._roster.epoch_starts, time.monotonic()
        line = {
            "event": "epoch_finished",
            "run": self._storage.run,
            "epoch": epoch,
            "finished_epochs": self._roster.finished_epochs,
            "num_epochs": self._config.num_epochs,
            "run_step": starts[-1],
            "steps": starts[-1] - starts[-2],
            "world_size": self._roster.world_size,
            "shards": self._shards.count,
            "seconds": round(now - self._epoch_begun_at, 3),
            **sums,
        }
        _epochs.info("%s", json.dumps(line))

    def rewind(
        self,
        rank: int,
        attempt: str,
        ordinal: int,
        finished_epochs: int,
        starts: tuple[int, ...],
        sha256: str,
        table: bytes | None,
    ) -> bool:
        """Go back to the state of a checkpoint; return False where its table has to be sent along.

        Args:
            rank: the caller's.
            attempt: the caller's.
            ordinal: counts the attempt's rewinds from 1; its first rank does each, for the others it is done.
            finished_epochs: of the state; 0 forgets everything.
            starts: epoch starts of the state.
            sha256: of the state's table as an Arrow IPC file.
            table: that file, or None to try with what the storage holds.

        Raises:
            StorageError: the table is damaged or of another size.
        """
        self._check_restart()
        with self._roster_lock:
            self._roster.check(Caller(rank, attempt))
            self._snapshots.wait()
            if ordinal > self._num_rewinds + 1:
                raise errors.EpochOrderError(
                    f"rank {rank} asks for rewind {ordinal} of this attempt, but {self._num_rewinds} were asked for "
                    "before: every rank must load or reset as often as the others"
                )
            if ordinal <= self._num_rewinds:
                self._rewinds[rank] = ordinal
                self._keep_roster()
                return True
            if table is not None:
                state = self._decoded(finished_epochs, starts, sha256, table)
                self._snapshots.settle()
                self._roster.go_to(finished_epochs, starts)
                self._behind = self._shards.count > 1
                self._shards.load(state.records)
                self._storage.forget_after(finished_epochs, state.records)
                failure = self._snapshots.write(self._roster.epoch_starts)
                if failure is not None:
                    raise failure
                self._behind = False
            elif finished_epochs == 0 or self._storage.holds(finished_epochs, sha256):
                self._go_to(finished_epochs, starts)
                self._storage.forget_after(finished_epochs)
            else:
                return False
            self._shards.all("open_steps", range(0))
            self._num_rewinds = self._rewinds[rank] = ordinal
            self._keep_roster()
            return True

    def state(self, finished_epochs: int | None = None) -> tuple[bytes, int, tuple[int, ...]] | list[int]:
        """Return (table as an Arrow IPC file, epochs finished, epoch starts), for a checkpoint (group `read`).

        Where another rank has opened the next epoch, the table is the snapshot of the end of the one before.

        Args:
            finished_epochs: that the caller has closed; None where it only looks.

        Returns:
            The state; or the ranks that have not closed the last of these epochs, to be asked for again.

        Raises:
            EpochOrderError: an epoch is open; what is in the table then is no state to continue from.
            StorageError: another rank is ahead, and the snapshot of the epoch's end cannot be read.
            ServerRestartedError: a shard restarted, and may have lost what the others have.
        """
        self._ready()
        with self._roster_lock:
            opened, finished = self._roster.open_epoch_number, self._roster.finished_epochs
            if finished_epochs is not None and finished_epochs > finished:
                return self._roster.not_closed(finished_epochs - 1)
            if opened is None and finished_epochs in (None, finished):
                return self._present_state()
            if not finished_epochs:
                raise errors.EpochOrderError(
                    f"epoch {opened} is open: take the state between two epochs, "
                    "when every rank has closed the last one"
                )
        return self._stored_state(finished_epochs)

    def _stored_state(self, finished_epochs: int) -> tuple[bytes, int, tuple[int, ...]]:
        self._snapshots.wait()
        try:
            state = self._storage.snapshot(finished_epochs)
        except errors.StorageError as error:
            raise errors.StorageError(
                f"a rank has opened epoch {finished_epochs}, and the snapshot of the end of epoch "
                f"{finished_epochs - 1} cannot be read ({error}): take the state on this rank before the others "
                "continue (use a barrier), or after the next epoch"
            ) from error
        return snapshots.encode_table(records_to_arrow(state.records)), finished_epochs, state.epoch_starts

    def _present_state(self) -> tuple[bytes, int, tuple[int, ...]]:
        if self._roster.attempt is None:
            if self._behind:
                self._go_back()
        elif self._shards.count > 1:  # one that restarted may stand elsewhere
            self._shards.all("check_begun")
        table = records_to_arrow(self._shards.records())
        return snapshots.encode_table(table), self._roster.finished_epochs, self._roster.epoch_starts

    def stored_epochs(self) -> int:
        """Return the epochs behind the newest snapshot on storage, once none is being written any more (group `read`).

        Raises:
            StorageError: the last one could not be written.
        """
        self._ready()
        failure = self._snapshots.wait()
        if isinstance(failure, errors.StorageError):
            raise failure
        return self._storage.finished_epochs()

    def storage_failure(self) -> str | None:
        """See `ScoreShard.storage_failure`; a snapshot that could not be written is one, too."""
        return super().storage_failure() or (None if self._snapshots.failure is None else str(self._snapshots.failure))

    def snapshot(self) -> pa.Table:
        """Return a copy of the table as it is now (group `read`)."""
        self._ready()
        return records_to_arrow(self._shards.records())

    def top(self, column: str, num: int, lowest: bool) -> pa.Table:
        """Return the rows with the highest values of a column, or the lowest, see `queries.top` (group `read`)."""
        self._ready()
        return queries.ranked(self._shards.agree("top", column, num, lowest), column, lowest=lowest)

    def distribution(self, column: str, bins: int) -> queries.Distribution:
        """Return how a column's values spread, see `queries.distribution` (group `read`)."""
        self._ready()
        found: queries.Distribution = self._shards.agree("distribution", column, bins)[0]
        return found

    def stats(self) -> dict[str, Any]:
        """Return where the run stands, as plain values (group `read`)."""
        self._ready()
        shards = self._shards.all("counts")
        calls = merged([shard.pop("calls") for shard in shards])
        return {
            "run": self._storage.run,
            "storage": self._place,
            "config": runs.config_to_dict(self._config),
            "finished_epochs": self._roster.finished_epochs,
            "open_epoch": self._roster.open_epoch_number,
            "world_size": self._roster.world_size,
            "attempt": self._roster.attempt,
            "shards": len(shards),
            **{name: sum(shard[name] for shard in shards) for name in shards[0]},
            "storage_failure": next(filter(None, self._shards.all("storage_failure")), None),
            "pid": self.pid(),
            "calls": calls,
            "progress": self._progress,
        }

    def publish(self, progress: dict[str, Any]) -> None:
        """Keep what a training last said of itself (accuracy, ledger), for `stats` to show."""
        self._progress = progress

    def _decoded(self, finished_epochs: int, starts: tuple[int, ...], sha256: str, table: bytes) -> RunState:
        if hashlib.sha256(table).hexdigest() != sha256:
            raise errors.StorageError("the table in the checkpoint is damaged: its sha256 is not the one noted there")
        decoded = snapshots.decode_table(table, "the table in the checkpoint")
        num_samples = decoded.num_rows if self._config.grows else self._config.num_samples
        records = arrow_to_records(decoded, num_samples)
        self._engine.check_records(records[:: self._shards.count])
        return RunState(records, finished_epochs, tuple(starts))

    def _go_back(self) -> None:
        """Take roster and shards to the end of the last epoch whose snapshot all of them can read."""
        epochs = self._storage.snapshot_epochs() or [0]
        while True:
            finished = epochs.pop()
            try:
                self._go_to(*self._storage.position(finished))
                return
            except errors.StorageError as error:
                if not epochs:
                    raise
                _log.error("%s; going back to the epoch before", error)

    def finish(self) -> None:
        """See `ScoreShard.finish`; all shards do it, and the run is nobody's afterwards."""
        if self._failure is None:
            self._snapshots.close()
        super().finish()
        if self._ownership is not None:
            self._ownership.release()

    def _go_to(self, finished_epochs: int, starts: tuple[int, ...]) -> None:
        """Take roster and shards to an epoch's end that is on storage, or to the beginning."""
        self._snapshots.settle()
        self._shards.all("go_to_snapshot", finished_epochs)
        self._roster.go_to(finished_epochs, starts)
        self._behind = False
        self._keep_roster()  # it belongs to the rows, which are there already
        with contextlib.suppress(errors.StorageError):  # whoever went back on purpose drops it anyway
            self._storage.forget_history(finished_epochs)
