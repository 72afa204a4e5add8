"""A shard: the owner of some rows of a run's table, as a plain class. The score server is the first of them.

Concurrency: ranks call `observe`, `report` and `lease` one at a time (Ray's default concurrency group); readers
come in by the group `read`, on threads of their own. Both meet at one lock, held for the length of a step or of a copy.
Snapshots are written by the group `write`, from a copy, without the lock.

A call that returns has been applied. A call that raises has changed nothing. A call whose answer got lost may have
been applied: send the same seq again, which is then answered without being applied twice. Callers retry, not Ray.

Reports are taken from the current generation, for steps of the open epoch; the score server sets both, by `begin` and
`open_steps`. They reach the journal about a second later; every answer acknowledges how far it is written. A shard
that restarts continues where its journal ends (see `shard_journal`); ranks send again what came after. Where the
journal cannot be read it is at the end of an epoch, and takes no reports before a new generation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import shard_journal, wire
from es_service.actors.call_times import timed
from es_service.actors.delegation import passed_to
from es_service.actors.pending_reductions import Pending
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_journal import Journaled
from es_service.actors.shard_state import ShardState
from es_service.actors.snapshot_part import SnapshotPart
from es_service.selection.shards import Shard

__all__ = ["ScoreShard"]

I64 = NDArray[np.int64]


class ScoreShard:
    """See the module's text.

    Args:
        run: that is served. Where the shard cannot work, every call raises the run's failure.
        index: of the shard, in [0, count).
        count: S, how many shards there are.
        also: what else its journal keeps.
    """

    def __init__(self, run: ServedRun, index: int = 0, count: int = 1, also: Sequence[Journaled] = ()) -> None:
        self._run, self._shard = run, Shard(index, count)
        self.state = ShardState(run, self._shard)
        self.pending = Pending(run, self.state)
        self._part = SnapshotPart(run, self.state)
        self._times = self.state.times
        with run.failure_kept():
            run.check()
            self.state.start(*also)

    def _own_state(self) -> ShardState:
        return self.state

    def _own_pending(self) -> Pending:
        return self.pending

    def _own_part(self) -> SnapshotPart:
        return self._part

    def ping(self) -> None:
        """Do nothing: measures the cost of a call."""

    def identity(self) -> tuple[errors.EsServiceError | None, str, int]:
        """Return why this shard cannot work, None if it can; where it keeps its runs; and S (group `read`)."""
        return self._run.failure, self._run.place, self._shard.count

    # -- for ranks ----------------------------------------------------------------------------------------------------

    def enter(self, rank: int, generation: str) -> int:
        """Return the seq of this rank's last report here, 0 before the first; it counts on."""
        state = self.state
        state.check_begun()
        with state.lock:
            is_new = not state.report_ledger.has(rank)
            seq = state.report_ledger.enter(rank, generation)
        if is_new:
            state.keep()
        return seq

    def settle(self, rank: int, generation: str, seq: int) -> bytes:
        """Return an acknowledgement once this rank's reports up to `seq` are on storage.

        Raises:
            ServerRestartedError: some of them went down with a process; they have to be sent again.
            StorageError: they are here, but cannot be written at the moment.
        """
        self.check_reports(rank, generation, seq)
        self.state.journal.flush()
        with self.state.lock:
            return self.state.acknowledgement(rank)

    def check_reports(self, rank: int, generation: str, seq: int) -> None:
        """Raise ServerRestartedError unless this rank's reports up to `seq` are here."""
        state = self.state
        state.check_begun()
        with state.lock:
            state.report_ledger.check(rank, generation)
            state.report_ledger.check_has(rank, seq)

    @timed
    def lease(self, rank: int, generation: str, ids_m: I64, run_step: int) -> dict[str, NDArray[Any]]:
        """Return copies of the columns that a rank needs to draw on its own, [m] each, see `Engine.lease`.

        Raises:
            ServerRestartedError: the epoch that begins with `run_step` is not open here, so that rows may be older.
        """
        state = self.state
        state.check_begun()
        with state.lock:
            state.report_ledger.check(rank, generation)
            state.report_ledger.check_open(run_step)
            return state.engine.lease(state.check_ids(ids_m))

    @timed
    def fetch(self, message: bytes) -> bytes:
        """Return the packed rows of ids that the rank will observe next, and note that it does.

        Rows are read behind every report that this rank sent before; the answer has the seq of the last.

        Raises:
            ServerRestartedError: the epoch of this step is not open here, so that rows may be older.
        """
        state = self.state
        state.check_begun()
        caller, run_step, ids_B = wire.decode_request(message)
        ids_B = state.check_ids(ids_B)
        with state.lock:
            state.report_ledger.check(caller.rank, caller.generation)
            state.report_ledger.check_open(run_step)
            state.engine.make_room(ids_B)
            rows_B = self._shard.rows(ids_B)
            num_overlaps = state.overlaps.asked(rows_B, caller.rank, run_step, len(state.engine.table))
            return wire.encode_rows(state.report_ledger.seq(caller.rank), num_overlaps, state.engine.lease(ids_B))

    @timed
    def observe(self, message: bytes) -> bytes:
        """Apply one report; return an acknowledgement and its weights. A repeated one of the last step gets them again.

        Raises:
            ShapeError, IdError, LossError: the report cannot be used.
            ServerRestartedError: a report before it is missing.
            EpochOrderError: its rank is fenced or has no epoch open.
        """
        state = self.state
        state.check_begun()
        reports = [state.checked(report) for report in wire.decode_reports(message)]
        if len(reports) != 1:
            raise errors.ShapeError(f"one report at a time is answered with weights, got {len(reports)}")
        [report] = reports
        with state.lock:
            last = state.report_ledger.last(report)
            if 1 <= report.seq <= last:
                return state.acknowledgement(report.caller.rank) + state.report_ledger.answer(report)
            state.report_ledger.check_follows(report, last)
            state.make_room(report)
            answer = state.apply(report, state.journal.append("reports", message))
            return state.acknowledgement(report.caller.rank) + answer

    @timed
    def report(self, *messages: bytes, num_behind: int = 0) -> bytes:
        """Apply reports, all of them or none; those applied before change nothing. Return an acknowledgement.

        Args:
            messages: packed reports of one rank, at least one.
            num_behind: reports that the rank has ready and will send once this is answered.

        Raises:
            As `observe` does.
        """
        state = self.state
        state.check_begun()
        reports = [state.checked(report) for message in messages for report in wire.decode_reports(message)]
        if not reports or any(report.caller != reports[0].caller for report in reports):
            raise errors.ShapeError("a call brings the reports of one rank, at least one")
        with state.lock:
            last = state.report_ledger.last(reports[0])
            new = [report for report in reports if not 1 <= report.seq <= last]
            for ahead, report in enumerate(new):
                state.report_ledger.check_follows(report, last + ahead)
            for report in new:
                state.make_room(report)
            if new:
                kept = messages if len(new) == len(reports) else map(wire.encode_report, new)
                number = state.journal.append("reports", b"".join(kept))
            for report in new:
                state.apply(report, number)
            state.queued[reports[0].caller.rank] = num_behind
            return state.acknowledgement(reports[0].caller.rank)

    # -- for the score server -----------------------------------------------------------------------------------------

    def begin(self, generation: str) -> None:
        """Take reports of this generation from now on, and of no earlier one."""
        self._run.check()
        with self.state.lock:
            self.state.report_ledger.begin(generation)
            self.state.overlaps.clear()
            self._part.forget()
            self.state.queued.clear()
        self.state.keep()

    def open_steps(self, steps: range) -> None:
        """Take reports of these run steps; none closes the epoch."""
        with self.state.lock:
            self.state.check_begun()
            self.state.report_ledger.open_steps(steps)
            self.state.overlaps.clear()
        self.state.keep()

    reduction = passed_to(_own_pending, Pending.reduction)
    answer = passed_to(_own_pending, Pending.answer)
    forget = passed_to(_own_pending, Pending.forget)

    check_begun = passed_to(_own_state, ShardState.check_begun)
    copy_records = passed_to(_own_part, SnapshotPart.copy_records)
    copy_part = passed_to(_own_part, SnapshotPart.copy_part)
    write_part = passed_to(_own_part, SnapshotPart.write_part)
    write_history = passed_to(_own_part, SnapshotPart.write_history)

    def num_samples(self) -> int:
        """Return n as far as this shard knows: where the table grows, one more than the highest id it has met."""
        self._run.check()
        return self.state.engine.num_samples

    def go_to_snapshot(self, finished_epochs: int) -> None:
        """Go back to the rows of this epoch's end; 0 forgets every observation."""
        self._run.check()
        self._part.end_history()
        self.state.load_rows(finished_epochs)
        number, storage = self.state.keep(go_to=finished_epochs), self._run.storage
        if finished_epochs == 0:
            with contextlib.suppress(errors.StorageError):  # there is no history of epoch 0 then
                if shard_journal.journal_at(storage, self._shard, 0) is None:  # the first records were dropped
                    storage.journal(self._shard).write_base(0, number - 1)

    def load_records(self, records: NDArray[np.void]) -> None:
        """Replace the rows by those of a checkpoint, which a snapshot has to hold next."""
        self._run.check()
        self._part.end_history()
        with self.state.lock:
            self.state.engine.load_records(records)
        self.state.keep(loading=True)

    def finish(self) -> None:
        """Write what is not written yet: the process is about to end (group `read`)."""
        if self._run.failure is None:
            with contextlib.suppress(errors.EsServiceError):  # another process has the run, or its storage is gone
                self.write_history(self._run.storage.snapshots.newest())  # a server may have died before it asked
            self.state.journal.close()

    def counts(self) -> dict[str, Any]:
        """Return what came in since this process began and what waits, the table's bytes, call times (group `read`)."""
        return {
            "num_reports": self.state.num_reports,
            "num_observed": self.state.num_observed,
            "num_selected": self.state.num_selected,
            "num_overlaps": self.state.overlaps.total,
            "num_queued": sum(self.state.queued.copy().values()),
            "num_undurable": self.state.journal.last - self.state.journal.durable,
            "table_bytes": self.state.engine.table.nbytes,
            "calls": self._times.to_dict(),
        }

    def storage_failure(self) -> str | None:
        """Return why the storage cannot be written at the moment, None while it can (group `read`)."""
        return None if self.state.journal.failure is None else str(self.state.journal.failure)

    def pid(self) -> int:
        """Return the id of the process it lives in (group `read`)."""
        return os.getpid()
