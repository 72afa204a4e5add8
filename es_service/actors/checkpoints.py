"""The states of a run that checkpoints hold: the one between two epochs, and the way back to an earlier one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors.epoch_state import EpochState
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_group import ShardGroup
from es_service.actors.snapshot_writer import SnapshotWriter
from es_service.selection.past import BEGINNING, Past
from es_service.selection.run import Caller, RunState
from es_service.selection.table import arrow_to_records, records_to_arrow
from es_service.storage import table_files

__all__ = ["Checkpoints"]

_log = logging.getLogger(__name__)
Encoded: TypeAlias = tuple[bytes, int, tuple[int, ...], Past]


class Checkpoints:
    """See the module's text; its arguments are those of `Coordinator`, and the writer of snapshots."""

    def __init__(self, run: ServedRun, shards: ShardGroup, epochs: EpochState, writer: SnapshotWriter) -> None:
        self._storage, self._config, self._shards, self._shard = run.storage, run.config, shards, shards.own
        self._epochs, self._membership, self._writer = epochs, epochs.membership, writer
        self._behind = shards.count > 1  # the other shards may stand elsewhere than the last snapshot

    def rewind(
        self,
        rank: int,
        generation: str,
        ordinal: int,
        finished_epochs: int,
        starts: tuple[int, ...],
        sha256: str,
        table: bytes | None,
        past: Past = BEGINNING,
    ) -> bool:
        """Go back to the state of a checkpoint; return False where its table has to be sent along.

        Args:
            rank: the caller's.
            generation: the caller's.
            ordinal: counts the generation's rewinds from 1; its first rank does each, for the others it is done.
            finished_epochs: of the state; 0 forgets everything.
            starts: epoch starts of the state.
            sha256: of the state's table as an Arrow IPC file.
            table: that file, or None to try with what the storage holds.
            past: of the state.

        Raises:
            StorageError: the table is damaged or of another size.
        """
        self._shard.check_begun()
        with self._epochs.lock:
            self._membership.check(Caller(rank, generation))
            self._writer.wait()
            if ordinal > self._epochs.num_rewinds + 1:
                raise errors.EpochOrderError(
                    f"rank {rank} asks for rewind {ordinal} of this generation, but {self._epochs.num_rewinds} were "
                    "requested before: every rank must load or reset as often as the others"
                )
            if ordinal <= self._epochs.num_rewinds:
                self._epochs.rewinds[rank] = ordinal
                self._epochs.outdated.discard(rank)
                self._shard.state.write(*self._epochs.records())
                return True
            if table is not None:
                state = self._decoded(finished_epochs, starts, past, sha256, table)
                self._writer.settle()
                self._membership.go_to(finished_epochs, starts, past)
                self._behind = self._shards.count > 1
                self._shards.load(state.records)
                self._storage.forget_after(finished_epochs, state.records)
                failure = self._writer.write(self._membership.epoch_starts, past)
                if failure is not None:
                    raise failure
                self._behind = False
            elif finished_epochs == 0 or self._storage.snapshots.holds(finished_epochs, sha256):
                self._go_to(finished_epochs, starts, past)
                self._storage.forget_after(finished_epochs)
            else:
                return False
            self._shards.all("open_steps", range(0))
            self._epochs.num_rewinds = self._epochs.rewinds[rank] = ordinal
            self._epochs.outdated = set(self._epochs.rewinds) - {rank}
            self._shard.state.write(*self._epochs.records())
            return True

    def state(self, finished_epochs: int | None = None) -> Encoded | list[int]:
        """Return (table as an Arrow IPC file, epochs finished, epoch starts, past), for a checkpoint (group `read`).

        Where another rank has opened the next epoch, the table is the snapshot of the end of the one before.

        Args:
            finished_epochs: that the caller has closed; None where it only looks.

        Returns:
            The state; or the ranks that have not closed the last of these epochs, to be asked for again.

        Raises:
            EpochOrderError: an epoch is open; the table is then not a state to continue from.
            StorageError: another rank is ahead, and the snapshot of the epoch's end cannot be read.
            ServerRestartedError: a shard restarted, and may have lost what the others have.
        """
        with self._epochs.lock:
            opened, finished = self._membership.open_epoch_number, self._membership.finished_epochs
            if finished_epochs is not None and finished_epochs > finished:
                return self._membership.not_closed(finished_epochs - 1)
            if opened is None and finished_epochs in (None, finished):
                return self._present_state()
            if not finished_epochs:
                raise errors.EpochOrderError(
                    f"epoch {opened} is open: take the state between two epochs, "
                    "when every rank has closed the last one"
                )
        return self._stored_state(finished_epochs)

    def _stored_state(self, finished_epochs: int) -> Encoded:
        self._writer.wait()
        try:
            state = self._storage.snapshots.read(finished_epochs)
        except errors.StorageError as error:
            raise errors.StorageError(
                f"a rank has opened epoch {finished_epochs}, and the snapshot of the end of epoch "
                f"{finished_epochs - 1} cannot be read ({error}): take the state on this rank before the others "
                "continue (use a barrier), or after the next epoch"
            ) from error
        return _encoded(state.records), finished_epochs, state.epoch_starts, state.past

    def _present_state(self) -> Encoded:
        if self._membership.generation is None:
            if self._behind:
                self.go_back()
        elif self._shards.count > 1:  # one that restarted may stand elsewhere
            self._shards.all("check_begun")
        at = self._membership
        return _encoded(self._shards.records()), at.finished_epochs, at.epoch_starts, at.past

    def _decoded(
        self, finished_epochs: int, starts: tuple[int, ...], past: Past, sha256: str, table: bytes
    ) -> RunState:
        if hashlib.sha256(table).hexdigest() != sha256:
            raise errors.StorageError("the table in the checkpoint is damaged: its sha256 is not the one noted there")
        decoded = table_files.decode_table(table, "the table in the checkpoint")
        num_samples = decoded.num_rows if self._config.grows else self._config.num_samples
        records = arrow_to_records(decoded, num_samples)
        self._shard.state.engine.check_records(records[:: self._shards.count])
        return RunState(records, finished_epochs, tuple(starts), past)

    def go_back(self) -> None:
        """Take membership and shards to the end of the last epoch whose snapshot all of them can read."""
        epochs = self._storage.snapshots.epochs() or [0]
        while True:
            finished = epochs.pop()
            try:
                snapshots = self._storage.snapshots
                self._go_to(*snapshots.position(finished), snapshots.past(finished))
                return
            except errors.StorageError as error:
                if not epochs:
                    raise
                _log.error("%s; going back to the epoch before", error)

    def _go_to(self, finished_epochs: int, starts: tuple[int, ...], past: Past) -> None:
        """Take membership and shards to an epoch's end that is on storage, or to the beginning."""
        self._writer.settle()
        self._shards.all("go_to_snapshot", finished_epochs)
        self._membership.go_to(finished_epochs, starts, past)
        self._behind = False
        self._shard.state.write(*self._epochs.records())  # it belongs to the rows, which are there already
        self._storage.progress.drop_from(finished_epochs)
        with contextlib.suppress(errors.StorageError):  # going back on purpose drops it anyway
            self._storage.forget_history(finished_epochs)


def _encoded(records: NDArray[np.void]) -> bytes:
    return table_files.encode_table(records_to_arrow(records))
