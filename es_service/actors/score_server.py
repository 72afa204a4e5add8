"""The score server: the one owner of a run's table, as a plain class; `launch` makes a Ray actor of it.

Who waits for whom: ranks call `step` and `report` one at a time (Ray's default concurrency group); readers come in by
the group `read`, on threads of their own. Both meet at one lock, held for the length of a step or of a copy.

A call that returns has been applied. A call that raises has changed nothing. A call whose answer got lost may have
been applied: send the same seq again, which is then answered without being applied twice. Callers retry, not Ray.

What is durable is the state at the end of the last finished epoch, in the run's storage. A restarted server starts
from there; ranks that had joined get ServerRestartedError and join again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.selection import observations
from es_service.selection.scorekeeper import Caller, RunState, Scorekeeper, Share
from es_service.selection.table import arrow_to_records, records_to_arrow
from es_service.storage import runs, snapshots

__all__ = ["ScoreServer"]

Lease: TypeAlias = tuple[Share, dict[str, NDArray[Any]]]


class ScoreServer:
    """See the module's text.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.
        config: `runs.config_to_dict` of the run.

    A constructor that raised would kill a restarting actor for good, so a failure is kept and raised by every call.
    """

    def __init__(self, storage: str, run: str, config: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._place = storage
        self._failure: errors.EsServiceError | None = None
        self._seqs: dict[int, tuple[int, bytes]] = {}
        self._num_rewinds = 0  # done in this attempt
        self._rewinds: dict[int, int] = {}  # of those, how many each rank has asked for
        self._progress: dict[str, Any] = {}
        self._num_reports = self._num_observed = self._num_selected = 0
        try:
            self._storage = runs.RunStorage(storage, run)
            self._config = runs.config_from_dict(config)
            self._storage.begin(self._config)
            self._keeper = Scorekeeper(self._config)
            state = self._storage.last_snapshot()
            if state is not None:
                self._keeper.restore(state)
            self._joined = False
        except errors.EsServiceError as error:
            self._failure = error

    def ping(self) -> None:
        """Do nothing: the price of a call."""

    def identity(self) -> tuple[errors.EsServiceError | None, str]:
        """Return why this server cannot work, None if it can, and where it keeps its runs (group `read`)."""
        return self._failure, self._place

    def join(self, rank: int, attempt: str, world_size: int, config: dict[str, Any]) -> tuple[int, int]:
        """Enter the run, or enter it again; a new attempt first takes the table back to the last finished epoch.

        Returns:
            The seq of this rank's last report in this attempt, and how many rewinds it has asked for; it counts on.

        Raises:
            RunMismatchError: the caller's config is not the run's.
            ConfigError, EpochOrderError: see `Scorekeeper.join`.
        """
        self._ready()
        runs.check_same(self._storage.run, self._config, runs.config_from_dict(config))
        self._config.check_world(world_size, rank)
        with self._lock:
            if self._keeper.attempt != attempt:
                if self._keeper.open_epoch_number is not None:
                    self._go_to(self._storage.last_snapshot())
                self._seqs.clear()
                self._rewinds.clear()
                self._num_rewinds = 0
            self._keeper.join(Caller(rank, attempt), world_size)
            self._joined = True
            return self._seqs.setdefault(rank, (0, b""))[0], self._rewinds.setdefault(rank, 0)

    def open_epoch(self, rank: int, attempt: str, epoch: int) -> Lease | list[int]:
        """Open an epoch; return the rank's share and the columns it needs to draw, or the ranks still in the last one.

        Raises:
            EpochOrderError: see `Scorekeeper.open_epoch`.
        """
        self._ready(joined=True)
        with self._lock:
            caller = Caller(rank, attempt)
            share = self._keeper.open_epoch(caller, epoch)
            return share if isinstance(share, list) else (share, self._keeper.lease(caller))

    def step(self, message: bytes) -> bytes:
        """Apply one report and draw from it; return the packed draw. The last report, repeated, gets its answer again.

        Raises:
            ShapeError, IdError, LossError: the report cannot be used.
            EpochOrderError: a report is missing before it, or its rank is superseded or has no epoch open.
        """
        self._ready(joined=True)
        reports = list(wire.decode_reports(message))
        if len(reports) != 1 or reports[0].positions is not None or reports[0].seen is None:
            raise errors.ShapeError(f"a step is one observation that leaves the draw to the server, got {len(reports)}")
        report = self._checked(reports[0])
        with self._lock:
            last, answer = self._last(report)
            if report.seq == last > 0:
                return answer
            self._follows(report, last)
            assert report.seen is not None
            draw = self._keeper.step(report.caller, report.ids, report.seen, report.num, report.run_step)
            answer = wire.encode_draw(draw)
            self._applied(report, answer, draw.positions.size)
            return answer

    def report(self, message: bytes) -> int:
        """Apply reports that their rank drew itself, all of them or none; those applied before change nothing.

        Returns:
            The last report's seq.

        Raises:
            As `step` does.
        """
        self._ready(joined=True)
        reports = [self._checked(report) for report in wire.decode_reports(message)]
        if not reports or any(report.positions is None or report.caller != reports[0].caller for report in reports):
            raise errors.ShapeError("a background message is one rank's reports, each with the positions it drew")
        with self._lock:
            last = self._last(reports[0])[0]
            new = [report for report in reports if not 1 <= report.seq <= last]
            for ahead, report in enumerate(new):
                self._keeper.check_open(report.caller)
                self._follows(report, last + ahead)
            for report in new:
                assert report.positions is not None
                self._keeper.record(report.caller, report.ids, report.seen, report.positions, report.run_step)
                self._applied(report, b"", report.positions.size)
        return reports[-1].seq

    def close_epoch(self, rank: int, attempt: str, epoch: int) -> bool:
        """Close an epoch for one rank; the last one writes the snapshot, and gets True once it is on storage.

        Raises:
            StorageError: the snapshot could not be written; the epoch is finished all the same.
        """
        self._ready(joined=True)
        with self._lock:
            if not self._keeper.close_epoch(Caller(rank, attempt), epoch):
                return False
            state = self._keeper.state()
        self._storage.write_snapshot(state)
        return True

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
        self._ready(joined=True)
        with self._lock:
            self._keeper.check(Caller(rank, attempt))
            if ordinal > self._num_rewinds + 1:
                raise errors.EpochOrderError(
                    f"rank {rank} asks for rewind {ordinal} of this attempt, but {self._num_rewinds} were asked for "
                    "before: every rank must load or reset as often as the others"
                )
            if ordinal <= self._num_rewinds:
                self._rewinds[rank] = ordinal
                return True
            state = self._find_state(finished_epochs, starts, sha256, table)
            if state is None and finished_epochs > 0:
                return False
            self._go_to(state)
            if table is None:
                self._storage.forget_after(finished_epochs)
            elif state is not None:
                self._storage.write_snapshot(state)
            self._num_rewinds = self._rewinds[rank] = ordinal
            return True

    def state(self) -> tuple[bytes, int, tuple[int, ...]]:
        """Return (table as an Arrow IPC file, epochs finished, epoch starts), for a checkpoint.

        Raises:
            EpochOrderError: an epoch is open; what is in the table then is no state to continue from.
        """
        self._ready()
        with self._lock:
            if self._keeper.open_epoch_number is not None:
                raise errors.EpochOrderError(
                    f"epoch {self._keeper.open_epoch_number} is open: take the state between two epochs, "
                    "when every rank has closed the last one"
                )
            state = self._keeper.state()
        return (
            snapshots.encode_table(records_to_arrow(state.records)),
            state.finished_epochs,
            state.epoch_starts,
        )

    def snapshot(self) -> pa.Table:
        """Return a copy of the table as it is now (group `read`)."""
        self._ready()
        with self._lock:
            records = self._keeper.engine.table.copy_records()
        return records_to_arrow(records)

    def stats(self) -> dict[str, Any]:
        """Return where the run stands, as plain values (group `read`)."""
        self._ready()
        return {
            "run": self._storage.run,
            "storage": self._place,
            "config": runs.config_to_dict(self._config),
            "finished_epochs": self._keeper.finished_epochs,
            "open_epoch": self._keeper.open_epoch_number,
            "world_size": self._keeper.world_size,
            "num_reports": self._num_reports,
            "num_observed": self._num_observed,
            "num_selected": self._num_selected,
            "table_bytes": self._keeper.engine.table.nbytes,
            "pid": os.getpid(),
            "progress": self._progress,
        }

    def publish(self, progress: dict[str, Any]) -> None:
        """Keep what a training last said of itself (accuracy, ledger), for `stats` to show."""
        self._progress = progress

    def _ready(self, *, joined: bool = False) -> None:
        if self._failure is not None:
            raise self._failure
        if joined and not self._joined:
            raise errors.ServerRestartedError(
                f"the score server of run {self._storage.run!r} restarted and stands at the end of epoch "
                f"{self._keeper.finished_epochs}: connect again and continue from the checkpoint of that epoch"
            )

    def _checked(self, report: wire.Report) -> wire.Report:
        """Return the report with arrays that can be written, or raise what is wrong with them."""
        ids, seen, positions = report.ids, report.seen, report.positions
        if not self._keeper.is_planned(report.caller, ids, report.run_step):
            ids = observations.check_ids(ids, self._config.num_samples)
        if seen is not None:
            selection = self._config.selection
            seen = observations.check_signals(seen, ids.size, selection.signals, non_negative=selection.non_negative)
        if positions is not None and (np.diff(positions) <= 0).any():
            raise errors.ShapeError("positions drawn must ascend: one of them stands twice or out of order")
        if positions is None and not 1 <= report.num <= ids.size:
            raise errors.ShapeError(f"cannot draw {report.num} of {ids.size}")
        return dataclasses.replace(report, ids=ids, seen=seen)

    def _last(self, report: wire.Report) -> tuple[int, bytes]:
        """Return the seq and the answer of the last report of this rank."""
        self._keeper.check(report.caller)
        if report.caller.rank not in self._seqs:
            raise errors.EpochOrderError(f"rank {report.caller.rank} reports without having joined")
        return self._seqs[report.caller.rank]

    def _follows(self, report: wire.Report, last: int) -> None:
        if report.seq != last + 1:
            raise errors.EpochOrderError(
                f"rank {report.caller.rank} sent report {report.seq} after {last}: reports go up by one"
            )

    def _applied(self, report: wire.Report, answer: bytes, num_selected: int) -> None:
        self._seqs[report.caller.rank] = (report.seq, answer)
        self._num_reports += 1
        self._num_observed += 0 if report.seen is None else report.ids.size
        self._num_selected += num_selected

    def _find_state(
        self, finished_epochs: int, starts: tuple[int, ...], sha256: str, table: bytes | None
    ) -> RunState | None:
        if finished_epochs == 0:
            return None
        if table is None:
            try:
                return self._storage.snapshot_with(finished_epochs, sha256)
            except errors.StorageError:  # a damaged one: the caller has the table
                return None
        if hashlib.sha256(table).hexdigest() != sha256:
            raise errors.StorageError("the table in the checkpoint is damaged: its sha256 is not the one noted there")
        decoded = snapshots.decode_table(table, "the table in the checkpoint")
        return RunState(arrow_to_records(decoded, self._config.num_samples), finished_epochs, tuple(starts))

    def _go_to(self, state: RunState | None) -> None:
        if state is None:
            self._keeper.reset()
        else:
            self._keeper.restore(state)
