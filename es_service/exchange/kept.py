"""What a run without a score server keeps on storage: at each epoch's end a snapshot, the epoch's history, its ledger.

Memory holds the reports of the open epoch, and no more: of an epoch with more than `history.most_rows` there
is no history; that is logged.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from es_service import errors
from es_service.actors.history_builder import history_of, num_rows_of
from es_service.actors.wire import Report
from es_service.exchange.base import I64
from es_service.ledger import Ledger
from es_service.selection.methods.base import Columns
from es_service.selection.run import Caller, RunConfig, RunState
from es_service.selection.shards import WHOLE
from es_service.storage.history import most_rows
from es_service.storage.runs import RunStorage

__all__ = ["KeptRun"]

_log = logging.getLogger(__name__)


class KeptRun:
    """See the module's text. One process has it for all ranks of the run.

    Args:
        storage: of the run.
        config: of the run.
    """

    def __init__(self, storage: RunStorage, config: RunConfig) -> None:
        self._storage, self._signals, self._most_rows = storage, config.selection.signals, most_rows(config.end_of_ids)
        self.progress = storage.progress
        self._ledgers: list[Ledger] = []  # of all ranks, at the end of the epoch that was closed last
        self._closed: int | None = None  # that epoch
        self._decision: Mapping[str, Any] | None = None  # and what decided it
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        self._writing: concurrent.futures.Future[None] | None = None
        self._reports: list[Report] = []
        self._num_rows = 0
        self._is_whole = True  # nothing of the open epoch is missing

    def add(self, caller: Caller, run_step: int, ids_B: I64, seen: Columns | None, selected_b: I64) -> None:
        """Keep copies of what a rank has observed and trained on."""
        kept = None if seen is None else {name: values_B.copy() for name, values_B in seen.items()}
        observed = ids_B.copy() if seen is not None else ids_B[:0]
        report = Report(caller, len(self._reports) + 1, run_step, observed, kept, selected_b.copy())
        self._num_rows += num_rows_of(report)
        if self._num_rows > self._most_rows:
            self._reports, self._is_whole = [], False
        if self._is_whole:
            self._reports.append(report)

    def finish_epoch(self, state: RunState, ledgers: Sequence[Ledger]) -> None:
        """Write the snapshot of an epoch's end, the epoch's history, and the run's ledger: merged from those of ranks.

        Nothing needs the latter two: where they alone cannot be written, that is logged.

        Raises:
            StorageError: the snapshot cannot be written.
        """
        try:
            self._storage.write_snapshot(state)
        finally:
            epoch = self._closed = state.finished_epochs - 1
            self._ledgers = list(ledgers)
            self._decision = state.past.decision_of(epoch)
            self.progress.finish(epoch, ledgers, self._decision)
            self.progress.write()
            self._write_history(epoch)

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """Keep what was measured in an epoch."""
        self.progress.log(epoch, measured)
        self.progress.write()

    def publish(self, epoch: int, done: float, ledger: Ledger, world_size: int) -> None:
        """Take how far rank 0 is; it is written in the background, unless the last one still is."""
        if epoch == self._closed:
            self.progress.finish(epoch, [ledger, *self._ledgers[1:]], self._decision)
        else:
            self.progress.show(epoch, done, ledger, world_size)
        if self._writing is not None and not self._writing.done():
            return
        if self._writer is None:
            self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="es-service-progress")
        self._writing = self._writer.submit(self.progress.write)

    def close(self) -> None:
        """Return once nothing is being written."""
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _write_history(self, epoch: int) -> None:
        reports, is_whole, num_rows = self._reports, self._is_whole, self._num_rows
        self._forget()
        if not is_whole:
            more = f"it has more than {self._most_rows} observations and picks"
            _log.warning(
                "no history of epoch %d: %s",
                epoch,
                more if num_rows > self._most_rows else "it was continued in its middle",
            )
            return
        try:
            self._storage.history.write(epoch, WHOLE, history_of(reports, self._signals))
        except errors.StorageError as error:
            _log.warning("no history of epoch %d: %s", epoch, error)

    def go_to(self, state: RunState, *, inside: bool = False) -> None:
        """Drop from storage what is later than this state: the run continues from it.

        Args:
            state: of the end of an epoch.
            inside: the next epoch is open and partly done; there will be no history of it.

        Raises:
            StorageError: the storage cannot be written.
        """
        self._forget()
        self._is_whole, self._closed = not inside, None
        self._storage.forget_after(state.finished_epochs, state.records)

    def _forget(self) -> None:
        self._reports, self._num_rows, self._is_whole = [], 0, True
