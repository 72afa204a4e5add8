"""A shard's part of a snapshot, and of the history: copies of its rows, written while reports come in."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import history_builder
from es_service.actors.call_times import timed
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_state import ShardState

__all__ = ["SnapshotPart"]

_BREATH_S = 1e-4
_STRETCH = 1 << 15  # rows that are copied while reports wait: a megabyte, a quarter of a millisecond


@dataclasses.dataclass(slots=True)
class _Copy:
    """What a shard keeps for a snapshot that is to be written."""

    finished_epochs: int
    number: int  # of the last record of the journal that it holds
    note: dict[str, Any]  # for the manifest
    records: NDArray[np.void] | None  # until they are written


class SnapshotPart:
    """See the module's text."""

    def __init__(self, run: ServedRun, state: ShardState) -> None:
        self._run, self._state, self._times = run, state, state.times
        self._copy: _Copy | None = None
        self._writing_history = threading.Lock()
        self._has_history = True  # the journal's reports are those of the table

    @timed
    def copy_records(self, num_samples: int) -> NDArray[np.void]:
        """Return a copy of the rows of ids below `num_samples` (group `read`).

        Each row as it is when its turn comes: reports are applied between one stretch of rows and the next.
        """
        self._run.check()
        state = self._state
        with state.lock:
            state.engine.grow_to(num_samples)
        table, num_rows = state.engine.table, state.shard.num_rows(num_samples)
        records = np.empty(num_rows, dtype=table.dtype)
        for start in range(0, num_rows, _STRETCH):
            with state.lock:
                table.copy_rows(records, start, min(start + _STRETCH, num_rows))
            if num_rows > _STRETCH:
                time.sleep(_BREATH_S)  # else this thread would take the lock again at once
        return records

    @timed
    def copy_part(self, finished_epochs: int, num_samples: int) -> None:
        """Keep a copy of the rows of ids below `num_samples` for `write_part`; no reports may come in meanwhile."""
        self._state.check_begun()
        self._copy = None  # one that was never written would be as large
        number, note = self._state.marked()
        self._copy = _Copy(finished_epochs, number, note, self.copy_records(num_samples))
        self._has_history = True

    def forget(self) -> None:
        """Drop the copy: a new generation begins."""
        self._copy = None

    @timed
    def write_part(self, beside: str, finished_epochs: int) -> dict[str, dict[str, Any]]:
        """Write what `copy_part` kept into a snapshot under way; return its entry in the manifest (group `write`).

        Raises:
            StorageError: it cannot be written.
            ServerRestartedError: the copy went down with a process.
        """
        self._run.check()
        copy, shard = self._copy, self._state.shard
        if copy is None or copy.finished_epochs != finished_epochs or copy.records is None:
            raise errors.ServerRestartedError(
                f"shard {shard.index} has no copy of the end of epoch {finished_epochs - 1}: it restarted since"
            )
        records, copy.records = copy.records, None
        return self._run.storage.snapshots.write_part(beside, records, shard, copy.note)

    def write_history(self, finished_epochs: int) -> None:
        """Make history of what the journal has up to a snapshot that is in place, and drop what is not needed any more.

        No history where the rows went elsewhere since: a server that is gone may have asked for it before that. Group
        `write`.
        """
        self._run.check()
        if self._copy is not None and self._copy.finished_epochs == finished_epochs:
            self._state.journal.skip_to(self._copy.number)  # the table does not need what comes before
        with self._writing_history:
            if self._has_history:
                signals = self._run.config.selection.signals
                history_builder.write_history(
                    self._run.storage, self._state.shard, signals, finished_epochs, self._run.check_write
                )

    def end_history(self) -> None:
        """Return once no history is being written; none will be before the next copy for a snapshot."""
        with self._writing_history:
            self._has_history = False
