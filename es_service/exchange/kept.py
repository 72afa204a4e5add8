"""What a run without a score server keeps on storage: at each epoch's end a snapshot, and the epoch's history.

Memory holds the reports of the open epoch, and no more: of an epoch with more than `history.most_rows` there
is no history; that is logged.
"""

from __future__ import annotations

import logging

from es_service import errors
from es_service.actors.history_builder import history_of, num_rows_of
from es_service.actors.wire import Report
from es_service.exchange.base import I64
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

    def finish_epoch(self, state: RunState) -> None:
        """Write the snapshot of an epoch's end, and the epoch's history.

        Nothing needs the history: where it alone cannot be written, that is logged.

        Raises:
            StorageError: the snapshot cannot be written.
        """
        try:
            self._storage.write_snapshot(state)
        finally:
            self._write_history(state.finished_epochs - 1)

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
        self._is_whole = not inside
        self._storage.forget_after(state.finished_epochs, state.records)

    def _forget(self) -> None:
        self._reports, self._num_rows, self._is_whole = [], 0, True
