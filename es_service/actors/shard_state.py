"""The state of a shard, which its journal restores: its rows, and which reports it has of each rank.

Where a method's docstring requires it, callers hold `lock`; other methods take it, for a step at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import shard_journal, wire
from es_service.actors.call_times import CallTimes
from es_service.actors.overlaps import Overlaps
from es_service.actors.report_ledger import ReportLedger
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_journal import Journaled
from es_service.selection import observations
from es_service.selection.engine import Engine
from es_service.selection.shards import Shard
from es_service.storage.journal import Journal
from es_service.storage.segments import Record

__all__ = ["ShardState"]

I64 = NDArray[np.int64]


class ShardState:
    """See the module's text."""

    kinds = ("reports", "state")

    def __init__(self, run: ServedRun, shard: Shard) -> None:
        self.lock = threading.Lock()
        self.times = CallTimes()  # of the shard's calls
        self.shard = shard
        self.report_ledger = ReportLedger(self._restarted)
        self.overlaps = Overlaps()
        self.queued: dict[int, int] = {}  # unsent reports of each rank, as of its last message
        self.num_reports = self.num_observed = self.num_selected = 0
        self._run = run

    def start(self, *also: Journaled) -> None:
        """Take the shard's journal over, which keeps these too, and go to where it ends; raises as `recover` does."""
        storage, config = self._run.storage, self._run.config
        storage.claim_journal(self.shard)
        self.engine = Engine(config.selection, config.num_samples, self.shard, grows=config.grows)
        self._journaled = (self, *also)
        last, whole = shard_journal.recover(storage, self.shard, self._journaled)
        if not whole:
            self.report_ledger.begin(None)
        self.journal = Journal(storage.journal(self.shard), last, allowed=self._run.check_write)

    # -- as the journal has it -----------------------------------------------------------------------------------------

    def load(self, finished_epochs: int, note: dict[str, Any]) -> None:
        """See `Journaled.load`."""
        self.load_rows(finished_epochs)
        if "intake" in note:
            self.report_ledger.take_up(note["intake"])
        else:
            self.report_ledger.begin(None)

    def load_rows(self, finished_epochs: int) -> None:
        """Take the rows of a snapshot; 0 forgets every observation."""
        state = None
        if finished_epochs:
            state = self._run.storage.snapshots.read(finished_epochs, self.shard, self._run.config.end_of_ids)
        with self.lock:
            if state is None:
                self.engine.clear()
            else:
                self.engine.load_records(state.records)

    def replay(self, record: Record) -> None:
        """See `Journaled.replay`."""
        if record.kind == "reports":
            try:
                for report in wire.decode_reports(record.payload):
                    self.apply(self.make_room(self.checked(report)), record.number)
            except (errors.InputError, KeyError) as error:
                raise errors.StorageError(
                    f"record {record.number} of the journal cannot be applied: {error}"
                ) from error
        else:
            values = shard_journal.from_json(record.payload)
            if "go_to" in values:
                self.load_rows(values["go_to"])
            self.report_ledger.take_up(values)
            if values.get("loading"):
                self.report_ledger.begin(None)

    def note(self) -> dict[str, Any]:
        """See `Journaled.note`."""
        return {"intake": self.report_ledger.to_dict()}

    def marked(self) -> tuple[int, dict[str, Any]]:
        """Return the number of the journal's last record, and what a snapshot of now has to note."""
        with self.lock:
            number = self.journal.mark()
            note: dict[str, Any] = {"journal": number}
            for part in self._journaled:
                note |= part.note()
        return number, note

    def keep(self, **more: Any) -> int:
        """Write who may report what to the journal, as `write` does; return the number of its record."""
        with self.lock:
            number = self.journal.append("state", shard_journal.to_json({**self.report_ledger.to_dict(), **more}))
        self._flush()
        return number

    def write(self, *records: tuple[str, bytes]) -> None:
        """Write records of these kinds to the journal; they are on storage when this returns, if it can be written.

        Where it cannot, training continues; acknowledgements and `stats` report it.
        """
        with self.lock:
            for kind, payload in records:
                self.journal.append(kind, payload)
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(errors.StorageError):
            self.journal.flush()

    # -- reports -------------------------------------------------------------------------------------------------------

    def checked(self, report: wire.Report) -> wire.Report:
        """Return the report with checked arrays; InputError where they are wrong."""
        ids, seen, selected = report.ids, report.seen, report.selected
        if seen is not None:
            selection = self._run.config.selection
            ids = self.check_ids(ids)
            seen = observations.check_signals(seen, ids.size, selection.signals, non_negative=selection.non_negative)
        elif ids.size:
            raise errors.ShapeError(f"a report of {ids.size} ids without a signal")
        if selected.size:
            selected = self.check_ids(selected)
        return dataclasses.replace(report, ids=ids, seen=seen, selected=selected)

    def check_ids(self, ids: I64) -> I64:
        """Return the ids; IdError where one is not of this shard, or repeated."""
        ids = observations.check_ids(ids, self._run.config.end_of_ids)
        if self.shard.count > 1 and (foreign := ids % self.shard.count != self.shard.index).any():
            position = int(np.argmax(foreign))
            raise errors.IdError(
                f"id {ids[position]} at position {position} is none of shard {self.shard.index} of {self.shard.count}"
            )
        return ids

    def make_room(self, report: wire.Report) -> wire.Report:
        """Return the report once the table has rows for its ids, see `Engine.make_room`; under `lock`."""
        for ids in (report.ids, report.selected):
            if ids.size:
                self.engine.make_room(ids)
        return report

    def apply(self, report: wire.Report, number: int) -> bytes:
        """Take a report with this number in the journal; return the packed weights; under `lock`."""
        weights = self.engine.record(report.ids, report.seen, report.selected, report.run_step)
        self.overlaps.reported(report.caller.rank, report.run_step)
        answer = wire.encode_weights(weights)
        self.report_ledger.applied(report, answer, number)
        self.num_reports += 1
        self.num_observed += report.ids.size
        self.num_selected += report.selected.size
        return answer

    def acknowledgement(self, rank: int) -> bytes:
        """Return the acknowledgement of a rank's reports; under `lock`."""
        durable = self.report_ledger.durable(rank, self.journal.durable)
        return wire.encode_acknowledgement(
            wire.Acknowledgement(self.report_ledger.seq(rank), durable, self.journal.failure is not None)
        )

    def check_begun(self) -> None:
        """Raise ServerRestartedError where this shard restarted since the current generation began."""
        self._run.check()
        self.report_ledger.check_begun()

    def _restarted(self) -> errors.ServerRestartedError:
        return errors.ServerRestartedError(
            f"shard {self.shard.index} of run {self._run.storage.run!r} restarted and stands at the end of epoch "
            f"{self._run.storage.snapshots.newest()}: connect again and continue from the checkpoint of that epoch"
        )
