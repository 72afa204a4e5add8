"""Snapshots written in the background: training continues while a table is written, which takes seconds.

Lifecycle of one     copied (every shard keeps a copy of its rows, all taken while no reports come in) → each shard's
                     part written → put into place → shards notified, which trim their journals →
                     history written; or, at any point, given up: the copies are let go
Who waits            `wait`, until it is in place or given up; `settle`, `close`, until the history is written too

One at a time. Until a snapshot is in place, a run that is recovered comes from the one before it and the journal.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from es_service import errors
from es_service.actors.calls import AwayError
from es_service.actors.shard_group import ShardGroup
from es_service.selection.past import Past
from es_service.storage.runs import RunStorage

__all__ = ["Copied", "SnapshotWriter"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """A snapshot whose rows the shards keep copies of.

    Attributes:
        epoch_starts: the run step at which each finished epoch, and the next one, begins.
        num_samples: rows of the whole table.
        past: of the run.
    """

    epoch_starts: tuple[int, ...]
    num_samples: int
    past: Past

    @property
    def finished_epochs(self) -> int:
        """Epochs that it has behind it."""
        return len(self.epoch_starts) - 1


class SnapshotWriter:
    """See the module's text. Its owner calls one method at a time, but for `failure`.

    Args:
        storage: of the run.
        shards: that have the rows.
        allowed: raises StorageError where this process may not write the run any more.
    """

    def __init__(self, storage: RunStorage, shards: ShardGroup, allowed: Callable[[], None]) -> None:
        self._storage, self._shards, self._allowed = storage, shards, allowed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="es-service-snapshot")
        self._placed: Future[None] | None = None
        self._told: Future[None] | None = None
        self._failure: errors.StorageError | None = None

    @property
    def failure(self) -> errors.StorageError | None:
        """Why the last snapshot could not be written; None where it was, or is under way."""
        return self._failure

    def copy(self, epoch_starts: tuple[int, ...], past: Past) -> Copied:
        """Let every shard take a copy of its rows; no reports may come in meanwhile.

        Raises:
            ServerError: a shard is away.
        """
        self.wait()
        copied = Copied(epoch_starts, self._shards.num_samples(), past)
        self._shards.all("copy_part", copied.finished_epochs, copied.num_samples)
        return copied

    def begin(self, copied: Copied) -> None:
        """Write what was copied, in the background; AwayError where `close` came first."""
        try:
            placed = self._placed = self._thread.submit(self._write, copied)
            self._told = self._thread.submit(self._tell, copied, placed)
        except RuntimeError as error:  # of an executor that was shut down
            raise AwayError("cannot begin a snapshot: the score server is ending; ask the next one") from error

    def write(self, epoch_starts: tuple[int, ...], past: Past) -> errors.EsServiceError | None:
        """Write the rows as they are now; return as `wait` does. Raises as `copy` does."""
        self.begin(self.copy(epoch_starts, past))
        return self.wait()

    def wait(self) -> errors.EsServiceError | None:
        """Return once no snapshot is being written: why the last one was given up, None where it is in place.

        The reason is StorageError where it could not be written, ServerError where a shard, and its copy with it, went
        down meanwhile. Only errors of this package are returned.
        """
        if self._placed is None:
            return None
        error = self._placed.exception()
        if error is not None and not isinstance(error, errors.EsServiceError):
            raise error
        return error and error.with_traceback(None)  # which would grow each time it is raised

    def settle(self) -> None:
        """Return once the last snapshot, and the history, is written or given up; drop its outcome.

        The run goes elsewhere, and what was written of where it was is to be dropped.
        """
        self.wait()
        if self._told is not None:
            self._told.exception()
        self._placed = self._told = self._failure = None

    def close(self) -> None:
        """Return once the last snapshot, and the history, is written or given up. It can start no other."""
        self._thread.shutdown()

    def _write(self, copied: Copied) -> None:
        finished = copied.finished_epochs
        try:
            self._allowed()
            beside = self._storage.begin_snapshot(finished)
            parts = self._shards.all("write_part", beside, finished)
            self._allowed()
            self._storage.finish_snapshot(beside, copied.epoch_starts, copied.num_samples, parts, copied.past)
        except MemoryError as error:
            self._failure = errors.StorageError("not enough memory to write a snapshot: use more shards")
            raise self._failure from error
        except errors.EsServiceError as error:
            _log.warning("no snapshot of the end of epoch %d: %s", finished - 1, error)
            if isinstance(error, errors.StorageError):
                self._failure = error
            raise
        self._failure = None

    def _tell(self, copied: Copied, placed: Future[None]) -> None:
        """Let the shards know of a snapshot that is in place."""
        if placed.exception() is None:
            try:
                self._shards.all("write_history", copied.finished_epochs)
            except errors.EsServiceError as error:
                _log.warning("a shard did not receive the snapshot of epoch %d: %s", copied.finished_epochs - 1, error)
