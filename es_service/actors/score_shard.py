"""A shard: the owner of some rows of a run's table, as a plain class. The score server is the first of them.

Who waits for whom: ranks call `observe`, `report` and `lease` one at a time (Ray's default concurrency group); readers
come in by the group `read`, on threads of their own. Both meet at one lock, held for the length of a step or of a copy.
Snapshots are written by the group `write`, from a copy: they meet nobody.

A call that returns has been applied. A call that raises has changed nothing. A call whose answer got lost may have
been applied: send the same seq again, which is then answered without being applied twice. Callers retry, not Ray.

Reports are taken from the current attempt, for steps of the open epoch; which those are the score server says, by
`begin` and `open_steps`. What it takes it writes to a journal, about a second later, and says with every answer how
far that is. A shard that restarts stands where its journal ends (see `shard_journal`); ranks send again what came
after. Where the journal cannot be read it stands at the end of an epoch, and takes no reports before a new attempt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import chronicle, shard_journal, wire
from es_service.actors.call_times import CallTimes, timed
from es_service.actors.intake import Intake
from es_service.actors.overlaps import Overlaps
from es_service.actors.talks import Talks
from es_service.selection import observations, queries
from es_service.selection.agreement import Agreed
from es_service.selection.engine import Engine
from es_service.selection.plans import Plan
from es_service.selection.run import RunConfig
from es_service.selection.shards import Shard
from es_service.storage import runs
from es_service.storage.journal import Journal
from es_service.storage.segments import Record

__all__ = ["ScoreShard"]

I64 = NDArray[np.int64]
_BREATH_S = 1e-4
_STRETCH = 1 << 15  # rows that are copied while reports wait: a megabyte, a quarter of a millisecond


@dataclasses.dataclass(slots=True)
class _Copy:
    """What a shard keeps for a snapshot that is to be written.

    Attributes:
        finished_epochs: of the snapshot.
        number: of the last record of the journal that it holds.
        note: for the manifest.
        records: of the shard, until they are written.
    """

    finished_epochs: int
    number: int
    note: dict[str, Any]
    records: NDArray[np.void] | None


class ScoreShard:
    """See the module's text.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.
        config: `runs.config_to_dict` of the run.
        index: of the shard, in [0, count).
        count: S, how many shards there are.

    A constructor that raised would kill a restarting actor for good, so a failure is kept and raised by every call.
    """

    def __init__(self, storage: str, run: str, config: dict[str, Any], index: int = 0, count: int = 1) -> None:
        self._lock = threading.Lock()
        self._place = storage
        self._shard = Shard(index, count)
        self._failure: errors.EsServiceError | None = None
        self._intake = Intake(self._restarted)
        self._overlaps = Overlaps()
        self._times = CallTimes()
        self._talks = Talks()
        self._queued: dict[int, int] = {}  # reports that ranks hold back, as each said with its last message
        self._num_reports = self._num_observed = self._num_selected = 0
        self._copy: _Copy | None = None
        self._writing_history = threading.Lock()
        self._has_history = True  # its journal's reports are those of its table
        try:
            self._storage = runs.RunStorage(storage, run)
            self._config = described = runs.config_from_dict(config)
            self._begin_run(described)
            self._storage.claim_journal(self._shard)
            self._engine = Engine(described.selection, described.num_samples, self._shard, grows=described.grows)
            last, whole = shard_journal.recover(self._storage, self._shard, self._load, self._replay)
            if not whole:
                self._intake.begin(None)
            self._journal = Journal(self._storage.journal(self._shard), last, allowed=self._may_write)
        except errors.EsServiceError as error:
            self._failure = error

    def _begin_run(self, config: RunConfig) -> None:
        """Nothing to do: the score server has begun the run."""

    def _may_write(self) -> None:
        """Raise StorageError where the run is not there any more: what was deleted is not to be made again in part."""
        if not self._storage.exists():
            raise self._gone()

    def _gone(self) -> errors.StorageError:
        return errors.StorageError(
            f"the run's folder {self._storage.path} is gone, or its run.json: it was deleted or moved while the run is "
            "trained. Put it back, or stop the run's score server (es_service.actors.launch.stop) and start again from "
            "a checkpoint"
        )

    # -- where the journal left it -------------------------------------------------------------------------------------

    def _load(self, finished_epochs: int, note: dict[str, Any]) -> None:
        """Take up a snapshot and what was noted with it; an empty table for 0."""
        self._load_rows(finished_epochs)
        if "intake" in note:
            self._intake.take_up(note["intake"])
        else:
            self._intake.begin(None)

    def _load_rows(self, finished_epochs: int) -> None:
        state = None
        if finished_epochs:
            state = self._storage.snapshots.read(finished_epochs, self._shard, self._config.end_of_ids)
        with self._lock:
            if state is None:
                self._engine.clear()
            else:
                self._engine.load_records(state.records)

    def _replay(self, record: Record) -> None:
        """Take up a record of the journal."""
        if record.kind == "reports":
            try:
                for report in wire.decode_reports(record.payload):
                    checked = self._checked(report)
                    self._make_room(checked)
                    self._apply(checked, record.number)
            except (errors.InputError, KeyError) as error:
                raise errors.StorageError(
                    f"record {record.number} of the journal cannot be applied: {error}"
                ) from error
        elif record.kind == "state":
            values = shard_journal.from_json(record.payload)
            if "go_to" in values:
                self._load_rows(values["go_to"])
            self._intake.take_up(values)
            if values.get("loading"):
                self._intake.begin(None)
        else:
            raise errors.StorageError(f"the journal holds a record of the unknown kind {record.kind!r}")

    def _keep_state(self, **more: Any) -> int:
        """Write who may report what to the journal; it is on storage when this returns, if it can be written.

        Returns:
            The number of its record.
        """
        with self._lock:
            number = self._journal.append("state", shard_journal.to_json({**self._intake.to_dict(), **more}))
        self._flush()
        return number

    def _flush(self) -> None:
        with contextlib.suppress(errors.StorageError):  # receipts and `stats` say so; training goes on
            self._journal.flush()

    def ping(self) -> None:
        """Do nothing: the price of a call."""

    def identity(self) -> tuple[errors.EsServiceError | None, str, int]:
        """Return why this shard cannot work, None if it can; where it keeps its runs; and S (group `read`)."""
        return self._failure, self._place, self._shard.count

    # -- for ranks ----------------------------------------------------------------------------------------------------

    def enter(self, rank: int, attempt: str) -> int:
        """Return the seq of this rank's last report here, 0 before the first; it counts on."""
        self._check_restart()
        with self._lock:
            is_new = not self._intake.has(rank)
            seq = self._intake.enter(rank, attempt)
        if is_new:
            self._keep_state()
        return seq

    def settle(self, rank: int, attempt: str, seq: int) -> bytes:
        """Return a receipt once this rank's reports up to `seq` are on storage.

        Raises:
            ServerRestartedError: some of them went down with a process; they have to be sent again.
            StorageError: they are here, but cannot be written at the moment.
        """
        self.check_reports(rank, attempt, seq)
        self._journal.flush()
        with self._lock:
            return self._receipt(rank)

    def check_reports(self, rank: int, attempt: str, seq: int) -> None:
        """Raise ServerRestartedError unless this rank's reports up to `seq` are here."""
        self._check_restart()
        with self._lock:
            self._intake.check(rank, attempt)
            self._intake.check_has(rank, seq)

    def _receipt(self, rank: int) -> bytes:
        durable = self._intake.durable(rank, self._journal.durable)
        return wire.encode_receipt(wire.Receipt(self._intake.seq(rank), durable, self._journal.failure is not None))

    @timed
    def lease(self, rank: int, attempt: str, ids_m: I64, run_step: int) -> dict[str, NDArray[Any]]:
        """Return copies of the columns that a rank needs to draw on its own, [m] each, see `Engine.lease`.

        Raises:
            ServerRestartedError: the epoch that begins with `run_step` is not open here, so that rows may be older.
        """
        self._check_restart()
        with self._lock:
            self._intake.check(rank, attempt)
            self._intake.check_open(run_step)
            return self._engine.lease(self._check_ids(ids_m))

    @timed
    def fetch(self, message: bytes) -> bytes:
        """Return the packed rows of ids that the rank will observe next, and note that it does.

        Rows are read behind every report that this rank sent before; the answer says up to which.

        Raises:
            ServerRestartedError: the epoch of this step is not open here, so that rows may be older.
        """
        self._check_restart()
        caller, run_step, ids_B = wire.decode_request(message)
        ids_B = self._check_ids(ids_B)
        with self._lock:
            self._intake.check(caller.rank, caller.attempt)
            self._intake.check_open(run_step)
            self._engine.make_room(ids_B)
            rows_B = self._shard.rows(ids_B)
            num_overlaps = self._overlaps.asked(rows_B, caller.rank, run_step, len(self._engine.table))
            return wire.encode_rows(self._intake.seq(caller.rank), num_overlaps, self._engine.lease(ids_B))

    @timed
    def observe(self, message: bytes) -> bytes:
        """Apply one report; return a receipt and the weights it gave. Repeated, one of the last step gets them again.

        Raises:
            ShapeError, IdError, LossError: the report cannot be used.
            ServerRestartedError: a report before it is missing.
            EpochOrderError: its rank is superseded or has no epoch open.
        """
        self._check_restart()
        reports = [self._checked(report) for report in wire.decode_reports(message)]
        if len(reports) != 1:
            raise errors.ShapeError(f"one report at a time is answered with weights, got {len(reports)}")
        [report] = reports
        with self._lock:
            last = self._intake.last(report)
            if 1 <= report.seq <= last:
                return self._receipt(report.caller.rank) + self._intake.answer(report)
            self._intake.check_follows(report, last)
            self._make_room(report)
            answer = self._apply(report, self._journal.append("reports", message))
            return self._receipt(report.caller.rank) + answer

    @timed
    def report(self, *messages: bytes, num_behind: int = 0) -> bytes:
        """Apply reports, all of them or none; those applied before change nothing. Return a receipt.

        Args:
            messages: packed reports of one rank, at least one.
            num_behind: reports that the rank has ready and will send once this is answered.

        Raises:
            As `observe` does.
        """
        self._check_restart()
        reports = [self._checked(report) for message in messages for report in wire.decode_reports(message)]
        if not reports or any(report.caller != reports[0].caller for report in reports):
            raise errors.ShapeError("a call brings the reports of one rank, at least one")
        with self._lock:
            last = self._intake.last(reports[0])
            new = [report for report in reports if not 1 <= report.seq <= last]
            for ahead, report in enumerate(new):
                self._intake.check_follows(report, last + ahead)
            for report in new:
                self._make_room(report)
            if new:
                whole = len(new) == len(reports)
                number = self._journal.append("reports", b"".join(messages if whole else map(wire.encode_report, new)))
            for report in new:
                self._apply(report, number)
            self._queued[reports[0].caller.rank] = num_behind
            return self._receipt(reports[0].caller.rank)

    def _checked(self, report: wire.Report) -> wire.Report:
        """Return the report with arrays that have been looked at, or raise what is wrong with them."""
        ids, seen, selected = report.ids, report.seen, report.selected
        if seen is not None:
            selection = self._config.selection
            ids = self._check_ids(ids)
            seen = observations.check_signals(seen, ids.size, selection.signals, non_negative=selection.non_negative)
        elif ids.size:
            raise errors.ShapeError(f"a report of {ids.size} ids without a signal")
        if selected.size:
            selected = self._check_ids(selected)
        return dataclasses.replace(report, ids=ids, seen=seen, selected=selected)

    def _check_ids(self, ids: I64) -> I64:
        """Return the ids; IdError where one is none of this shard's, or stands twice."""
        ids = observations.check_ids(ids, self._config.end_of_ids)
        if self._shard.count > 1 and (foreign := ids % self._shard.count != self._shard.index).any():
            position = int(np.argmax(foreign))
            raise errors.IdError(
                f"id {ids[position]} at position {position} is none of shard {self._shard.index} of {self._shard.count}"
            )
        return ids

    def _make_room(self, report: wire.Report) -> None:
        for ids in (report.ids, report.selected):
            if ids.size:
                self._engine.make_room(ids)

    def _apply(self, report: wire.Report, number: int) -> bytes:
        weights = self._engine.record(report.ids, report.seen, report.selected, report.run_step)
        self._overlaps.reported(report.caller.rank, report.run_step)
        answer = wire.encode_weights(weights)
        self._intake.applied(report, answer, number)
        self._num_reports += 1
        self._num_observed += report.ids.size
        self._num_selected += report.selected.size
        return answer

    # -- for the score server -----------------------------------------------------------------------------------------

    def begin(self, attempt: str) -> None:
        """Take reports of this attempt from now on, and of no earlier one."""
        self._ready()
        with self._lock:
            self._intake.begin(attempt)
            self._overlaps.clear()
            self._copy = None
            self._queued.clear()
        self._keep_state()

    def open_steps(self, steps: range) -> None:
        """Take reports of these run steps; none closes the epoch."""
        with self._lock:
            self._check_restart()
            self._intake.open_steps(steps)
            self._overlaps.clear()
        self._keep_state()

    def check_begun(self) -> None:
        """Raise ServerRestartedError where this shard restarted since the current attempt began."""
        self._check_restart()

    def talk(self, token: str, about: str, *args: Any) -> Any:
        """Begin to agree with the other shards on something; return what to ask them, or this shard's part of it.

        Args:
            token: names this talk, of which there may be several at a time.
            about: "plan", "top" or "distribution".
            args: of the generator of that name.
        """
        self._ready()
        generators: dict[str, Callable[..., Agreed[Any]]] = {
            "plan": self._plan,
            "top": functools.partial(queries.top, self._engine),
            "distribution": functools.partial(queries.distribution, self._engine),
        }
        with self._lock:
            self._talks.begin(token, generators[about](*args))
        return self.answer(token, None)

    @property
    def waiting_talks(self) -> int:
        """How many talks wait for what all shards said."""
        return len(self._talks)

    def forget(self, token: str) -> None:
        """Drop a talk that came to nothing."""
        with self._lock:
            self._talks.forget(token)

    def answer(self, token: str, answer: NDArray[Any] | None) -> Any:
        """Go on with what all shards said; return as `talk` does."""
        self._ready()
        with self._lock:
            return self._talks.answer(token, answer)

    def _plan(self, epoch: int, epoch_starts: tuple[int, ...]) -> Agreed[Plan]:
        self._check_restart()
        return self._engine.plan(epoch, self._config.num_epochs, epoch_starts)

    def num_samples(self) -> int:
        """Return n as far as this shard knows: where the table grows, one more than the highest id it has met."""
        self._ready()
        return self._engine.num_samples

    @timed
    def copy_records(self, num_samples: int) -> NDArray[np.void]:
        """Return a copy of the rows of ids below `num_samples` (group `read`).

        Each row as it is when its turn comes: reports go on between one stretch of rows and the next.
        """
        self._ready()
        with self._lock:
            self._engine.grow_to(num_samples)
        table, num_rows = self._engine.table, self._shard.num_rows(num_samples)
        records = np.empty(num_rows, dtype=table.dtype)
        for start in range(0, num_rows, _STRETCH):
            with self._lock:
                table.copy_rows(records, start, min(start + _STRETCH, num_rows))
            if num_rows > _STRETCH:
                time.sleep(_BREATH_S)  # a lock just released goes to whoever asks first, which would be this thread
        return records

    @timed
    def copy_part(self, finished_epochs: int, num_samples: int) -> None:
        """Keep a copy of the rows of ids below `num_samples` for `write_part`; no reports may come in meanwhile."""
        self._check_restart()
        self._copy = None  # one that was never written would be as large
        with self._lock:
            number = self._journal.mark()
            note = {"journal": number, **self._note()}
        self._copy = _Copy(finished_epochs, number, note, self.copy_records(num_samples))
        self._has_history = True

    @timed
    def write_part(self, beside: str, finished_epochs: int) -> dict[str, dict[str, Any]]:
        """Write what `copy_part` kept into a snapshot under way; return its entry in the manifest (group `write`).

        Raises:
            StorageError: it cannot be written.
            ServerRestartedError: the copy went down with a process.
        """
        self._ready()
        copy = self._copy
        if copy is None or copy.finished_epochs != finished_epochs or copy.records is None:
            raise errors.ServerRestartedError(
                f"shard {self._shard.index} has no copy of the end of epoch {finished_epochs - 1}: it restarted since"
            )
        records, copy.records = copy.records, None
        return self._storage.snapshots.write_part(beside, records, self._shard, copy.note)

    def _note(self) -> dict[str, Any]:
        """Return what is to stand in the manifest beside this shard's file."""
        return {"intake": self._intake.to_dict()}

    def snapshot_done(self, finished_epochs: int) -> None:
        """Hear that the snapshot is in place, and the journal up to it not needed for the table (group `write`)."""
        if self._copy is not None and self._copy.finished_epochs == finished_epochs:
            self._journal.skip_to(self._copy.number)

    def write_history(self, finished_epochs: int) -> None:
        """Make history of what the journal has up to a snapshot, and drop what nobody needs (group `write`).

        Nothing where the rows went elsewhere since: a server that is gone may have asked for it before that.
        """
        self._ready()
        with self._writing_history:
            if self._has_history:
                signals = self._config.selection.signals
                chronicle.write_history(self._storage, self._shard, signals, finished_epochs, self._may_write)

    def _end_history(self) -> None:
        """Return once no history is being written; none will be before the next copy for a snapshot."""
        with self._writing_history:
            self._has_history = False

    def go_to_snapshot(self, finished_epochs: int) -> None:
        """Go back to the rows of this epoch's end; 0 forgets every observation."""
        self._ready()
        self._end_history()
        self._load_rows(finished_epochs)
        number = self._keep_state(go_to=finished_epochs)
        if finished_epochs == 0:
            with contextlib.suppress(errors.StorageError):  # there is no history of epoch 0 then
                if shard_journal.journal_at(self._storage, self._shard, 0) is None:  # the first records were dropped
                    self._storage.journal(self._shard).write_base(0, number - 1)

    def load_records(self, records: NDArray[np.void]) -> None:
        """Replace the rows by those of a checkpoint, which a snapshot has to hold next."""
        self._ready()
        self._end_history()
        with self._lock:
            self._engine.load_records(records)
        self._keep_state(loading=True)

    def finish(self) -> None:
        """Write what is left to write: the process is about to be ended (group `read`)."""
        if self._failure is None:
            with contextlib.suppress(errors.EsServiceError):  # another process has the run, or its storage is gone
                self.write_history(self._storage.snapshots.newest())  # where a server went down before it asked for it
            self._journal.close()

    def counts(self) -> dict[str, Any]:
        """Return what came in since this process began and what waits, the table's bytes, call times (group `read`)."""
        return {
            "num_reports": self._num_reports,
            "num_observed": self._num_observed,
            "num_selected": self._num_selected,
            "num_overlaps": self._overlaps.total,
            "num_queued": sum(self._queued.copy().values()),
            "num_undurable": self._journal.last - self._journal.durable,
            "table_bytes": self._engine.table.nbytes,
            "calls": self._times.to_dict(),
        }

    def storage_failure(self) -> str | None:
        """Return why the storage cannot be written at the moment, None while it can (group `read`)."""
        return None if self._journal.failure is None else str(self._journal.failure)

    def pid(self) -> int:
        """Return the id of the process it lives in (group `read`)."""
        return os.getpid()

    def _ready(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_restart(self) -> None:
        self._ready()
        self._intake.check_begun()

    def _restarted(self) -> errors.ServerRestartedError:
        return errors.ServerRestartedError(
            f"shard {self._shard.index} of run {self._storage.run!r} restarted and stands at the end of epoch "
            f"{self._storage.snapshots.newest()}: connect again and continue from the checkpoint of that epoch"
        )
